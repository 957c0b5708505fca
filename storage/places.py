"""Where things are: the project's code, and the one root below which everything is written."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The folder that holds the packages (a checkout, or site-packages)."""


def home() -> Path:
    """The one root below which everything is written: ``PIPELINE_HOME``, or ``.pipeline`` here."""
    return Path(os.environ.get("PIPELINE_HOME") or ".pipeline").expanduser().resolve()


def below_home(folder: Path) -> Path:
    """``folder``, made with its parents if it is not there; a new :func:`home` is its owner's alone, while one that
    exists keeps the permissions that somebody chose (a group's shared folder)."""
    root = home()
    if not root.exists():
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
