"""One pass over a batch: what each document is made of, by character, word, line, term and n-gram. Everything the
quality rules ask."""

from __future__ import annotations

import numpy as np
from numba import njit

from pipeline.kernels import alphabet
from pipeline.kernels.alphabet import (
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
from pipeline.kernels.columns import COLUMNS, Stat
from pipeline.kernels.marks import book_mark, tells
from pipeline.kernels.repeats import BUCKETS, empty_set, seen_before, shares
from pipeline.kernels.terms import Terms, is_possible, pair_slot, weigh, word_slot
from pipeline.kernels.tokens import BASE, at_least, extend

# numba takes whole numbers for constants, but no members of an enumeration
_WIDTH, _WORDS, _WORD_CHARACTERS, _LINES, _ENDED, _SHORT, _BULLETS, _ELLIPSES, _DUP, _DUP_CHARS, _HASHES = (
    int(s) for s in list(Stat)[:11]
)
_RUN = int(Stat.DIGIT_RUN)
_URL = int(Stat.URL_CHARACTERS)
_MOJIBAKE = int(Stat.MOJIBAKE)
_UNTIDY = int(Stat.UNTIDY)
_ENDS = int(Stat.ENDS_SENTENCE)
_UNCOMPOSED = int(Stat.UNCOMPOSED)
_TAG = int(Stat.OPENS_WITH_TAG)
_FUNCTION = int(Stat.FUNCTION_WORDS)
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
    # tokens: a letter and a space at least
    found = np.empty(longest // 2 + 1, np.uint64), np.empty(longest // 2 + 1, np.int32)
    # lines that can be repeated: three letters and a break
    lines = np.empty(longest // 4 + 2, np.uint64), np.empty(longest // 4 + 2, np.int64)
    counts, seen, line = np.zeros((3, BUCKETS), np.int32), np.zeros(64, np.uint64), np.zeros(5, np.int64)
    for i in range(places.size - 1):
        row = stats[i]
        tokens, n_lines = _characters(
            data, places[i], places[i + 1], alphabets, possible, table, row, points[i], found, lines, line
        )
        seen = _duplicates(lines[0][:n_lines], lines[1], seen, row)
        # a Chinese word is about two characters
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
    token_at = np.int64(0)  # of its own type: numba compiles what is given a constant anew
    length = count = n_lines = run = 0
    word = gap = in_url = False  # in a word as the rules count them, after a separator of digits, in a URL
    before = OTHER
    p = start
    while p <= end:  # peek sees a control character at the end, so that the last word ends there
        # a run of ASCII letters
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
        # the token before this character ends
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
        # a character of an unspaced script is a token
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
        # a letter or digit goes on with a token
        if joins:
            token_at = p if length == 0 else token_at
            current = extend(current, lower[code] if code < 0x10000 else code)
            length += 1
            row[_WORDS] += not word
        # the line
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
        # the rest: digits, URLs, and what asks for repairs
        word = joins or (word and (code == 39 or code == 0x2019))  # an apostrophe does not end a word
        if code >= 48 and code <= 57:
            run, gap = run + 1, False
            row[_RUN] = max(row[_RUN], run)
        else:
            run *= not gap and (code == 45 or code == 40 or code == 41)
            gap = gap or code == 45 or code == 40 or code == 41
        row[_URL] += in_url
        in_url = in_url or (code == 47 and p >= start + 2 and data[p - 1] == 47 and data[p - 2] == 58)
        if tells(code, entry, following):
            book_mark(data, start, p, size, end, entries, code, row)
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
        # a document of one line has no duplicates to count
        seen, mask = empty_set(seen, hashes.size)
        for k in range(hashes.size):
            if seen_before(seen, mask, hashes[k]):
                row[_DUP] += 1
                row[_DUP_CHARS] += sizes[k]
    return seen
