"""Hybrid tokens of a batch (a word of a spaced script, or one character of an unspaced one), and hashes of their n-grams.

Case, white space and punctuation do not count. A token's hash is a 64-bit multiplicative hash of its lower-cased code
points; an n-gram's hash is a rolling polynomial over token hashes, finalised by the 64-bit mixer of MurmurHash3.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from pipeline.kernels import alphabet
from pipeline.kernels.alphabet import DIGIT, HAN, KANA, LETTER, UNSPACED

PRIME = 0x100000001B3
BASE = 0x9E3779B97F4A7C15


def tokenize(codes: np.ndarray, offsets: np.ndarray, urls: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens of each text: (hashes uint64 [t], lengths int32 [t] in characters, offsets int64 [n + 1] into them).

    With ``urls=False`` what follows "://" up to a space, a bracket, a quote or a character beyond ASCII is no token.
    """
    return _tokenize(codes, offsets, *alphabet.tables(), urls)


def ngrams(tokens: np.ndarray, offsets: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all n-grams of each text: (uint64 [m], offsets int64 [texts + 1]). A text of fewer tokens has one: all its tokens."""
    return _ngrams(tokens, offsets, n)


@njit(cache=True, nogil=True)
def _tokenize(codes, offsets, classes, lower, urls):
    n = offsets.size - 1
    hashes = np.empty(codes.size, np.uint64)
    lengths = np.empty(codes.size, np.int32)
    starts = np.zeros(n + 1, np.int64)
    count = 0
    for i in range(n):
        current = np.uint64(BASE)
        length = 0
        in_url = False
        before = second = np.uint32(0)
        for code in codes[offsets[i] : offsets[i + 1]]:
            kind = classes[code]
            letter = kind >= DIGIT and kind <= LETTER
            if not urls:
                if in_url:
                    in_url = not (code <= 32 or code >= 127 or code == 41 or code == 93 or code == 34 or code == 39 or code == 62)
                    letter = letter and not in_url
                elif code == 47:
                    in_url = before == 47 and second == 58
                second, before = before, code
            if letter and kind != HAN and kind != KANA and kind != UNSPACED:
                low = np.uint64(lower[code] if code < 0x10000 else code)
                current = (current ^ low) * np.uint64(PRIME)
                current ^= current >> np.uint64(31)
                length += 1
                continue
            if length > 0:
                hashes[count] = current
                lengths[count] = length
                count += 1
                current = np.uint64(BASE)
                length = 0
            if letter:  # a character of an unspaced script is a token
                alone = (np.uint64(BASE) ^ np.uint64(code)) * np.uint64(PRIME)
                hashes[count] = alone ^ (alone >> np.uint64(31))
                lengths[count] = 1
                count += 1
        if length > 0:
            hashes[count] = current
            lengths[count] = length
            count += 1
        starts[i + 1] = count
    return hashes[:count], lengths[:count], starts


@njit(cache=True, nogil=True)
def at_least(tokens, offsets, table, enough):
    """How many tokens of each text are in `table` (see :func:`hash_set`), counted up to `enough`: int64 [texts]."""
    out = np.zeros(offsets.size - 1, np.int64)
    for i in range(offsets.size - 1):
        for j in range(offsets[i], offsets[i + 1]):
            slot = np.int64(tokens[j] >> np.uint64(20)) & (table.size - 1)
            while table[slot] != 0 and table[slot] != tokens[j]:
                slot = (slot + 1) & (table.size - 1)
            if table[slot] == tokens[j]:
                out[i] += 1
                if out[i] == enough:
                    break
    return out


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
            rolled = rolled * np.uint64(BASE) + tokens[j]
            if j - first >= n:
                rolled -= tokens[j - n] * power
            if j - first >= n - 1 or (j == last - 1 and last - first < n):
                mixed = rolled ^ (rolled >> np.uint64(33))
                mixed *= np.uint64(0xFF51AFD7ED558CCD)
                mixed ^= mixed >> np.uint64(33)
                mixed *= np.uint64(0xC4CEB9FE1A85EC53)
                out[count] = mixed ^ (mixed >> np.uint64(33))
                count += 1
        starts[i + 1] = count
    return out[:count], starts


def hash_set(grams: np.ndarray) -> np.ndarray:
    """An open-addressing table of n-gram hashes for :func:`lookup`: uint64 [power of two], 0 is empty (a gram of 0 is taken as 1)."""
    table = np.zeros(1 << max(4, int(4 * max(len(grams), 1) - 1).bit_length()), np.uint64)
    _fill(table, np.maximum(grams, np.uint64(1)))
    return table


@njit(cache=True, nogil=True)
def _fill(table, grams):
    for gram in grams:
        slot = np.int64(gram >> np.uint64(20)) & (table.size - 1)
        while table[slot] != 0 and table[slot] != gram:
            slot = (slot + 1) & (table.size - 1)
        table[slot] = gram


@njit(cache=True, nogil=True)
def lookup(grams, offsets, salt, table):
    """Which n-grams of each text are in `table` after ``^ salt``: (text int64 [m], salted gram uint64 [m]), with repetition."""
    texts = np.empty(grams.size, np.int64)
    found = np.empty(grams.size, np.uint64)
    count = 0
    for i in range(offsets.size - 1):
        for j in range(offsets[i], offsets[i + 1]):
            gram = max(grams[j] ^ salt, np.uint64(1))
            slot = np.int64(gram >> np.uint64(20)) & (table.size - 1)
            while table[slot] != 0 and table[slot] != gram:
                slot = (slot + 1) & (table.size - 1)
            if table[slot] == gram:
                texts[count] = i
                found[count] = gram
                count += 1
    return texts[:count].copy(), found[:count].copy()
