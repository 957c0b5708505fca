"""Compiled loops over whole batches of text (numba; compiled at first call and kept, never at
import).

They see a batch as one array of UTF-8 with offsets, the tables of :mod:`pipeline.kernels.alphabet`, and nothing of
Python. Functions that are called for single characters take numbers, not arrays: numba counts the references to an
array at every call that is not inlined.
"""

from __future__ import annotations

from pathlib import Path

from model.running.kernel_cache import cache_by_source

cache_by_source(Path(__file__).parent)
