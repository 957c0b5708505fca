"""Where compiled kernels are kept."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from numba.core import config


def cache_by_source(folder: Path) -> None:
    """Give each state of ``folder`` a cache of its own below NUMBA_CACHE_DIR: numba looks at a kernel's own file alone,
    and kernels call those of others."""
    if os.environ.get("NUMBA_CACHE_DIR"):
        sources = b"\0".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
        own = Path(os.environ["NUMBA_CACHE_DIR"], hashlib.sha256(sources).hexdigest()[:16])
        # numba sets the variables of its config module from the environment, unseen by type checkers
        config.CACHE_DIR = str(own)  # pyright: ignore[reportAttributeAccessIssue]
