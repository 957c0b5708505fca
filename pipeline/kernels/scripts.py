"""Count the characters of each class in each text of a batch: which script a document is written in."""

from __future__ import annotations

import numpy as np
from numba import njit

from pipeline.kernels import alphabet


def scripts(codes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """int64 [n, CLASSES]: characters by class (see pipeline.kernels.alphabet)."""
    return _scripts(codes, offsets, alphabet.tables()[0], alphabet.CLASSES)


@njit(cache=True, nogil=True)
def _scripts(codes, offsets, classes, count):
    out = np.zeros((offsets.size - 1, count), np.int64)
    for i in range(offsets.size - 1):
        for j in range(offsets[i], offsets[i + 1]):
            out[i, classes[codes[j]]] += 1
    return out
