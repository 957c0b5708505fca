"""How much of a document repeats itself: the most frequent short n-gram and the share of text inside repeated long
n-grams.

Gopher (arXiv 2112.11446, A1.1) measures top 2-, 3- and 4-grams and repeated 5- to 10-grams of words. Here n is scaled
by two for texts of unspaced scripts, since a Chinese word is about two characters.
"""

from __future__ import annotations

import numpy as np
from numba import njit

BUCKETS = 4096
"""Counters of the n-grams of one length; the top 12 bits of a hash choose one."""


def _powers() -> np.ndarray:
    """uint64 [16]: powers of the base of the polynomial over tokens."""
    return np.array([pow(0x9E3779B97F4A7C15, n, 1 << 64) for n in range(16)], np.uint64)


_POWERS = _powers()


@njit(cache=True, nogil=True)
def empty_set(seen, members):
    """A table for :func:`seen_before` with room for `members`, all zeros: `seen` itself, or a larger one. Its size is a
    power of two."""
    size = 32
    while size < 2 * members:
        size *= 2
    if size > seen.size:
        seen = np.empty(size, np.uint64)
    seen[:size] = 0
    return seen, np.uint64(size - 1)


@njit(cache=True, nogil=True)
def seen_before(seen, mask, key):
    """Is this hash in the set already? It is afterwards."""
    key = (key ^ (key >> np.uint64(29))) | np.uint64(1 << 63)  # never 0, which is an empty slot
    slot = (key >> np.uint64(7)) & mask
    while seen[slot] != 0 and seen[slot] != key:
        slot = (slot + np.uint64(1)) & mask
    there = seen[slot] == key
    seen[slot] = key
    return there


@njit(cache=True, nogil=True)
def shares(tokens, lengths, step, counts, seen):
    """Share of a text's token characters in (the most frequent of the n-grams of 2, 3 and 4 words, repeated 5-grams),
    and `seen`, maybe grown.

    tokens uint64 [t], lengths int32 [t]; step: tokens per word; counts: int32 [3, BUCKETS], scratch. Frequent n-grams
    (3 times and more) share counters; with the counts that matter the error is below 1 %.
    """
    if tokens.size < 8:
        return 0.0, 0.0, seen
    counts[:] = 0
    seen, mask = empty_set(seen, tokens.size)
    # polynomial over the tokens up to each of the last 16; an n-gram's is a difference of two
    prefix = np.zeros(16, np.uint64)
    characters = np.zeros(16, np.int64)  # the same for lengths
    best = covered = repeated = 0
    for j in range(1, tokens.size + 1):
        at = prefix[(j - 1) & 15] * _POWERS[1] + tokens[j - 1]
        length = characters[(j - 1) & 15] + lengths[j - 1]
        prefix[j & 15], characters[j & 15] = at, length
        for k in range(3):
            n = (k + 2) * step
            if j >= n:
                bucket = (at - prefix[(j - n) & 15] * _POWERS[n]) >> np.uint64(52)
                count = counts[k, bucket] + 1
                counts[k, bucket] = count
                best = max(best, count * (count >= 3) * (length - characters[(j - n) & 15]))
        n = 5 * step
        if j >= n and seen_before(seen, mask, at - prefix[(j - n) & 15] * _POWERS[n]):
            repeated += length - characters[max(covered, j - n) & 15]
            covered = j
    total = characters[tokens.size & 15]
    return min(best / total, 1.0), repeated / total, seen
