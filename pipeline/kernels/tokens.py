"""Hybrid tokens of a batch (a word of a spaced script, or one character of an unspaced one), and hashes of their
n-grams.

Case, white space and punctuation do not count. A token's hash is a 64-bit multiplicative hash of its lower-cased code
points; an n-gram's hash is a rolling polynomial over token hashes, finalised by the 64-bit mixer of MurmurHash3.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from pipeline.kernels import alphabet
from pipeline.kernels.alphabet import DIGIT, KIND, LETTER, is_ascii_letter, peek, stands_alone

PRIME = 0x100000001B3
BASE = 0x9E3779B97F4A7C15


def tokenize(data: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each text: (hashes uint64 [t], offsets int64 [n + 1] into them)."""
    return _tokenize(data, places, *alphabet.tables())


def ngrams(tokens: np.ndarray, offsets: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all n-grams of each text: (uint64 [m], offsets int64 [texts + 1]). A text of fewer tokens has one: all
    its tokens."""
    return _ngrams(tokens, offsets, n)


@njit(cache=True, nogil=True)
def extend(current, low):
    """A token's hash with one more (lower-cased) code point."""
    current = (current ^ np.uint64(low)) * np.uint64(PRIME)
    return current ^ (current >> np.uint64(31))


@njit(cache=True, nogil=True)
def _letters(data, p, end, current):
    """(end of the run of ASCII letters from p, the token's hash with them)."""
    while p < end and is_ascii_letter(data[p]):
        current = extend(current, data[p] | 32)
        p += 1
    return p, current


@njit(cache=True, nogil=True)
def _tokenize(data, places, entries, lower):
    # a token has a byte at least
    hashes = np.empty(places[-1] - places[0], np.uint64)
    starts = np.zeros(places.size, np.int64)
    count = 0
    for i in range(places.size - 1):
        p, end = places[i], places[i + 1]
        current = np.uint64(BASE)
        while p < end:
            # ASCII letters are most of all text and need neither decoding nor a table
            if is_ascii_letter(data[p]):
                p, current = _letters(data, p, end, current)
                continue
            code, size = peek(data, p, end)
            p += size
            kind = entries[code] & KIND
            alone = stands_alone(kind)
            if kind >= DIGIT and kind <= LETTER and not alone:
                current = extend(current, lower[code] if code < 0x10000 else code)
                continue
            # anything but a letter or digit ends the token; an empty one has the base for a hash
            if current != np.uint64(BASE):
                hashes[count] = current
                count += 1
                current = np.uint64(BASE)
            if alone:
                hashes[count] = extend(current, code)
                count += 1
        if current != np.uint64(BASE):
            hashes[count] = current
            count += 1
        starts[i + 1] = count
    return hashes[:count], starts


@njit(cache=True, nogil=True)
def at_least(tokens, table, enough):
    """How many of a text's tokens are in `table` (see :func:`hash_set`), counted up to `enough`."""
    count = 0
    for token in tokens:
        slot = np.int64(token >> np.uint64(20)) & (table.size - 1)
        while table[slot] != 0 and table[slot] != token:
            slot = (slot + 1) & (table.size - 1)
        count += table[slot] == token
        if count == enough:
            break
    return count


@njit(cache=True, nogil=True)
def _ngrams(tokens, offsets, n):
    texts = offsets.size - 1
    out = np.empty(tokens.size, np.uint64)
    starts = np.zeros(texts + 1, np.int64)
    power = np.uint64(1)
    for _ in range(n):
        power *= np.uint64(BASE)
    count = 0
    for i in range(texts):
        first = offsets[i]
        last = offsets[i + 1]
        rolled = np.uint64(0)
        for j in range(first, last):
            # a rolling hash: multiply, add the token that comes, take off the one that leaves
            rolled = rolled * np.uint64(BASE) + tokens[j]
            if j - first >= n:
                # the token that leaves has been multiplied n times since it came
                rolled -= tokens[j - n] * power
            # a text shorter than n is one n-gram
            if j - first >= n - 1 or (j == last - 1 and last - first < n):
                # mixed as MurmurHash3 ends, so that every bit of the table's index depends on all of it
                mixed = rolled ^ (rolled >> np.uint64(33))
                mixed *= np.uint64(0xFF51AFD7ED558CCD)
                mixed ^= mixed >> np.uint64(33)
                mixed *= np.uint64(0xC4CEB9FE1A85EC53)
                out[count] = mixed ^ (mixed >> np.uint64(33))
                count += 1
        starts[i + 1] = count
    return out[:count], starts


def hash_set(grams: np.ndarray) -> np.ndarray:
    """An open-addressing table of n-gram hashes for :func:`lookup`: uint64 [power of two], 0 is empty (a gram of 0 is
    taken as 1)."""
    table = np.zeros(1 << max(4, int(4 * max(len(grams), 1) - 1).bit_length()), np.uint64)
    _fill(table, np.maximum(grams, np.uint64(1)))
    return table


@njit(cache=True, nogil=True)
def _fill(table, grams):
    for gram in grams:
        # linear probing: the table is at most a quarter full
        slot = np.int64(gram >> np.uint64(20)) & (table.size - 1)
        while table[slot] != 0 and table[slot] != gram:
            slot = (slot + 1) & (table.size - 1)
        table[slot] = gram


def sieve(grams: np.ndarray) -> np.ndarray:
    """What :func:`lookup` asks before the table: a set of 2**17 bits (uint64 [2048]), which stays in the fastest
    cache."""
    bits = np.zeros(1 << 17, bool)
    bits[_bit.py_func(np.maximum(grams, np.uint64(1)))] = True
    return np.packbits(bits, bitorder="little").view(np.uint64)


@njit(cache=True, nogil=True)
def _bit(gram):
    return gram >> np.uint64(40) & np.uint64((1 << 17) - 1)


@njit(cache=True, nogil=True)
def lookup(grams, offsets, salt, table, possible):
    """Which n-grams of each text are in `table` after ``^ salt``: (text int64 [m], salted gram uint64 [m]), with
    repetition.

    `table` and `possible` are :func:`hash_set` and :func:`sieve` of the same n-grams.
    """
    texts = np.empty(grams.size, np.int64)
    found = np.empty(grams.size, np.uint64)
    count = 0
    for i in range(offsets.size - 1):
        for j in range(offsets[i], offsets[i + 1]):
            gram = max(grams[j] ^ salt, np.uint64(1))
            bit = _bit(gram)
            # most n-grams are in no table; one bit says so without touching it
            if possible[bit >> np.uint64(6)] >> (bit & np.uint64(63)) & np.uint64(1) == 0:
                continue
            slot = np.int64(gram >> np.uint64(20)) & (table.size - 1)
            while table[slot] != 0 and table[slot] != gram:
                slot = (slot + 1) & (table.size - 1)
            if table[slot] == gram:
                texts[count] = i
                found[count] = gram
                count += 1
    return texts[:count].copy(), found[:count].copy()
