"""The pull step of our deployments (prefect.yaml): where a run works on the machine that took it."""

from __future__ import annotations

import os

from storage.places import ROOT


def enter() -> dict[str, str]:
    """Work in the folder of this machine's own checkout, wherever that is: ``.pipeline`` and relative paths mean there
    what they mean to ``pipeline``. Gives {"directory": that folder}, as Prefect's own steps do."""
    os.chdir(ROOT)
    return {"directory": str(ROOT)}
