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
    """most digit-dot-digit triples in a row (an IPv4 address has three)"""
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
_WIDTH, _WORDS, _WORD_CHARACTERS, _LINES, _ENDED, _SHORT, _BULLETS, _ELLIPSES, _DUP, _DUP_CHARS, _HASHES = (int(s) for s in list(Stat)[:11])
_AT, _RUN, _DOTTED, _HEX, _URL, _MOJIBAKE, _UNTIDY, _REPLACED, _ENDS = (int(s) for s in list(Stat)[11:])


def scan(codes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Statistics of each text of a batch: int64 [n, COLUMNS], columns by class number and :class:`Stat`."""
    out = np.zeros((offsets.size - 1, COLUMNS), np.int64)
    classes = alphabet.tables()[0]
    _characters(codes, offsets, classes, _BYTE_LIKE, out)
    _lines(codes, offsets, classes, _SUMS, out)
    out[:, _WORD_CHARACTERS] = out[:, [DIGIT, LATIN, HANGUL, CYRILLIC, LETTER]].sum(1)
    out[:, _WIDTH] = np.diff(offsets) - out[:, NEWLINE] + out[:, [HAN, KANA, HANGUL, UNSPACED]].sum(1)
    return out


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


def _sums() -> np.ndarray:
    """uint64 [CLASSES]: what a character adds to a line's sums: 1 character, from bit 21 letters, from bit 42 wide ones."""
    return np.array([1 | (DIGIT <= k <= LETTER) << 21 | (k in (HAN, KANA, HANGUL, UNSPACED)) << 42 for k in range(CLASSES)], np.uint64)


_BYTE_LIKE, _SUMS = _byte_like(), _sums()


@njit(cache=True, nogil=True)
def _is_hex(code):
    return (code >= 48 and code <= 57) or (code >= 65 and code <= 70) or (code >= 97 and code <= 102)


@njit(cache=True, nogil=True)
def _misread(codes, j, end, byte_like):
    """Does a UTF-8 sequence that was read as single bytes start at j?"""
    code = codes[j]
    if code < 0xC2 or code > 0xF4 or j + 1 >= end or codes[j + 1] >= 0x10000 or byte_like[codes[j + 1]] != 1:
        return False
    return code < 0xE0 or (j + 2 < end and codes[j + 2] < 0x10000 and byte_like[codes[j + 2]] == 1)


@njit(cache=True, nogil=True)
def _is_untidy(code, before, after, classes):
    """Is this white space that :func:`pipeline.repairs.tidy` would change?"""
    if code == 10:
        return classes[before] == SPACE or (before == 10 and after == 10)
    return code == 13 or (code >= 0x80 and code != 0x3000)


@njit(cache=True, nogil=True)
def _characters(codes, offsets, classes, byte_like, out):
    """Fill the columns that ask for characters and words."""
    counts = np.zeros((4, CLASSES), np.int64)  # four of each, so that runs of one class do not wait for each other's sums
    for i in range(offsets.size - 1):
        row = out[i]
        counts[:] = 0
        start, end = offsets[i], offsets[i + 1]
        in_url = word = run = gap = chain = urls = words = misread = 0
        dot = start - 9
        for j in range(start, end):
            code = codes[j]
            kind = classes[code]
            counts[j & 3, kind] += 1
            if kind == HAN:  # the two most frequent classes first
                word = run = in_url = 0
                misread += code < 0x10000 and byte_like[code] == 2
                continue
            if kind == LATIN and code < 128:
                words += 1 - word
                word = 1
                run = 0
                urls += in_url
                continue
            if kind >= DIGIT and kind <= LETTER and kind != KANA and kind != UNSPACED:
                words += 1 - word
                word = 1
            elif code != 39 and code != 0x2019:  # an apostrophe does not end a word
                word = 0
            if kind == DIGIT and code < 128:
                run += 1
                gap = 0
                row[_RUN] = max(row[_RUN], run)
            elif gap == 0 and (code == 32 or code == 45 or code == 40 or code == 41):
                gap = 1
            else:
                run = 0
            if code <= 32 or code >= 127 or code == 41 or code == 93 or code == 34 or code == 39 or code == 62:
                in_url = 0
            urls += in_url
            before = codes[j - 1] if j > start else np.uint32(0)
            after = codes[j + 1] if j + 1 < end else np.uint32(0)
            if (kind >= SPACE and kind <= NEWLINE) or code == 13:
                row[_UNTIDY] += _is_untidy(code, before, after, classes)
            elif code == 47 and before == 47 and j > start + 1 and codes[j - 2] == 58:
                in_url = 1
            elif code == 46 and classes[before] == DIGIT and classes[after] == DIGIT:
                chain = chain + 1 if j - dot <= 4 else 1
                dot = j
                row[_DOTTED] = max(row[_DOTTED], chain)
            elif code == 58 and _is_hex(before) and (after == 58 or _is_hex(after)):
                row[_HEX] += 1
            elif code == 64:
                row[_AT] += 1
            elif code == 0xFFFD:
                row[_REPLACED] += 1
            elif code >= 0xC2 and code <= 0xF4:
                misread += _misread(codes, j, end, byte_like)
        row[:CLASSES] = counts.sum(0)
        row[_WORDS], row[_URL], row[_MOJIBAKE] = words, urls, misread


@njit(cache=True, nogil=True)
def _lines(codes, offsets, classes, sums, out):
    """Fill the columns that ask for lines. A line is hashed without its white space and looked up among the document's own."""
    size = 64
    for i in range(offsets.size - 1):
        while size < 2 * (out[i, NEWLINE] + 2):
            size *= 2
    seen = np.zeros(size, np.uint64)
    stamp = np.full(size, -1, np.int64)
    for i in range(offsets.size - 1):
        row = out[i]
        j, end = offsets[i], offsets[i + 1]
        while j < end:
            line_hash = total = np.uint64(0)
            hashes = 0
            first = second = last = np.uint32(0)
            while j < end and codes[j] != 10:
                code = codes[j]
                kind = classes[code]
                j += 1
                if kind != SPACE and kind != CONTROL:
                    line_hash = (line_hash + np.uint64(code)) * np.uint64(0x9E3779B97F4A7C15)
                    if total == 0:
                        first, second = code, codes[j] if j < end else np.uint32(0)
                    last = code
                    total += sums[kind]
                    hashes += code == 35 or code == 0x2026
            j += 1
            if total == 0:
                continue
            characters = np.int64(total & np.uint64(0x1FFFFF))
            row[_HASHES] += hashes - (first == 35 or first == 0x2026)
            row[_LINES] += 1
            row[_SHORT] += characters + np.int64(total >> np.uint64(42)) < 30
            row[_ENDED] += classes[last] == TERMINAL
            row[_ENDS] = classes[last] == TERMINAL
            row[_BULLETS] += first == 0x2022 or ((first == 45 or first == 42) and classes[second] == SPACE)
            row[_ELLIPSES] += last == 0x2026
            if (total >> np.uint64(21)) & np.uint64(0x1FFFFF) >= np.uint64(3):
                line_hash ^= line_hash >> np.uint64(29)
                slot = np.int64(line_hash >> np.uint64(20)) & (size - 1)
                while stamp[slot] == i and seen[slot] != line_hash:
                    slot = (slot + 1) & (size - 1)
                if stamp[slot] == i:
                    row[_DUP] += 1
                    row[_DUP_CHARS] += characters
                else:
                    stamp[slot] = i
                    seen[slot] = line_hash
