"""Count many fixed terms in a batch of texts in one pass (after Wu and Manber: a table of prefixes, then compare).

A prefix is two characters, or three where the first is ASCII, because two letters say little in Latin text.

The case of ASCII letters does not count, any white space matches a space, and a term that begins or ends with a Latin letter or a digit
matches whole words only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

from pipeline.kernels import alphabet


class Terms:
    """A compiled list of (term, category, weight); categories are numbered from 0.

    ValueError for a term of one character, or of two of which the first is ASCII.
    """

    def __init__(self, terms: Sequence[tuple[str, int, int]]) -> None:
        self.codes, self.offsets = alphabet.encode([term.lower() for term, _, _ in terms])
        self.category = np.array([c for _, c, _ in terms], np.int64)
        self.weight = np.array([w for _, _, w in terms], np.int64)
        self.head = np.full(1 << 16, -1, np.int32)
        self.next = np.full(len(terms), -1, np.int32)
        self.possible = np.zeros(1 << 10, np.uint64)  # one bit a slot: 8 KB stay in the fastest cache
        for i in range(len(terms)):
            a, b, *rest = self.codes[self.offsets[i] : self.offsets[i + 1]].tolist()
            if a < 128 and not rest:
                raise ValueError(f"term {terms[i][0]!r}: a term that starts with an ASCII character has three characters or more")
            slot = _slot(a, b, rest[0] if rest else 0)
            self.next[i], self.head[slot] = self.head[slot], i
            self.possible[slot >> 6] |= np.uint64(1 << (slot & 63))

    def points(self, codes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Sum of the weights of all occurrences: int64 [texts, categories]."""
        table = (self.codes, self.offsets, self.category, self.weight, self.possible, self.head, self.next)
        return _points(codes, offsets, *table, int(self.category.max()) + 1)


@njit(cache=True, nogil=True)
def _fold(code):
    """Lower case for ASCII, and every white space a space: all that the terms need."""
    low = code + np.uint32(32) * ((code >= 65) & (code <= 90))
    return np.uint32(32) if (code < 32) | (code == 0xA0) | (code == 0x3000) else np.uint32(low)


@njit(cache=True, nogil=True)
def _is_word(code):
    return ((code >= 48) & (code <= 57)) | ((code >= 97) & (code <= 122)) | ((code >= 0xC0) & (code <= 0x24F))


@njit(cache=True, nogil=True)
def _slot(first, second, third):
    return (np.int64(first) * 31 + np.int64(second) * 1031 + np.int64(third) * 8209 * (first < 128)) & 0xFFFF


@njit(cache=True, nogil=True)
def _candidates(codes, start, end, possible, places):
    """Write to `places` where a term may start: its first two characters fit, and no word goes on. Without a branch, which would be missed often."""
    count = 0
    current = np.uint32(32)
    following = _fold(codes[start]) if end > start else current
    third = _fold(codes[start + 1]) if end > start + 1 else current
    inside = False
    for j in range(start, end - 1):
        current, following = following, third
        third = _fold(codes[min(j + 2, end - 1)])
        word = _is_word(current)
        slot = _slot(current, following, third)
        places[count] = j
        count += np.int64(possible[slot >> 6] >> np.uint64(slot & 63) & np.uint64(1)) & (1 - (word & inside))
        inside = word
    return count


@njit(cache=True, nogil=True)
def _points(codes, offsets, term_codes, term_offsets, category, weight, possible, head, chain, categories):
    texts = offsets.size - 1
    out = np.zeros((texts, categories), np.int64)
    longest = np.int64(1)
    for i in range(texts):
        longest = max(longest, offsets[i + 1] - offsets[i])
    places = np.empty(longest, np.int64)
    for i in range(texts):
        end = offsets[i + 1]
        for j in places[: _candidates(codes, offsets[i], end, possible, places)]:
            term = head[_slot(_fold(codes[j]), _fold(codes[j + 1]), _fold(codes[min(j + 2, end - 1)]))]
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
