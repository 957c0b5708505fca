"""One pass over a batch: what each document is made of, by character, word, line, term and n-gram. Everything the
quality rules ask."""

from __future__ import annotations

from enum import IntEnum, auto

import numpy as np
from numba import njit

from pipeline.kernels import alphabet
from pipeline.kernels.alphabet import (
    BYTE,
    CLASSES,
    CONTROL,
    CYRILLIC,
    DIGIT,
    HAN,
    HANGUL,
    KANA,
    KIND,
    LATIN,
    LETTER,
    MISREAD,
    NEWLINE,
    OPENS,
    OTHER,
    SPACE,
    TERMINAL,
    UNCOMPOSED,
    UNSPACED,
    is_ascii_letter,
    peek,
    stands_alone,
)
from pipeline.kernels.repeats import empty_set, seen_before, shares
from pipeline.kernels.terms import Terms, is_possible, pair_slot, weigh, word_slot
from pipeline.kernels.tokens import BASE, at_least, extend


class Stat(IntEnum):
    """Columns of :func:`measure`'s statistics after the first 13, which count characters by class."""

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
    """those between two characters of an e-mail address"""
    DIGIT_RUN = auto()
    """most digits in a run, separators ' ', '-', '(', ')' allowed inside"""
    DOTTED = auto()
    """most ASCII digit-dot-digit triples in a row (an IPv4 address has three)"""
    HEX_GROUPS = auto()
    """colons after four hexadecimal digits of which the first is 2 or 3, and before a second group and its colon: so
    public IPv6 addresses begin"""
    URL_CHARACTERS = auto()
    """characters after '://' up to a space, a bracket, a quote or a character beyond ASCII"""
    MOJIBAKE = auto()
    """lead bytes of UTF-8 followed by continuation bytes, all read as Latin-1 or Windows-1252; and tell-tale GBK
    misreadings"""
    UNTIDY = auto()
    """trailing spaces, tabs aside, carriage returns, odd spaces, third line breaks in a row"""
    REPLACED = auto()
    """replacement characters"""
    ENDS_SENTENCE = auto()
    """1 when the document's last visible character ends a sentence"""
    UNCOMPOSED = auto()
    """characters that normal form C may change"""
    OPENS_WITH_TAG = auto()
    """1 when the first visible character is '<'"""
    FUNCTION_WORDS = auto()
    """function words, up to 2; asked only of text that is Latin for the most part"""


COLUMNS = len(Stat) + alphabet.CLASSES
_WIDTH, _WORDS, _WORD_CHARACTERS, _LINES, _ENDED, _SHORT, _BULLETS, _ELLIPSES, _DUP, _DUP_CHARS, _HASHES = (
    int(s) for s in list(Stat)[:11]
)
_AT, _RUN, _DOTTED, _HEX, _URL, _MOJIBAKE, _UNTIDY, _REPLACED, _ENDS, _UNCOMPOSED, _TAG, _FUNCTION = (
    int(s) for s in list(Stat)[11:]
)
_LETTERS, _WIDE, _MARKS, _BULLET, _LAST = range(5)
"""Of the line so far: narrow letters, characters of unspaced scripts, other visible characters, 1 after a bullet at its
start, and its last class."""
_ELLIPSIS = CLASSES
"""Stands for the class of a last character that is an ellipsis."""


