"""One pass over a batch: what each document is made of, by character, word and line. Everything the quality rules ask."""

from __future__ import annotations

from enum import IntEnum, auto

import numpy as np
from numba import njit

from pipeline.kernels import alphabet
from pipeline.kernels.alphabet import CLASSES, CONTROL, CYRILLIC, DIGIT, HAN, HANGUL, KANA, LATIN, LETTER, NEWLINE, SPACE, TERMINAL, UNSPACED


class Stat(IntEnum):
    """Columns of :func:`scan`'s result after the first 13, which count characters by class."""

    WIDTH = alphabet.CLASSES
    """characters, those of unspaced scripts and Hangul twice"""
    WORDS = auto()
    """words of spaced scripts"""
    WORD_CHARACTERS = auto()
    LINES = auto()
    """lines that are not blank"""
    ENDED_LINES = auto()
    """lines whose last character ends a sentence"""
    SHORT_LINES = auto()
    """lines under 30 width"""
    BULLET_LINES = auto()
    ELLIPSIS_LINES = auto()
    DUPLICATE_LINES = auto()
    """lines with 3 letters or more, seen before in the document (white space apart)"""
    DUPLICATE_LINE_CHARACTERS = auto()
    HASHES = auto()
    """'#' and ellipses outside line starts"""
    AT_SIGNS = auto()
    DIGIT_RUN = auto()
    """most digits in a run, separators ' ', '-', '(', ')' allowed inside"""
    DOTTED = auto()
    """digit-dot-digit triples (an IPv4 address has three)"""
    HEX_GROUPS = auto()
    """colons after a hexadecimal digit and before another or a colon (an IPv6 address has two and more)"""
    URL_CHARACTERS = auto()
    """characters after '://' up to a space, a bracket, a quote or a character beyond ASCII"""
    MOJIBAKE = auto()
    """lead bytes of UTF-8 followed by continuation bytes, all read as Latin-1 or Windows-1252; and tell-tale GBK misreadings"""
    UNTIDY = auto()
    """trailing spaces, tabs aside, carriage returns, odd spaces, third line breaks in a row"""
    REPLACED = auto()
    """replacement characters"""
    ENDS_SENTENCE = auto()
    """1 when the document's last visible character ends a sentence"""


COLUMNS = len(Stat) + alphabet.CLASSES
_WIDTH, _WORDS, _WORD_CHARACTERS, _LINES, _ENDED, _SHORT, _BULLETS, _ELLIPSES, _DUP, _DUP_CHARS, _HASHES, _AT, _RUN, _DOTTED, _HEX, _URL, _MOJIBAKE, _UNTIDY, _REPLACED, _ENDS = (
    int(s) for s in Stat
)


