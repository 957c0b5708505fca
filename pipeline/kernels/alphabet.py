"""Batches of text as code points, and what each code point is: class and lower case, from the interpreter's Unicode tables.

Classes are chosen for what the rules ask: which script, does it count as a letter, does it end a sentence.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import numpy as np

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
    classes = np.zeros(0x110000, np.uint8)
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


def encode(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(codes uint32 [characters], offsets int64 [n + 1]): text i is ``codes[offsets[i]:offsets[i + 1]]``. Lone surrogates pass."""
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)), out=offsets[1:])
    return codes, offsets
