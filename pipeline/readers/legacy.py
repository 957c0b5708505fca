"""Encodings that do not announce themselves: which one a file that is not UTF-8 is in, or that nobody can tell.

An encoding is taken when the whole file decodes as it and the text makes sense: a fair share of its characters belongs
to the most frequent ones of the language that is written so, and in no other encoding half as many do. Chinese, Korean
and Japanese files decode as each other's without a fault, and only what they say tells them apart. A Western European
text is taken when its accented letters are those of one language. All else is reported by name. A file in which some
line is UTF-8 with a character of three bytes or more is of two encodings, and nothing in it is recoded.

No encoding here has the byte of a line end inside a character, so pieces of a file can be read on their own.
"""

from __future__ import annotations

import codecs
import functools
import re
from collections import Counter
from dataclasses import dataclass, field

from pipeline.readers.streams import Broken, chunks

_HAN = (
    "的一是不了在人有我他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后小么心多天而能好"
    "都然没日于起还发成事只作当想看文无开手十用主行方又如前所本见经头面公同三已老从动两长"
    "這來國個說們為時會著過學對裡後麼沒於還發當無開見經頭從動兩長"
)
_HANGUL = (
    "이다는을가에의고하지로한기도리사은서들를인아해나어자시그대있부정만일것라제수전게보원주상구으여면스장과니우소문"
)
_KANA = "".join(map(chr, (*range(0x3041, 0x3094), *range(0x30A1, 0x30F7))))
COMMON = {"gb18030": _HAN, "big5hkscs": _HAN, "cp949": _HANGUL, "euc_jp": _KANA, "cp932": _KANA}
"""What is most frequent in texts of each encoding."""
_FREQUENT = re.compile(f"[{_HAN}{_HANGUL}{_KANA}]")
NAMES = {"big5hkscs": "big5", "cp949": "euc-kr", "euc_jp": "euc-jp", "cp932": "shift-jis", "cp1252": "windows-1252"}
"""What an encoding is called where people know it by another name than Python's."""
_WESTERN = {
    "English": "éï",
    "French": "éèêëàâùûüîïôçœÉÈÊÀÂÇÔÎŒ",
    "German": "äöüßÄÖÜé",
    "Spanish": "áéíóúñüÁÉÍÓÚÑ",
    "Portuguese": "áâãàçéêíóôõúÁÂÃÀÇÉÊÍÓÔÕÚ",
    "Italian": "àèéìòùÀÈÉÌÒÙ",
    "Danish and Norwegian": "åæøéÅÆØ",
    "Swedish and Finnish": "åäöéÅÄÖ",
    "Dutch": "éëïèöüó",
}
_MARKS = "“”‘’‚„–—…•·«»‹›°§©®™€£¥×½¼¾²³ºª¡¿\xa0\xad"
_LETTER = re.compile(r"[^\u0000-\u02ff\u2000-\u206f\u3000-\u303f\uff00-\uff65]")
_OTHER = re.compile(r"[^\x00-\x7f]")
_ENOUGH, _FEWEST = 1 << 20, 2
"""Characters after which no more are counted, and the fewest frequent ones that say anything."""
_SHARE, _LEAD, _ONE_LANGUAGE, _FOREIGN = 0.1, 2, 0.98, 0.3
_WIDE = 0x0800
"""First code point that UTF-8 writes in three bytes; two bytes of GBK may be one of two bytes in UTF-8 by accident."""


@dataclass
class _Reading:
    """A file as one encoding: letters beyond ASCII that were counted, and how many of them are frequent ones."""

    decoder: codecs.IncrementalDecoder
    frequent: re.Pattern[str]
    letters: int = 0
    hits: int = 0

    def take(self, data: bytes, final: bool = False) -> None:
        text = self.decoder.decode(data, final)
        if self.letters < _ENOUGH:
            self.letters += len(_LETTER.findall(text))
            self.hits += len(self.frequent.findall(text))

    @property
    def share(self) -> float:
        return self.hits / max(1, self.letters)


