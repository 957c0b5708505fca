"""Count the characters of each class in each text of a batch: which script a document is written in."""

from __future__ import annotations

import numpy as np
from numba import njit

from pipeline.kernels import alphabet
from pipeline.kernels.alphabet import KIND, LATIN, is_ascii_letter, peek


def scripts(data: np.ndarray, places: np.ndarray) -> np.ndarray:
    """int64 [n, CLASSES]: characters by class (see pipeline.kernels.alphabet)."""
    return _scripts(data, places, alphabet.tables()[0], alphabet.CLASSES)


@njit(cache=True, nogil=True)
def _scripts(data, places, entries, count):
    out = np.zeros((places.size - 1, count), np.int64)
    sums = np.zeros((4, 16), np.int64)  # four of each, so that runs of one class do not wait for each other's sums
    for i in range(places.size - 1):
        p, end = places[i], places[i + 1]
        sums[:] = 0
        while p < end:
            if is_ascii_letter(data[p]):
                first = p
                while p < end and is_ascii_letter(data[p]):
                    p += 1
                sums[0, LATIN] += p - first
                continue
            code, size = peek(data, p, end)
            sums[p & 3, entries[code] & KIND] += 1
            p += size
        out[i] = sums.sum(0)[:count]
    return out
