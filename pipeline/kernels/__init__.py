"""Compiled loops over whole batches of text (numba, cached in NUMBA_CACHE_DIR; compiled at first call, never at import).

They see a batch as one array of UTF-8 with offsets, the tables of :mod:`pipeline.kernels.alphabet`, and nothing of Python.
"""
