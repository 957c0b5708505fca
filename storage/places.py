"""Where things are: the project's code, and the one root below which everything is written."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The folder that holds the packages (a checkout, or site-packages)."""


def home() -> Path:
    """The one root below which everything is written: ``PIPELINE_HOME``, or ``.pipeline`` here."""
    return Path(os.environ.get("PIPELINE_HOME") or ".pipeline").expanduser().resolve()