def measure(
    data: np.ndarray, places: np.ndarray, terms: Terms, words: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What every text of a batch is made of: (stats int64 [n, COLUMNS], points int64 [n, categories], repeats float32
    [n, 2]).

    data, places: from :func:`pipeline.kernels.alphabet.utf8`. Columns of stats by class number and :class:`Stat`;
    points are those of `terms`, repeats those of :mod:`pipeline.kernels.repeats`; `words` is the hash set
    (:func:`pipeline.kernels.tokens.hash_set`) of function words.
    """
    stats = np.zeros((places.size - 1, COLUMNS), np.int64)
    points = np.zeros((places.size - 1, terms.categories), np.int64)
    repeated = np.zeros((places.size - 1, 2), np.float32)
    _measure(
        data, places, (terms.entries, alphabet.tables()[1]), terms.possible, terms.table, words, stats, points, repeated
    )
    stats[:, _WORD_CHARACTERS] = stats[:, [DIGIT, LATIN, HANGUL, CYRILLIC, LETTER]].sum(1)
    characters = stats[:, :CLASSES].sum(1)
    stats[:, _WIDTH] = characters - stats[:, NEWLINE] + stats[:, [HAN, KANA, HANGUL, UNSPACED]].sum(1)
    return stats, points, repeated


@njit(cache=True, nogil=True)
def _measure(data, places, alphabets, possible, table, words, stats, points, repeated):
    """Document by document, so that all that is asked of one finds it in the cache."""
    longest = np.int64(0)
    for i in range(places.size - 1):
        longest = max(longest, places[i + 1] - places[i])
    found = (
        np.empty(longest // 2 + 1, np.uint64),
        np.empty(longest // 2 + 1, np.int32),
    )  # tokens: a letter and a space at least
    lines = (
        np.empty(longest // 4 + 2, np.uint64),
        np.empty(longest // 4 + 2, np.int64),
    )  # lines that can be repeated: three letters and a break
    counts, seen, line = np.zeros((3, 4096), np.int32), np.zeros(64, np.uint64), np.zeros(5, np.int64)
    for i in range(places.size - 1):
        row = stats[i]
        tokens, n_lines = _characters(
            data, places[i], places[i + 1], alphabets, possible, table, row, points[i], found, lines, line
        )
        seen = _duplicates(lines[0][:n_lines], lines[1], seen, row)
        unspaced = row[HAN] + row[KANA] + row[UNSPACED]
        step = 2 if unspaced > row[_WORDS] else 1
        repeated[i, 0], repeated[i, 1], seen = shares(found[0][:tokens], found[1], step, counts, seen)
        if 9 * unspaced < row[LATIN]:  # of others nobody asks
            row[_FUNCTION] = at_least(found[0][:tokens], words, 2)


@njit(cache=True, nogil=True)
def _mix(line_hash, code):
    """A line's hash with one more character."""
    return (line_hash + np.uint64(code)) * np.uint64(BASE)


@njit(cache=True, nogil=True)
def _letters(data, p, end, current, line_hash):
    """(end of the run of ASCII letters from p, the token's and the line's hash with them)."""
    while p < end and is_ascii_letter(data[p]):
        current = extend(current, data[p] | 32)
        line_hash = _mix(line_hash, data[p])
        p += 1
    return p, current, line_hash


@njit(cache=True, nogil=True)
def _ends_url(code):
    return code <= 32 or code >= 127 or code == 41 or code == 93 or code == 34 or code == 39 or code == 62


@njit(cache=True, nogil=True)
def _characters(data, start, end, alphabets, possible, table, row, points, found, lines, line):
    """Fill a document's columns and points; its tokens go to `found` (hashes, lengths), what its lines are to `lines`
    (hashes, characters).

    Returns how many of both. Runs of ASCII letters, spaces and Chinese characters are most of all text and come first.
    """
    entries, lower = alphabets
    tokens, lengths = found
    current, line_hash = np.uint64(BASE), np.uint64(0)
    token_at = length = count = n_lines = run = 0
    word = gap = in_url = False  # in a word as the rules count them, after a separator of digits, in a URL
    before = OTHER
    p = start
    while p <= end:  # peek sees a control character at the end, so that the last word ends there
        if p < end and is_ascii_letter(data[p]):
            first = p
            p, current, line_hash = _letters(data, p, end, current, line_hash)
            token_at = first if length == 0 else token_at
            length += p - first
            row[LATIN] += p - first
            line[_LETTERS] += p - first
            line[_LAST] = LATIN
            row[_WORDS] += not word
            row[_URL] += (p - first) * in_url
            word, run, before = True, 0, LATIN
            continue
        code, size = peek(data, p, end)
        entry = entries[code]
        kind = np.int64(entry & KIND)
        row[kind] += 1
        alone = stands_alone(kind)
        joins = kind >= DIGIT and kind <= LETTER and not alone
        if length > 0 and (in_url or not joins):
            if is_possible(possible, word_slot(current)):
                weigh(data, token_at, end, word_slot(current), entries, table, points)
            tokens[count], lengths[count] = current, length
            count += not in_url
            length, current = 0, np.uint64(BASE)
        if code == 32:
            run *= not gap
            word, gap, in_url, before = False, True, False, SPACE
            p += 1
            continue
        if entry & OPENS and is_possible(possible, pair_slot(data, p, end, entries)):
            weigh(data, p, end, pair_slot(data, p, end, entries), entries, table, points)
        in_url = in_url and not _ends_url(code)
        if alone:
            tokens[count], lengths[count] = extend(np.uint64(BASE), code), 1
            count += 1
            line_hash = _mix(line_hash, code)
            line[_WIDE] += 1
            line[_LAST] = kind
            row[_MOJIBAKE] += entry & MISREAD != 0
            row[_UNCOMPOSED] += entry & UNCOMPOSED != 0
            word, run, before = False, 0, kind
            p += size
            continue
        if joins:
            token_at = p if length == 0 else token_at
            current = extend(current, lower[code] if code < 0x10000 else code)
            length += 1
            row[_WORDS] += not word
        following = data[p + 1] if p + 1 < end else np.uint8(0)
        if kind == NEWLINE:
            row[_UNTIDY] += before == SPACE or (following == 10 and p > start and data[p - 1] == 10)
            lines[0][n_lines], lines[1][n_lines] = line_hash, line[_LETTERS] + line[_WIDE] + line[_MARKS]
            n_lines += _end_line(line, row)
            line_hash = np.uint64(0)
        elif (kind != SPACE) & (kind != CONTROL):
            if line[_LETTERS] + line[_WIDE] + line[_MARKS] > 0:
                row[_HASHES] += (code == 35) | (code == 0x2026)
            elif (code == 45) | (code == 42) | (code == 60) | (code == 0x2022):
                _begin_line(data, p + size, end, entries, code, line, row)
            line_hash = _mix(line_hash, code)
            line[_WIDE if kind == HANGUL else _LETTERS if joins else _MARKS] += 1
            line[_LAST] = _ELLIPSIS if code == 0x2026 else kind
        word = joins or (word and (code == 39 or code == 0x2019))  # an apostrophe does not end a word
        if code >= 48 and code <= 57:
            run, gap = run + 1, False
            row[_RUN] = max(row[_RUN], run)
        else:
            run *= not gap and (code == 45 or code == 40 or code == 41)
            gap = gap or code == 45 or code == 40 or code == 41
        row[_URL] += in_url
        in_url = in_url or (code == 47 and p >= start + 2 and data[p - 1] == 47 and data[p - 2] == 58)
        if _tells(code, entry, following):
            _special(data, start, p, size, end, entries, code, row)
        before, p = kind, p + size
    row[CONTROL] -= 1
    lines[0][n_lines], lines[1][n_lines] = line_hash, line[_LETTERS] + line[_WIDE] + line[_MARKS]
    return count, n_lines + _end_line(line, row)


@njit(cache=True, nogil=True)
def _begin_line(data, following, end, entries, code, line, row):
    """A line's first visible character may be a bullet, and a text's may open a tag; the next character is at
    `following`."""
    marked = (code == 45 or code == 42) and entries[peek(data, following, end)[0]] & KIND == SPACE
    line[_BULLET] = code == 0x2022 or marked
    row[_TAG] |= row[_LINES] == 0 and code == 60


@njit(cache=True, nogil=True)
def _end_line(line, row):
    """Book a line, unless it is blank, and begin another. Returns 1 when it holds three letters: then repetition
    counts."""
    letters = line[_LETTERS] + line[_WIDE]
    visible = letters + line[_MARKS]
    if visible > 0:
        row[_LINES] += 1
        row[_SHORT] += visible + line[_WIDE] < 30
        row[_ENDS] = line[_LAST] == TERMINAL or line[_LAST] == _ELLIPSIS
        row[_ENDED] += row[_ENDS]
        row[_BULLETS] += line[_BULLET]
        row[_ELLIPSES] += line[_LAST] == _ELLIPSIS
    for k in range(line.size):
        line[k] = 0
    return np.int64(letters >= 3)


@njit(cache=True, nogil=True)
def _duplicates(hashes, sizes, seen, row):
    """Count the lines that came before; returns `seen`, maybe grown."""
    if hashes.size > 1:
        seen, mask = empty_set(seen, hashes.size)
        for k in range(hashes.size):
            if seen_before(seen, mask, hashes[k]):
                row[_DUP] += 1
                row[_DUP_CHARS] += sizes[k]
    return seen


@njit(cache=True, nogil=True)
def _tells(code, entry, following):
    """May this character, before the byte `following`, say that a repair or a mask has something to do? Few do, and
    :func:`_special` looks closer."""
    if code < 128:
        return code == 64 or code == 13 or (code == 46 and _is_digit(following)) or (code == 58 and _is_hex(following))
    return code < 0xF5 or code == 0xFFFD or entry & UNCOMPOSED != 0 or entry & KIND == SPACE


@njit(cache=True, nogil=True)
def _special(data, start, p, size, end, entries, code, row):
    """Book what a character at p says about the repairs and masks to ask."""
    if code == 13 or entries[code] & KIND == SPACE:
        row[_UNTIDY] += code != 0x3000
    elif code == 46:
        row[_DOTTED] = max(row[_DOTTED], _dotted(data, start, p, end))
    elif code == 58:
        row[_HEX] += _opens_ipv6(data, start, p, end)
    elif code == 64:
        row[_AT] += p > start and p + 1 < end and _in_address(data[p - 1]) and _in_address(data[p + 1])
    elif code == 0xFFFD:
        row[_REPLACED] += 1
    elif code >= 0xC2 and code <= 0xF4:
        row[_MOJIBAKE] += _misread(data, p + size, end, entries, code)
    else:
        row[_UNCOMPOSED] += entries[code] & UNCOMPOSED != 0


@njit(cache=True, nogil=True)
def _is_digit(byte):
    return byte >= 48 and byte <= 57


@njit(cache=True, nogil=True)
def _is_hex(byte):
    return _is_digit(byte) or (byte >= 65 and byte <= 70) or (byte >= 97 and byte <= 102)


@njit(cache=True, nogil=True)
def _opens_ipv6(data, start, p, end):
    """Is the colon at p the first one of a public IPv6 address?"""
    if (
        p < start + 4
        or (data[p - 4] | 1) != 51
        or not (_is_hex(data[p - 3]) and _is_hex(data[p - 2]) and _is_hex(data[p - 1]))
    ):
        return False
    after = p + 1
    while after < end and after < p + 5 and _is_hex(data[after]):
        after += 1
    return after > p + 1 and after < end and data[after] == 58


@njit(cache=True, nogil=True)
def _in_address(byte):
    """ASCII letters, digits and the signs of an e-mail address's name."""
    return (
        is_ascii_letter(byte) or _is_digit(byte) or byte == 46 or byte == 95 or byte == 37 or byte == 43 or byte == 45
    )


@njit(cache=True, nogil=True)
def _dotted(data, start, p, end):
    """How many numbers of one to three digits and a dot stand in a row and end with the dot at p, which a digit must
    follow."""
    if p + 1 >= end or not _is_digit(data[p + 1]):
        return 0
    dots = 0
    while p > start and data[p] == 46 and _is_digit(data[p - 1]):
        dots += 1
        p -= 2
        digits = 1
        while p >= start and digits < 3 and _is_digit(data[p]):
            p -= 1
            digits += 1
        if p < start:
            break
    return dots


@njit(cache=True, nogil=True)
def _misread(data, p, end, entries, code):
    """Does a UTF-8 sequence that was read as single bytes go on at p, after its lead byte?"""
    second, size = peek(data, p, end)
    if not entries[second] & BYTE:
        return False
    return code < 0xE0 or entries[peek(data, p + size, end)[0]] & BYTE != 0
