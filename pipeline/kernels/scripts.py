"""Count the characters of each class in each text of a batch: which script a document is written in."""

from __future__ import annotations

import numpy as np
from numba import njit

from pipeline.kernels import alphabet
from pipeline.kernels.alphabet import KIND, decode


def scripts(data: np.ndarray, places: np.ndarray) -> np.ndarray:
    """int64 [n, CLASSES]: characters by class (see pipeline.kernels.alphabet)."""
    return _scripts(data, places, alphabet.tables()[0], alphabet.CLASSES)


@njit(cache=True, nogil=True)
def _scripts(data, places, entries, count):
    out = np.zeros((places.size - 1, count), np.int64)
    sums = np.zeros((4, 16), np.int64)  # four of each, so that runs of one class do not wait for each other's sums
    ascii = np.zeros((4, 128), np.int64)  # by character: their classes are looked up once a text
    for i in range(places.size - 1):
        p, end = (
            np.uint64(places[i]),
            np.uint64(places[i + 1]),
        )  # a signed index would be asked whether it counts from the end
        sums[:], ascii[:] = 0, 0
        while p < end:
            turn, byte = p & np.uint64(3), data[p]
            if byte < 128:
                ascii[turn, byte] += 1
                p += np.uint64(1)
            else:
                code, size = decode(data, p, end)
                sums[turn, entries[code] & KIND] += 1
                p += np.uint64(size)
        # in loops: numba takes two seconds more to compile sums over an axis
        for byte in range(128):
            sums[0, entries[byte] & KIND] += ascii[0, byte] + ascii[1, byte] + ascii[2, byte] + ascii[3, byte]
        for kind in range(count):
            out[i, kind] = sums[0, kind] + sums[1, kind] + sums[2, kind] + sums[3, kind]
    return out
