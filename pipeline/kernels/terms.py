"""Count many fixed terms in a batch of texts: look at the first word of each, or at its first two characters, then
compare.

The case of ASCII letters does not count, any white space matches a space, and a term that begins or ends with a Latin
letter or a digit matches whole words only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

from pipeline.kernels import alphabet, tokens
from pipeline.kernels.alphabet import DIGIT, KIND, LETTER, OPENS, SPACE, is_ascii_letter, peek, stands_alone
from pipeline.kernels.tokens import BASE, extend


class Terms:
    """A compiled list of (term, category, weight); categories are numbered from 0. ValueError for a term of one
    character.

    ``entries`` is the alphabet's table with the OPENS bit where a term may begin that does not begin with a word;
    ``possible`` is a set of slots (one bit each: 8 KB stay in the fastest cache); ``table`` is what :func:`weigh`
    wants.
    """

    def __init__(self, terms: Sequence[tuple[str, int, int]]) -> None:
        codes = [np.array(list(map(ord, term.lower())), np.uint32) for term, _, _ in terms]
        self.entries = alphabet.tables()[0].copy()
        self.categories = 1 + max((c for _, c, _ in terms), default=0)
        self.possible = np.zeros(1 << 10, np.uint64)
        head, following = np.full(1 << 16, -1, np.int32), np.full(len(terms), -1, np.int32)
        firsts, starts = tokens.tokenize(*alphabet.utf8([term for term, _, _ in terms]))
        for i, term in enumerate(codes):
            if len(term) < 2:
                raise ValueError(f"term {terms[i][0]!r}: a term has two characters or more")
            kind = self.entries[term[0]] & KIND
            # a term that begins with a word is found by that word's hash, another by its first two characters
            if DIGIT <= kind <= LETTER and not stands_alone(kind):
                slot = int(word_slot(firsts[starts[i]]))
            else:
                slot = int(_pair_slot(term[0], term[1]))
                self.entries[term[0]] |= OPENS
            # terms of one slot are a linked list
            following[i], head[slot] = head[slot], i
            self.possible[slot >> 6] |= np.uint64(1 << (slot & 63))
        category, weight = (np.array([t[k] for t in terms], np.int64) for k in (1, 2))
        self.table = (np.concatenate(codes), np.cumsum([0, *map(len, codes)]), category, weight, head, following)

    def points(self, data: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Sum of the weights of all occurrences: int64 [texts, categories]."""
        return _points(data, places, self.entries, alphabet.tables()[1], self.possible, self.table, self.categories)


@njit(cache=True, nogil=True)
def _fold(code, entries):
    """Lower case for ASCII, and every white space a space: all that the terms need."""
    if is_ascii_letter(code):
        return np.uint32(code) | np.uint32(32)
    return np.uint32(32) if (code < 32) | (entries[code] & KIND == SPACE) else np.uint32(code)


@njit(cache=True, nogil=True)
def _is_word(code):
    """Do words go on over this character?"""
    return is_ascii_letter(code) or (code >= 48 and code <= 57) or (code >= 0xC0 and code <= 0x24F)


@njit(cache=True, nogil=True)
def word_slot(token):
    """Where terms are listed that begin with the word of this hash (see :mod:`pipeline.kernels.tokens`)."""
    return np.uint64(token) >> np.uint64(48)


@njit(cache=True, nogil=True)
def _pair_slot(first, second):
    return (np.uint64(first) * np.uint64(31) + np.uint64(second) * np.uint64(1031)) & np.uint64(0xFFFF)


@njit(cache=True, nogil=True)
def pair_slot(data, p, end, entries):
    """The same by the two characters at p."""
    first, size = peek(data, p, end)
    return _pair_slot(_fold(first, entries), _fold(peek(data, p + size, end)[0], entries))


@njit(cache=True, nogil=True)
def is_possible(possible, slot):
    """Is a term listed in this slot?"""
    return possible[slot >> np.uint64(6)] >> (slot & np.uint64(63)) & np.uint64(1) != 0


@njit(cache=True, nogil=True)
def weigh(data, p, end, slot, entries, table, points):
    """Add the weights of the terms of a slot that stand at p to `points` int64 [categories]. The caller knows that no
    word goes on there."""
    codes, offsets, category, weight, head, following = table
    term = np.int64(head[slot])
    # every term of the slot is tried: different terms share slots
    while term >= 0:
        if _matches(data, p, end, entries, codes, offsets[term], offsets[term + 1]):
            points[category[term]] += weight[term]
        term = np.int64(following[term])


@njit(cache=True, nogil=True)
def _matches(data, p, end, entries, codes, first, stop):
    """Does the term ``codes[first:stop]`` stand at p, with its last word whole?"""
    last = np.uint32(0)
    for k in range(first, stop):
        if p >= end:
            return False
        last, size = peek(data, p, end)
        if _fold(last, entries) != codes[k]:
            return False
        p += size
    return not (p < end and _is_word(last) and _is_word(peek(data, p, end)[0]))


@njit(cache=True, nogil=True)
def _points(data, places, entries, lower, possible, table, categories):
    out = np.zeros((places.size - 1, categories), np.int64)
    for i in range(places.size - 1):
        p, end = places[i], places[i + 1]
        current, first = np.uint64(BASE), p
        while p <= end:
            code, size = peek(data, p, end)
            kind = entries[code] & KIND
            if kind >= DIGIT and kind <= LETTER and not stands_alone(kind):
                # where the word began: terms are compared from there
                first = p if current == np.uint64(BASE) else first
                current = extend(current, lower[code] if code < 0x10000 else code)
            else:
                if current != np.uint64(BASE) and is_possible(possible, word_slot(current)):
                    weigh(data, first, end, word_slot(current), entries, table, out[i])
                current = np.uint64(BASE)
                # a character may begin a term wherever it stands
                if entries[code] & OPENS and is_possible(possible, pair_slot(data, p, end, entries)):
                    weigh(data, p, end, pair_slot(data, p, end, entries), entries, table, out[i])
            p += size
    return out
