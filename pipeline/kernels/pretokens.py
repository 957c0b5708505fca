"""Pre-tokens of Qwen2's split pattern and how often each comes, over UTF-8 bytes: what byte pair merges are learnt
from.

The pattern is :data:`pipeline.tokens.bpe.PRETOKEN_PATTERN`; its alternatives are tried here by hand, in their order. A
batch of texts is one array of bytes, with 0xFF, which UTF-8 never has, after every text.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numba import njit

OTHER, LETTER, NUMBER, SPACE, BREAK, END = np.arange(6, dtype=np.uint8)
_SPACES = (
    9,
    11,
    12,
    32,
    0x85,
    0xA0,
    0x1680,
    *range(0x2000, 0x200B),
    0x2028,
    0x2029,
    0x202F,
    0x205F,
    0x3000,
)  # \s without \r and \n
_BATCH = 1 << 20  # bytes that are split and counted in one call


@lru_cache(1)
def classes() -> np.ndarray:
    r"""uint8 [0x110000]: what a code point is to the pattern: \p{L}, \p{N}, \s, a line break, or none of them."""
    table = np.zeros(0x110000, np.uint8)
    for code in range(0x40000):  # planes 4 to 16 hold neither letters nor numbers
        table[code] = {"L": LETTER, "N": NUMBER}.get(unicodedata.category(chr(code))[0], OTHER)
    table[list(_SPACES)] = SPACE
    table[[10, 13]] = BREAK
    return table


def count(texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct pre-tokens in order of first appearance: (bytes uint8, offsets int64 [n + 1], counts int64 [n]).

    Pre-token i is ``bytes[offsets[i]:offsets[i + 1]]``. Memory grows with the distinct ones only. Raises
    UnicodeEncodeError for a lone surrogate.
    """
    counter = _Counter()
    batch: list[bytes] = []
    size = 0
    for text in texts:
        batch.append(text.encode())
        size += len(batch[-1])
        if size >= _BATCH:
            counter.add(batch, size)
            batch, size = [], 0
    counter.add(batch, size)
    return counter.result()


def split(text: str) -> list[str]:
    """The pre-tokens of a text, as they are counted."""
    data, kinds = _classified([text.encode()])
    ends = [0]
    while ends[-1] < len(data) - 1:
        ends.append(_pretoken_end(data, kinds, ends[-1]))
    return [bytes(data[i:j]).decode() for i, j in pairwise(ends)]


