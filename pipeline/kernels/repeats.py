"""How much of a document repeats itself: the most frequent short n-gram and the share of text inside repeated long n-grams.

Gopher (arXiv 2112.11446, A1.1) measures top 2-, 3- and 4-grams and repeated 5- to 10-grams of words. Here n is scaled by two
for texts of unspaced scripts, since a Chinese word is about two characters.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_BUCKETS = 4096


@njit(cache=True, nogil=True)
def repeats(tokens, lengths, offsets, scale):
    """Share of token characters in (the most frequent of the n-grams of 2, 3 and 4 words, repeated 5-grams): float32 [texts, 2].

    tokens, lengths, offsets: from :func:`pipeline.kernels.tokens.tokenize`; scale: int64 [texts], tokens per word.
    Frequent n-grams (3 times and more) share 4,096 counters; with the counts that matter the error is below 1 %.
    """
    texts = offsets.size - 1
    out = np.zeros((texts, 2), np.float32)
    longest = np.max(np.append(np.diff(offsets), 16))
    size = 64
    while size < 4 * longest:
        size *= 2
    seen = np.zeros(size, np.uint64)
    counts = np.zeros((3, _BUCKETS), np.int32)
    prefix = np.zeros(longest + 1, np.uint64)  # polynomial over the tokens so far; an n-gram's is a difference of two
    characters = np.zeros(longest + 1, np.int64)  # the same for lengths
    powers = np.ones(11, np.uint64)
    for n in range(1, 11):
        powers[n] = powers[n - 1] * np.uint64(0x9E3779B97F4A7C15)
    for i in range(texts):
        first, last = offsets[i], offsets[i + 1]
        for j in range(last - first):
            prefix[j + 1] = prefix[j] * powers[1] + tokens[first + j]
            characters[j + 1] = characters[j] + lengths[first + j]
        total = characters[last - first]
        if last - first < 8:
            continue
        counts[:] = 0
        mask = 31
        while mask < 2 * (last - first):
            mask = 2 * mask + 1
        seen[: mask + 1] = 0
        best = 0
        covered = repeated = 0
        step = scale[i]
        for j in range(1, last - first + 1):
            for k in range(3):
                n = (k + 2) * step
                if j >= n:
                    gram = prefix[j] - prefix[j - n] * powers[n]
                    bucket = np.int64(gram >> np.uint64(52))
                    counts[k, bucket] += 1
                    if counts[k, bucket] >= 3:
                        best = max(best, counts[k, bucket] * (characters[j] - characters[j - n]))
            n = 5 * step
            if j >= n:
                gram = prefix[j] - prefix[j - n] * powers[n]
                gram = (gram ^ (gram >> np.uint64(29))) | np.uint64(1 << 63)  # never 0, which is an empty slot
                slot = np.int64(gram & np.uint64(mask))
                while seen[slot] != 0 and seen[slot] != gram:
                    slot = (slot + 1) & mask
                if seen[slot] == gram:
                    repeated += characters[j] - characters[max(covered, j - n)]
                    covered = j
                else:
                    seen[slot] = gram
        out[i, 0] = min(best / total, 1.0)
        out[i, 1] = repeated / total
    return out
