"""Where compiled kernels are kept."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from numba.core import config


def cache_by_source(folder: Path) -> None:
    """Give each state of ``folder`` a cache of its own, below NUMBA_CACHE_DIR or else the folder's ``__pycache__``:
    numba looks at a kernel's own file alone, and kernels call those of others."""
    sources = b"\0".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    root = os.environ.get("NUMBA_CACHE_DIR") or folder / "__pycache__"
    # numba sets the variables of its config module from the environment, unseen by type checkers
    config.CACHE_DIR = str(Path(root, hashlib.sha256(sources).hexdigest()[:16]))  # pyright: ignore[reportAttributeAccessIssue]
