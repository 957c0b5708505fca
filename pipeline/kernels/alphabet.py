"""Batches of text as UTF-8, and what each character is: class, lower case and a few properties, from the interpreter's
Unicode tables.

Classes are chosen for what the rules ask: which script, does it count as a letter, does it end a sentence.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numba import njit

if TYPE_CHECKING:
    import pyarrow as pa

OTHER, SPACE, NEWLINE, DIGIT, LATIN, HAN, KANA, HANGUL, CYRILLIC, UNSPACED, LETTER, TERMINAL, CONTROL = range(13)
CLASSES = 13
KIND = 0x0F
"""The bits of a character's entry that hold its class. The others say:"""
MISREAD = 0x10
"""Chinese characters that UTF-8 read as GBK is full of and real text is not"""
BYTE = 0x20
"""what a continuation byte of UTF-8 becomes when it is read as Latin-1 or Windows-1252"""
UNCOMPOSED = 0x40
"""may change in Unicode normal form C"""
OPENS = 0x80
"""may begin a term (set by :class:`pipeline.kernels.terms.Terms`)"""
TERMINALS = '.!?。！？…；;:：."”’」』》)）'
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
    """(entries, lower): uint8 class and property bits of every code point, and uint32 lower case (simple, one to one)
    below 0x10000."""
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
    return classes | _properties(), lower


def _properties() -> np.ndarray:
    """uint8 [2**21]: MISREAD, BYTE and UNCOMPOSED of every code point."""
    bits = np.zeros(1 << 21, np.uint8)
    # continuation bytes as Latin-1 reads them, then as Windows-1252 does
    bits[0x80:0xC0] = BYTE
    for byte in range(0x80, 0xA0):
        char = bytes([byte]).decode("cp1252", "ignore")
        if char:
            bits[ord(char)] = BYTE
    for char in "锟銆锛鐨鍦鎴浣":
        bits[ord(char)] = MISREAD
    bits[0x1100:0x1200] |= UNCOMPOSED  # Hangul letters
    for code in (*range(0x300, 0x3400), *range(0xA000, 0xAC00), *range(0xF900, 0x20000), *range(0x2F800, 0x2FA20)):
        char = chr(code)
        if unicodedata.category(char)[0] == "M" or unicodedata.normalize("NFC", char) != char:
            bits[code] |= UNCOMPOSED
    return bits


def utf8(texts: list[str] | pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """(data uint8 [bytes], places int64 [n + 1]): text i is ``data[places[i]:places[i + 1]]``.

    An Arrow string column without nulls is taken as it is, without a copy when it is in one piece. Lone surrogates in
    Python strings pass.
    """
    if isinstance(texts, list):
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        places = np.zeros(len(texts) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, encoded), np.int64, len(texts)), out=places[1:])
        return np.frombuffer(b"".join(encoded), np.uint8), places
    column = texts
    if hasattr(texts, "chunks"):
        column = texts.chunk(0) if texts.num_chunks == 1 else texts.combine_chunks()
    _, offsets, data = column.buffers()
    if not len(column) or data is None:
        return np.frombuffer(b"", np.uint8), np.zeros(len(column) + 1, np.int64)
    places = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    data = np.frombuffer(data, np.uint8)
    data.flags.writeable = False  # as of Python strings: kernels are compiled for one type of array
    return data, places.astype(np.int64)


@njit(cache=True, nogil=True)
def decode(data, p, end):
    """(code point, bytes) of the character beyond ASCII at p. What is not UTF-8 comes out as something below 2**21, and
    reads nothing past the end."""
    lead = np.uint32(data[p])
    # three bytes first: Chinese
    if lead >= 0xE0 and lead < 0xF0 and p + 3 <= end:
        code = (
            (lead & np.uint32(0x0F)) << np.uint32(12)
            | np.uint32(data[p + 1] & 0x3F) << np.uint32(6)
            | np.uint32(data[p + 2] & 0x3F)
        )
        return np.uint32(code), 3
    if lead >= 0xC0 and lead < 0xE0 and p + 2 <= end:
        return np.uint32((lead & np.uint32(0x1F)) << np.uint32(6) | np.uint32(data[p + 1] & 0x3F)), 2
    if lead >= 0xF0 and p + 4 <= end:
        high = (lead & np.uint32(0x07)) << np.uint32(18) | np.uint32(data[p + 1] & 0x3F) << np.uint32(12)
        return np.uint32(high | np.uint32(data[p + 2] & 0x3F) << np.uint32(6) | np.uint32(data[p + 3] & 0x3F)), 4
    return np.uint32(0xFFFD), 1


@njit(cache=True, nogil=True)
def peek(data, p, end):
    """(code point, bytes) of the character at p; (0, 1) at the end."""
    if p >= end:
        return np.uint32(0), 1
    if data[p] < 0x80:
        return np.uint32(data[p]), 1
    return decode(data, p, end)


@njit(cache=True, nogil=True)
def is_ascii_letter(byte):
    """Of one byte."""
    return (np.uint64(byte) | np.uint64(32)) - np.uint64(97) < np.uint64(26)


@njit(cache=True, nogil=True)
def stands_alone(kind):
    """Is each character of this class a token of its own?"""
    return (kind == HAN) | (kind == KANA) | (kind == UNSPACED)


@njit(cache=True, nogil=True)
def squeeze(data, places):
    """The same texts without white space (ASCII's and U+3000), in the form of :func:`utf8`."""
    out = np.empty(places[-1] - places[0], np.uint8)
    ends = np.zeros(places.size, np.int64)
    one, count = np.uint64(1), np.uint64(0)  # a signed index would be asked whether it counts from the end
    for i in range(places.size - 1):
        p, end = np.uint64(places[i]), np.uint64(places[i + 1])
        while p < end:
            byte = data[p]
            if byte == 0xE3 and p + one + one < end and data[p + one] == 0x80 and data[p + one + one] == 0x80:
                p += np.uint64(3)
                continue
            out[count] = byte
            count += np.uint64((byte != 32) & ((byte < 9) | (byte > 13)))
            p += one
        ends[i + 1] = count
    return out[:count], ends