def scan(codes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Statistics of each text of a batch: int64 [n, COLUMNS], columns by class number and :class:`Stat`."""
    return _scan(codes, offsets, alphabet.tables()[0], _BYTE_LIKE)


def _byte_like() -> np.ndarray:
    """uint8 [0x10000]: 1 where a character is what a UTF-8 continuation byte looks like in Latin-1 or Windows-1252."""
    table = np.zeros(0x10000, np.uint8)
    table[0x80:0xC0] = 1
    for byte in range(0x80, 0xA0):
        char = bytes([byte]).decode("cp1252", "ignore")
        if char:
            table[ord(char)] = 1
    for char in "锟銆锛鐨鍦鎴浣":  # GBK readings of very common UTF-8 sequences; in real Chinese text all are rare
        table[ord(char)] = 2
    return table


_BYTE_LIKE = _byte_like()


@njit(cache=True, nogil=True)
def _is_hex(code):
    return (code >= 48 and code <= 57) or (code >= 65 and code <= 70) or (code >= 97 and code <= 102)


@njit(cache=True, nogil=True)
def _scan(codes, offsets, classes, byte_like):
    n = offsets.size - 1
    out = np.zeros((n, COLUMNS), np.int64)
    size = 64
    for i in range(n):
        lines = 0
        for j in range(offsets[i], offsets[i + 1]):
            lines += codes[j] == 10
        while size < 2 * (lines + 1):
            size *= 2
    seen = np.zeros(size, np.uint64)
    stamp = np.zeros(size, np.int64)
    counts = np.zeros((4, CLASSES), np.int64)  # four of each, so that runs of one class do not wait for each other's sums
    for i in range(n):
        row = out[i]
        counts[:] = 0
        previous = ended = NEWLINE
        in_url = 0
        line_width = line_chars = line_letters = run = gap = breaks = 0
        line_hash = np.uint64(0)
        last = first = np.uint32(0)
        word = 0
        end = offsets[i + 1]
        for j in range(offsets[i], end + 1):
            code = codes[j] if j < end else np.uint32(10)
            kind = classes[code]
            if j < end:
                counts[j & 3, kind] += 1
            spaced_letter = (kind >= 3 and kind <= LETTER) and not (kind == HAN or kind == KANA or kind == UNSPACED)
            if spaced_letter:
                if word == 0:
                    row[_WORDS] += 1
                word = 1
            elif code != 39 and code != 0x2019:  # an apostrophe does not end a word
                word = 0
            if kind == DIGIT and code < 128:
                run += 1
                gap = 0
                if run > row[_RUN]:
                    row[_RUN] = run
            elif gap == 0 and (code == 32 or code == 45 or code == 40 or code == 41):
                gap = 1
            else:
                run = 0
            if code >= 0x80:
                if code < 0x10000 and byte_like[code] == 2:
                    row[_MOJIBAKE] += 1
                elif code >= 0xC2 and code <= 0xF4 and j + 1 < end and codes[j + 1] < 0x10000 and byte_like[codes[j + 1]] == 1:
                    if code < 0xE0 or (j + 2 < end and codes[j + 2] < 0x10000 and byte_like[codes[j + 2]] == 1):
                        row[_MOJIBAKE] += 1
                if code == 0xFFFD:
                    row[_REPLACED] += 1
                if kind == SPACE and code != 0x3000:
                    row[_UNTIDY] += 1
            elif code == 64:
                row[_AT] += 1
            elif code == 46 and j > offsets[i] and j + 1 < end and classes[codes[j - 1]] == DIGIT and classes[codes[j + 1]] == DIGIT:
                row[_DOTTED] += 1
            elif code == 13:
                row[_UNTIDY] += 1
            elif code == 58 and j > offsets[i] and j + 1 < end and _is_hex(codes[j - 1]) and (codes[j + 1] == 58 or _is_hex(codes[j + 1])):
                row[_HEX] += 1
            if in_url and (code <= 32 or code >= 127 or code == 41 or code == 93 or code == 34 or code == 39 or code == 62):
                in_url = 0
            row[_URL] += in_url
            if code == 47 and j >= offsets[i] + 2 and codes[j - 1] == 47 and codes[j - 2] == 58:
                in_url = 1
            if kind != NEWLINE:
                breaks = 0
                wide = 2 if (kind == HAN or kind == KANA or kind == HANGUL or kind == UNSPACED) else 1
                if kind != SPACE and kind != CONTROL:
                    if line_chars == 0:
                        first = code
                    elif code == 35 or code == 0x2026:
                        row[_HASHES] += 1
                    line_hash = (line_hash ^ np.uint64(code)) * np.uint64(0x9E3779B97F4A7C15)
                    line_hash ^= line_hash >> np.uint64(29)
                    line_chars += 1
                    line_width += wide
                    if kind >= DIGIT and kind <= LETTER:
                        line_letters += 1
                    last = code
                    ended = kind
            else:
                if previous == SPACE:
                    row[_UNTIDY] += 1 if j < end else 0
                breaks += 1
                if breaks > 2 and j < end:
                    row[_UNTIDY] += 1
                if line_chars > 0:
                    row[_LINES] += 1
                    row[_SHORT] += 1 if line_width < 30 else 0
                    row[_ENDED] += 1 if classes[last] == TERMINAL else 0
                    row[_BULLETS] += 1 if first == 0x2022 or ((first == 45 or first == 42) and line_chars > 1) else 0
                    row[_ELLIPSES] += 1 if last == 0x2026 else 0
                    if line_letters >= 3:
                        slot = np.int64(line_hash >> np.uint64(20)) & (size - 1)
                        while stamp[slot] == i + 1 and seen[slot] != line_hash:
                            slot = (slot + 1) & (size - 1)
                        if stamp[slot] == i + 1:
                            row[_DUP] += 1
                            row[_DUP_CHARS] += line_chars
                        else:
                            stamp[slot] = i + 1
                            seen[slot] = line_hash
                line_width = line_chars = line_letters = 0
                line_hash = np.uint64(0)
            previous = kind
        row[:CLASSES] = counts.sum(0)
        row[_WORD_CHARACTERS] = row[DIGIT] + row[LATIN] + row[HANGUL] + row[CYRILLIC] + row[LETTER]
        row[_WIDTH] = end - offsets[i] - row[NEWLINE] + row[HAN] + row[KANA] + row[HANGUL] + row[UNSPACED]
        row[_ENDS] = ended == TERMINAL
    return out
