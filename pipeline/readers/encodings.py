"""Files that are not UTF-8: UTF-16, and encodings that do not announce themselves (:mod:`pipeline.readers.legacy`).

Bytes that are UTF-8 pass as they are. At the first that are not, the whole file is looked at, and read in the encoding
that it is in, if that is certain; otherwise nothing is recoded and every broken line is reported.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from pipeline.readers.legacy import NAMES, encoding_of, unmarked_utf16
from pipeline.readers.streams import Piece, chunks

_HEAD = 64
"""Bytes that show whether a file is UTF-16 without saying so."""


def utf8(piece: Piece) -> Iterator[bytes]:
    """The inflated bytes of a piece as UTF-8: a byte-order mark is removed, what is in another encoding is recoded.

    What was recoded is said in ``piece["recoded"]``: "utf-16", "gb18030", "euc-kr" and so on.
    """
    iterator = chunks(piece)
    head = b""
    for data in iterator:
        head += data
        if len(head) >= _HEAD:
            break
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        piece["recoded"] = "utf-16"
        yield from _recoded(iterator, head, "utf-16")
        return
    if (unmarked := unmarked_utf16(head)) and "start" not in piece:
        piece["recoded"] = "utf-16"
        yield from _recoded(iterator, head, unmarked)
        return
    yield from _checked(piece, iterator, head.removeprefix(codecs.BOM_UTF8))


def _checked(piece: Piece, iterator: Iterator[bytes], data: bytes) -> Iterator[bytes]:
    """Chunks as they are while they are UTF-8; from the first that is not, what the whole file calls for."""
    ascii_only = True
    while data:
        whole, rest = _whole_characters(data)
        if whole is None:
            yield from _foreign(piece, iterator, data, ascii_only)
            return
        ascii_only = ascii_only and whole.isascii()
        if whole:
            yield whole
        more = next(iterator, b"")
        if not more and rest:  # the file ends inside a character
            yield from _foreign(piece, iterator, rest, ascii_only)
            return
        data = rest + more


def _foreign(piece: Piece, iterator: Iterator[bytes], data: bytes, ascii_only: bool) -> Iterator[bytes]:
    """What is not UTF-8, from its first such bytes on: recoded where its encoding is certain, else as it is."""
    if encoding := encoding_of(piece.get("whole", piece["location"])) if ascii_only else None:
        piece["recoded"] = NAMES.get(encoding, encoding)
        yield from _recoded(iterator, data, encoding)
        return
    yield data
    yield from iterator


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


def recoded_rule(encoding: str) -> str:
    """The word by which files in another encoding are counted."""
    return f"recoded_{encoding.replace('-', '')}"


def recoded_why(encoding: str) -> str:
    """What happened to a file in another encoding."""
    return f"the file is {encoding.upper()}, not UTF-8, and was read as that"
