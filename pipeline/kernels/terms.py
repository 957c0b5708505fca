"""Count many fixed terms in a batch of texts in one pass (after Wu and Manber: a table of two-character prefixes, then compare).

Letter case does not count, any white space matches a space, and a term that begins or ends with a Latin letter or a digit
matches whole words only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

from pipeline.kernels import alphabet
from pipeline.kernels.alphabet import DIGIT, LATIN, NEWLINE, SPACE


class Terms:
    """A compiled list of (term, category, weight); terms have two characters or more, categories are numbered from 0."""

    def __init__(self, terms: Sequence[tuple[str, int, int]]) -> None:
        lower = alphabet.tables()[1]
        self.codes, self.offsets = alphabet.encode([term.lower() for term, _, _ in terms])
        self.category = np.array([c for _, c, _ in terms], np.int64)
        self.weight = np.array([w for _, _, w in terms], np.int64)
        self.head = np.full(1 << 16, -1, np.int32)
        self.next = np.full(len(terms), -1, np.int32)
        for i in range(len(terms)):
            a, b = self.codes[self.offsets[i] : self.offsets[i] + 2]
            slot = (int(lower[a]) * 31 + int(lower[b]) * 1031) & 0xFFFF
            self.next[i], self.head[slot] = self.head[slot], i

    def points(self, codes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Sum of the weights of all occurrences: int64 [texts, categories]."""
        table = (self.codes, self.offsets, self.category, self.weight, self.head, self.next)
        return _points(codes, offsets, *alphabet.tables(), *table, int(self.category.max()) + 1)


@njit(cache=True, nogil=True)
def _points(codes, offsets, classes, lower, term_codes, term_offsets, category, weight, head, chain, categories):
    texts = offsets.size - 1
    out = np.zeros((texts, categories), np.int64)
    for i in range(texts):
        end = offsets[i + 1]
        current = np.int64(0)
        for j in range(offsets[i], end):
            code = codes[j]
            following = np.int64(0)
            if j + 1 < end:
                low = codes[j + 1]
                following = np.int64(lower[low]) if low < 0x10000 else np.int64(low)
                kind = classes[low]
                if kind == SPACE or kind == NEWLINE:
                    following = np.int64(32)
            if j == offsets[i]:
                current = np.int64(lower[code]) if code < 0x10000 else np.int64(code)
            term = head[(current * 31 + following * 1031) & 0xFFFF]
            while term >= 0:
                size = term_offsets[term + 1] - term_offsets[term]
                same = j + size <= end
                k = 0
                while same and k < size:
                    c = codes[j + k]
                    wanted = term_codes[term_offsets[term] + k]
                    kind = classes[c]
                    low = np.uint32(32) if kind == SPACE or kind == NEWLINE else (lower[c] if c < 0x10000 else c)
                    same = low == wanted
                    k += 1
                if same:
                    a = classes[codes[j]]
                    if (a == LATIN or a == DIGIT) and j > offsets[i]:
                        before = classes[codes[j - 1]]
                        same = not (before == LATIN or before == DIGIT)
                    b = classes[codes[j + size - 1]]
                    if same and (b == LATIN or b == DIGIT) and j + size < end:
                        after = classes[codes[j + size]]
                        same = not (after == LATIN or after == DIGIT)
                    if same:
                        out[i, category[term]] += weight[term]
                term = chain[term]
            current = following
    return out
