"""Characters that tell of a repair or a mask: white space, addresses, misread and uncomposed characters."""

from __future__ import annotations

from numba import njit

from pipeline.kernels.alphabet import BYTE, KIND, SPACE, UNCOMPOSED, is_ascii_letter, peek
from pipeline.kernels.columns import Stat

_AT = int(Stat.AT_SIGNS)
_DOTTED = int(Stat.DOTTED)
_HEX = int(Stat.HEX_GROUPS)
_MOJIBAKE = int(Stat.MOJIBAKE)
_UNTIDY = int(Stat.UNTIDY)
_REPLACED = int(Stat.REPLACED)
_UNCOMPOSED = int(Stat.UNCOMPOSED)


@njit(cache=True, nogil=True)
def book_mark(data, start, p, size, end, entries, code, row):
    """Book what a character at p, of a text from `start` to `end`, says about the repairs and masks to ask."""
    # white space that the repairs change
    if code == 13 or entries[code] & KIND == SPACE:
        row[_UNTIDY] += code != 0x3000
    # a dot: of an IPv4 address?
    elif code == 46:
        row[_DOTTED] = max(row[_DOTTED], _dotted(data, start, p, end))
    # a colon: of an IPv6 address?
    elif code == 58:
        row[_HEX] += _opens_ipv6(data, start, p, end)
    # an at sign: of an e-mail address?
    elif code == 64:
        row[_AT] += p > start and p + 1 < end and _in_address(data[p - 1]) and _in_address(data[p + 1])
    elif code == 0xFFFD:
        row[_REPLACED] += 1
    # a lead byte of UTF-8 that was read as a character of its own?
    elif code >= 0xC2 and code <= 0xF4:
        row[_MOJIBAKE] += _misread(data, p + size, end, entries, code)
    else:
        row[_UNCOMPOSED] += entries[code] & UNCOMPOSED != 0


@njit(cache=True, nogil=True)
def tells(code, entry, following):
    """May this character, before the byte `following`, say that a repair or a mask has something to do? Few do, and

    :func:`book_mark` looks closer."""
    if code < 128:
        return code == 64 or code == 13 or (code == 46 and _is_digit(following)) or (code == 58 and _is_hex(following))
    return code < 0xF5 or code == 0xFFFD or entry & UNCOMPOSED != 0 or entry & KIND == SPACE


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
