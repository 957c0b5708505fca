"""Files that are not UTF-8: UTF-16 that announces itself, and GB18030 (GBK), which Chinese Windows writes.

Bytes that are UTF-8 pass as they are. At the first that are not, the whole file is looked at: it is read as GB18030 if
all of it decodes as that, most characters are of two high bytes (as in any Chinese text; in Latin ones a letter follows
a high byte), and no line is UTF-8 with a character of three bytes or more (a file of two encodings, in which nothing is
recoded and every broken line is reported). GB18030 has no byte of a line end inside a character, so pieces of a file
can be read on their own. Limit: other East Asian encodings of two high bytes (EUC-KR, EUC-JP) look the same.
"""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Iterator
from typing import Any

from pipeline.readers.streams import Broken, chunks

_PAIR, _HIGH_PAIR = re.compile(rb"[\x81-\xfe][\x40-\xfe]"), re.compile(rb"[\x81-\xfe][\xa1-\xfe]")
_WIDE = 0x0800
"""First code point that UTF-8 writes in three bytes; two bytes of GBK may be one of two bytes in UTF-8 by accident."""


def utf8(piece: dict[str, Any]) -> Iterator[bytes]:
    """The inflated bytes of a piece as UTF-8: a byte-order mark is removed, UTF-16 with one and GB18030 are recoded.

    What was recoded is said in ``piece["recoded"]``: "utf-16" or "gb18030".
    """
    iterator = chunks(piece)
    head = b""
    for data in iterator:
        head += data
        if len(head) >= 4:
            break
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        piece["recoded"] = "utf-16"
        yield from _recoded(iterator, head, "utf-16")
        return
    yield from _checked(piece, iterator, head.removeprefix(codecs.BOM_UTF8))


def _checked(piece: dict[str, Any], iterator: Iterator[bytes], data: bytes) -> Iterator[bytes]:
    """Chunks as they are while they are UTF-8; from the first that is not, what the whole file calls for."""
    ascii_only = True
    while data:
        whole, rest = _whole_characters(data)
        if whole is None:
            if ascii_only and is_gb18030(piece.get("whole", piece["location"])):
                piece["recoded"] = "gb18030"
                yield from _recoded(iterator, data, "gb18030")
                return
            yield data
            yield from iterator
            return
        ascii_only = ascii_only and whole.isascii()
        if whole:
            yield whole
        more = next(iterator, b"")
        if not more and rest:  # the file ends inside a character
            if ascii_only and is_gb18030(piece.get("whole", piece["location"])):
                piece["recoded"] = "gb18030"
                yield from _recoded(iterator, rest, "gb18030")
            else:
                yield rest
            return
        data = rest + more


def _whole_characters(data: bytes) -> tuple[bytes | None, bytes]:
    """UTF-8 up to the last whole character, and the rest; None when it is not UTF-8."""
    if data.isascii():
        return data, b""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data" and error.end == len(data):
            return data[: error.start], data[error.start :]
        return None, data
    return data, b""


def _recoded(iterator: Iterator[bytes], data: bytes, encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    yield decoder.decode(data).encode("utf-8", "replace")
    for more in iterator:
        yield decoder.decode(more).encode("utf-8", "replace")
    if tail := decoder.decode(b"", True):
        yield tail.encode("utf-8", "replace")


@functools.lru_cache(maxsize=64)
def is_gb18030(location: str) -> bool:
    """Whether a file is all GB18030 and no mixture with UTF-8. Memory is bounded by its longest line."""
    decoder = codecs.getincrementaldecoder("gb18030")("strict")
    line, pairs, high = b"", 0, 0
    try:
        for data in chunks({"location": location}):
            decoder.decode(data)
            pairs += len(_PAIR.findall(data))
            high += len(_HIGH_PAIR.findall(data))
            *ended, rest = data.split(b"\n")
            for piece in ended:
                if _is_wide_utf8(line + piece):
                    return False
                line = b""
            line += rest
        decoder.decode(b"", True)
    except (UnicodeDecodeError, Broken, OSError):
        return False
    return 2 * high >= pairs and not _is_wide_utf8(line)


def _is_wide_utf8(line: bytes) -> bool:
    if line.isascii():
        return False
    try:
        return any(ord(character) >= _WIDE for character in line.decode())
    except UnicodeDecodeError:
        return False


def recoded_rule(encoding: str) -> str:
    """The word by which files in another encoding are counted."""
    return f"recoded_{encoding.replace('-', '')}"


def recoded_why(encoding: str) -> str:
    """What happened to a file in another encoding."""
    return f"the file is {encoding.upper()}, not UTF-8, and was read as that"