class _Counter:
    """The distinct pre-tokens so far: their bytes in a pool, a row of numbers each, and a hash table of the rows."""

    def __init__(self) -> None:
        self._used = 0
        self._rows = np.zeros(
            (1, 3), np.int64
        )  # hash, first byte in the pool, count; one more than used, for the end of the last
        self._pool = np.empty(0, np.uint8)
        self._table = np.full(2, -1, np.int32)  # open addressing: hash -> row

    def add(self, batch: list[bytes], size: int) -> None:
        """Count the pre-tokens of texts, of `size` bytes together."""
        most = self._used + size  # should every byte be a new pre-token
        if most >= len(self._rows):
            self._rows = _grown(self._rows, 2 * most + 1)
            self._table = np.full(1 << (2 * len(self._rows)).bit_length(), -1, np.int32)
            _index(self._rows[: self._used], self._table)
        pooled = int(self._rows[self._used, 1])
        if pooled + size > len(self._pool):
            self._pool = _grown(self._pool, 2 * (pooled + size))
        self._used = _count(*_classified(batch), self._table, self._rows, self._pool, self._used)

    def result(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As :func:`count` gives it."""
        rows = self._rows[: self._used + 1]
        return self._pool[: rows[-1, 1]].copy(), rows[:, 1].copy(), rows[:-1, 2].copy()


def _grown(array: np.ndarray, rows: int) -> np.ndarray:
    """A copy with room for more rows."""
    out = np.zeros((rows, *array.shape[1:]), array.dtype)
    out[: len(array)] = array
    return out


def _classified(batch: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of the batch (uint8) and the class of the character that each is a part of (uint8)."""
    data = np.frombuffer(b"\xff".join([*batch, b""]), np.uint8)
    kinds = np.empty(len(data), np.uint8)
    _classify(data, classes(), kinds)
    return data, kinds


@njit(cache=True, nogil=True)
def _classify(data, table, kinds):
    i = 0
    while i < data.size:
        code, size = np.int64(data[i]), 1
        if code >= 0xC0 and code < 0xF8:
            size = 2 if code < 0xE0 else 3 if code < 0xF0 else 4
            code &= 0x7F >> size
            for k in range(i + 1, i + size):
                code = code << 6 | data[k] & 0x3F
        kind = END if code == 0xFF and size == 1 else table[code]
        for k in range(i, i + size):
            kinds[k] = kind
        i += size


@njit(cache=True, nogil=True)
def _next(data, i):
    """Where the character after the one at byte i begins."""
    i += 1
    while data[i] & 0xC0 == 0x80:
        i += 1
    return i


@njit(cache=True, nogil=True)
def _run(kinds, i, kind):
    """Where the run of characters of one class that starts at byte i ends."""
    while kinds[i] == kind:
        i += 1
    return i


@njit(cache=True, nogil=True)
def _contraction(data, i):
    """Bytes of an English ending (s, t, re, ve, m, ll, d) at byte i, 0 for none."""
    first = data[i] | 32
    if first == 115 or first == 116 or first == 109 or first == 100:
        return 1
    if (first != 108 and first != 114 and first != 118) or data[i + 1] | 32 != (108 if first == 108 else 101):
        return 0
    return 2


@njit(cache=True, nogil=True)
def _pretoken_end(data, kinds, i):
    """Where the pre-token that starts at byte i ends."""
    kind = kinds[i]
    if kind == LETTER:
        return _run(kinds, i, LETTER)
    j = _next(data, i)
    if kind == NUMBER:
        return j
    # an apostrophe, as in "it's"
    if data[i] == 39:
        ending = _contraction(data, j)
        if ending > 0:
            return j + ending
    if kinds[j] == LETTER and kind != BREAK:
        return _run(kinds, j, LETTER)
    if kind == OTHER or (data[i] == 32 and kinds[j] == OTHER):
        return _run(kinds, _run(kinds, j, OTHER), BREAK)
    return _space_end(data, kinds, i)


@njit(cache=True, nogil=True)
def _space_end(data, kinds, i):
    """White space at byte i: up to its last line break, else all but the last character, which the next pre-token may
    want."""
    j = last = broken = i
    while kinds[j] == SPACE or kinds[j] == BREAK:
        last, j = j, _next(data, j)
        if kinds[last] == BREAK:
            broken = j
    if broken > i:
        return broken
    return last if kinds[j] != END and last > i else j


@njit(cache=True, nogil=True)
def _count(data, kinds, table, rows, pool, used):
    """Add the pre-tokens of a batch to the rows, of which `used` are filled; returns how many then are."""
    mask = table.size - 1
    i = np.int64(0)  # a bare 0 is a type of its own to numba, and what it is passed to would be compiled twice
    while i < data.size:
        if kinds[i] == END:
            i += 1
            continue
        stop = _pretoken_end(data, kinds, i)
        # the length first, or runs of zero bytes would be alike
        code = np.uint64(stop - i)
        for k in range(i, stop):
            code = (code ^ np.uint64(data[k])) * np.uint64(0x9E3779B97F4A7C15)
            code ^= code >> np.uint64(32)
        mixed = np.int64(code)
        slot = mixed & mask
        while table[slot] >= 0 and not _same(rows, table[slot], mixed, pool, data, i, stop):
            slot = (slot + 1) & mask
        row = np.int64(table[slot])
        if row < 0:
            # not met before: its bytes go to the pool, where the next one's begin at their end
            row = table[slot] = used
            start = rows[row, 1]
            rows[row, 0], rows[row, 2], rows[row + 1, 1] = mixed, 0, start + stop - i
            for k in range(i, stop):
                pool[start + k - i] = data[k]
            used += 1
        rows[row, 2] += 1
        i = stop
    return used


@njit(cache=True, nogil=True)
def _same(rows, row, mixed, pool, data, i, stop):
    """Is this row the pre-token ``data[i:stop]``?"""
    start, size = rows[row, 1], stop - i
    if rows[row, 0] != mixed or rows[row + 1, 1] - start != size:
        return False
    k = 0
    while k < size and pool[start + k] == data[i + k]:
        k += 1
    return k == size


@njit(cache=True, nogil=True)
def _index(rows, table):
    """Enter the rows into a new hash table."""
    for row in range(rows.shape[0]):
        slot = rows[row, 0] & (table.size - 1)
        while table[slot] >= 0:
            slot = (slot + 1) & (table.size - 1)
        table[slot] = row
