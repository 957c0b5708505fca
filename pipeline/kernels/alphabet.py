"""Batches of text as code points, and what each code point is: class and lower case, from the interpreter's Unicode tables.

Classes are chosen for what the rules ask: which script, does it count as a letter, does it end a sentence.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numba import njit

if TYPE_CHECKING:
    import pyarrow as pa

OTHER, SPACE, NEWLINE, DIGIT, LATIN, HAN, KANA, HANGUL, CYRILLIC, UNSPACED, LETTER, TERMINAL, CONTROL = range(13)
CLASSES = 13
TERMINALS = ".!?。！？…；;:：.\"”’」』》)）"
_SCRIPTS = (
    (LATIN, ((0x41, 0x24F), (0x1E00, 0x1EFF), (0xFF21, 0xFF5A))),
    (HAN, ((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3400, 0x9FFF), (0xF900, 0xFAFF))),
    (KANA, ((0x3041, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F))),
    (HANGUL, ((0x1100, 0x11FF), (0x3131, 0x318E), (0xAC00, 0xD7AF))),
    (CYRILLIC, ((0x400, 0x52F),)),
    (UNSPACED, ((0xE00, 0xFFF), (0x1000, 0x109F), (0x1780, 0x17FF))),
)


@lru_cache(1)
def tables() -> tuple[np.ndarray, np.ndarray]:
    """(classes, lower): uint8 class of every code point, and uint32 lower case (simple, one to one) below 0x10000."""
    classes = np.zeros(1 << 21, np.uint8)
    lower = np.arange(0x10000, dtype=np.uint32)
    for code in range(0x10000):
        char = chr(code)
        category = unicodedata.category(char)
        classes[code] = {"L": LETTER, "M": LETTER, "N": DIGIT, "Z": SPACE, "C": CONTROL}.get(category[0], OTHER)
        low = char.lower()
        if len(low) == 1:
            lower[code] = ord(low)
    for script, ranges in _SCRIPTS:
        for first, last in ranges:
            part = classes[first : last + 1]
            part[part == LETTER] = script
    classes[0x3005:0x3008] = HAN  # iteration mark and ideographic zero are letters of Chinese text, not symbols
    classes[0x20000:0x32000] = HAN
    classes[0x10000:0x10FFF] = LETTER
    classes[0xE000:0xF900] = OTHER  # private use
    classes[[0x09, 0x20]] = SPACE
    classes[0x0A] = NEWLINE
    for char in TERMINALS:
        classes[ord(char)] = TERMINAL
    return classes, lower


def encode(texts: Sequence[str] | pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """(codes uint32 [characters], offsets int64 [n + 1]): text i is ``codes[offsets[i]:offsets[i + 1]]``.

    An Arrow column without nulls is decoded from its UTF-8 buffer, without a Python string. Lone surrogates in Python strings pass.
    """
    if not isinstance(texts, list):
        codes, offsets = _decode(*_utf8(texts))
        codes.flags.writeable = False  # as those below: kernels are compiled for one type of array
        return codes, offsets
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)), out=offsets[1:])
    return codes, offsets


def _utf8(column: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of an Arrow string column, without a copy when it is in one piece: (uint8 [bytes], offsets int32 [n + 1])."""
    if hasattr(column, "chunks"):
        column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    _, offsets, data = column.buffers()
    if not len(column) or data is None:
        return np.frombuffer(b"", np.uint8), np.frombuffer(bytes(4 * len(column) + 4), np.int32)
    return np.frombuffer(data, np.uint8), np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]


@njit(cache=True, nogil=True)
def _decode(data, places):
    """Code points of UTF-8, which Arrow has checked; broken bytes would give wrong code points, but none of 2**21 and more."""
    codes = np.empty(places[-1] - places[0], np.uint32)
    offsets = np.zeros(places.size, np.int64)
    count = 0
    for i in range(places.size - 1):
        for byte in data[places[i] : places[i + 1]]:
            if byte < 0x80:
                codes[count] = byte
                count += 1
            elif byte < 0xC0:
                codes[count - 1] = (codes[count - 1] << np.uint32(6) | np.uint32(byte & 0x3F)) & np.uint32(0x1FFFFF)
            else:
                codes[count] = byte & (0x1F if byte < 0xE0 else 0x0F if byte < 0xF0 else 0x07)
                count += 1
        offsets[i + 1] = count
    return codes[:count], offsets


@njit(cache=True, nogil=True)
def squeeze(codes, offsets):
    """The same texts without white space (ASCII's and U+3000), in the form of :func:`encode`."""
    out = np.empty(codes.size, np.uint32)
    ends = np.zeros(offsets.size, np.int64)
    count = 0
    for i in range(offsets.size - 1):
        for code in codes[offsets[i] : offsets[i + 1]]:
            out[count] = code
            count += (code != 32) & ((code < 9) | (code > 13)) & (code != 0x3000)
        ends[i + 1] = count
    return out[:count], ends
