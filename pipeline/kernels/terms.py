"""Count many fixed terms in a batch of texts in one pass (after Wu and Manber: a table of two-character prefixes, then compare).

The case of ASCII letters does not count, any white space matches a space, and a term that begins or ends with a Latin letter or a digit
matches whole words only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

from pipeline.kernels import alphabet


class Terms:
    """A compiled list of (term, category, weight); terms have two characters or more, categories are numbered from 0."""

    def __init__(self, terms: Sequence[tuple[str, int, int]]) -> None:
        self.codes, self.offsets = alphabet.encode([term.lower() for term, _, _ in terms])
        self.category = np.array([c for _, c, _ in terms], np.int64)
        self.weight = np.array([w for _, _, w in terms], np.int64)
        self.head = np.full(1 << 16, -1, np.int32)
        self.next = np.full(len(terms), -1, np.int32)
        self.possible = np.zeros(1 << 16, np.uint8)
        for i in range(len(terms)):
            a, b = self.codes[self.offsets[i] : self.offsets[i] + 2]
            slot = (int(a) * 31 + int(b) * 1031) & 0xFFFF
            self.next[i], self.head[slot] = self.head[slot], i
            self.possible[slot] = 1

    def points(self, codes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Sum of the weights of all occurrences: int64 [texts, categories]."""
        table = (self.codes, self.offsets, self.category, self.weight, self.possible, self.head, self.next)
        return _points(codes, offsets, *table, int(self.category.max()) + 1)


@njit(cache=True, nogil=True)
def _fold(code):
    """Lower case for ASCII, and every white space a space: all that the terms need."""
    if code >= 65 and code <= 90:
        return code + np.uint32(32)
    if code < 32 or code == 0xA0 or code == 0x3000:
        return np.uint32(32)
    return code


@njit(cache=True, nogil=True)
def _is_word(code):
    return (code >= 48 and code <= 57) or (code >= 97 and code <= 122) or (code >= 0xC0 and code <= 0x24F)


@njit(cache=True, nogil=True)
def _points(codes, offsets, term_codes, term_offsets, category, weight, possible, head, chain, categories):
    texts = offsets.size - 1
    out = np.zeros((texts, categories), np.int64)
    for i in range(texts):
        end = offsets[i + 1]
        following = _fold(codes[offsets[i]]) if end > offsets[i] else np.uint32(0)
        inside = False
        for j in range(offsets[i], end - 1):
            current = following
            following = _fold(codes[j + 1])
            word = _is_word(current)
            if word and inside:  # no term starts inside a word: most positions of a Latin text end here
                continue
            inside = word
            slot = (current * 31 + following * 1031) & 0xFFFF
            if not possible[slot]:
                continue
            term = head[slot]
            while term >= 0:
                size = term_offsets[term + 1] - term_offsets[term]
                same = j + size <= end
                k = 0
                while same and k < size:
                    same = _fold(codes[j + k]) == term_codes[term_offsets[term] + k]
                    k += 1
                if same and j + size < end and _is_word(_fold(codes[j + size - 1])) and _is_word(_fold(codes[j + size])):
                    same = False
                if same:
                    out[i, category[term]] += weight[term]
                term = chain[term]
    return out