@dataclass
class _Western:
    """A file as Windows-1252: characters, and how often each beyond ASCII is there."""

    decoder: codecs.IncrementalDecoder
    characters: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    def take(self, data: bytes, final: bool = False) -> None:
        text = self.decoder.decode(data, final)
        self.characters += len(text)
        for character in _OTHER.findall(text):
            self.counts[character] = self.counts.get(character, 0) + 1

    @property
    def sensible(self) -> bool:
        total = sum(self.counts.values())
        known = max(sum(self.counts.get(c, 0) for c in {*letters, *_MARKS}) for letters in _WESTERN.values())
        return known >= _ONE_LANGUAGE * total and total <= _FOREIGN * self.characters


@functools.lru_cache(maxsize=64)
def encoding_of(location: str) -> str | None:
    """The encoding, by Python's name, of a file that is not UTF-8; None where none is certain. Memory is bounded by the
    file's longest line."""
    readings: dict[str, _Reading | _Western] = {
        name: _Reading(codecs.getincrementaldecoder(name)("strict"), re.compile(f"[{common}]"))
        for name, common in COMMON.items()
    }
    readings["cp1252"] = _Western(codecs.getincrementaldecoder("cp1252")("strict"))
    line = b""
    try:
        for data in chunks({"location": location}):
            _feed(readings, data)
            *ended, rest = data.split(b"\n")
            for piece in ended:
                if _is_wide_utf8(line + piece):
                    return None
                line = b""
            line += rest
            if not readings:
                return None
        _feed(readings, b"", final=True)
    except (Broken, OSError):
        return None
    return None if _is_wide_utf8(line) else _sensible(readings)


def _feed(readings: dict[str, _Reading | _Western], data: bytes, final: bool = False) -> None:
    """Read on in every encoding; those in which the bytes are no text go."""
    for name in list(readings):
        try:
            readings[name].take(data, final)
        except UnicodeDecodeError:
            del readings[name]


def _sensible(readings: dict[str, _Reading | _Western]) -> str | None:
    wide = {name: one.share for name, one in readings.items() if isinstance(one, _Reading) and one.hits >= _FEWEST}
    ranked = sorted(wide, key=lambda name: -wide[name])
    if ranked and wide[ranked[0]] >= _SHARE and all(wide[ranked[0]] >= _LEAD * wide[name] for name in ranked[1:]):
        return ranked[0]
    western = readings.get("cp1252")
    return "cp1252" if not ranked and isinstance(western, _Western) and western.sensible else None


def _is_wide_utf8(line: bytes) -> bool:
    if line.isascii():
        return False
    try:
        return any(ord(character) >= _WIDE for character in line.decode())
    except UnicodeDecodeError:
        return False


def unmarked_utf16(head: bytes) -> str | None:
    """The byte order ("utf-16-le", "utf-16-be") of a file that begins like UTF-16 without its mark, as databases and
    scripts on Windows write it: with zeros among its bytes, and a text of one script when it is read so."""
    head = head[: 1 << 16]
    orders = ("utf-16-le", "utf-16-be") if 0 in head else ()
    sensible = [name for name in orders if _of_one_script(codecs.getincrementaldecoder(name)("replace").decode(head))]
    return sensible[0] if len(sensible) == 1 else None


def _of_one_script(text: str) -> bool:
    """Whether a text is ASCII alone, or has letters of one alphabet, or the frequent characters of East Asia."""
    sound = sum(character.isprintable() or character in "\r\n\t" for character in text)
    if len(text) < _FEWEST or sound < _ONE_LANGUAGE * len(text):
        return False
    letters = _LETTER.findall(text)
    pages = Counter(ord(letter) >> 8 for letter in letters)
    one_alphabet = max(pages.values(), default=0) >= 0.9 * len(letters)
    return one_alphabet or len(_FREQUENT.findall(text)) >= max(_FEWEST, _SHARE * len(letters))
