"""The columns of a scan's statistics (:func:`pipeline.kernels.scan.measure`)."""

from __future__ import annotations

from enum import IntEnum, auto

from pipeline.kernels import alphabet


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
