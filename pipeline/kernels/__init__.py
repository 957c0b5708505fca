"""Compiled loops over whole batches of text (numba, cached in NUMBA_CACHE_DIR; compiled at first call, never at
import).

They see a batch as one array of UTF-8 with offsets, the tables of :mod:`pipeline.kernels.alphabet`, and nothing of
Python. Functions that are called for single characters take numbers, not arrays: numba counts the references to an
array at every call that is not inlined.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numba


def _cache_by_source() -> None:
    """Give each state of this folder a cache of its own below NUMBA_CACHE_DIR: numba looks at a kernel's own file
    alone, and kernels call those of others."""
    if os.environ.get("NUMBA_CACHE_DIR"):
        sources = b"\0".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
        numba.config.CACHE_DIR = str(Path(os.environ["NUMBA_CACHE_DIR"], hashlib.sha256(sources).hexdigest()[:16]))


_cache_by_source()
