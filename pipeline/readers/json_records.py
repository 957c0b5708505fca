"""JSONL and JSON. A broken line or array element is one Fault; the records around it are read."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from pipeline.readers.encodings import utf8
from pipeline.readers.streams import Broken, Fault, Numbered, Piece, excerpt, lines

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|["\[\]{},]', re.DOTALL)
_BLANK = b" \t\r\n"


def read_jsonl(piece: Piece) -> Iterator[Numbered]:
    """One record a line; blank lines are no records. A file that turns out to be one JSON array is read as one."""
    pieces = utf8(piece)
    if piece.get("first_line", 1) == 1:
        pieces, array = _is_array(pieces)
        if array:
            yield from _array(pieces, piece["max_record"])
            return
    yield from _lines(pieces, piece)


def read_json(piece: Piece) -> Iterator[Numbered]:
    """An array of records, or JSON lines under the wrong suffix, or one record over many lines."""
    pieces, array = _is_array(utf8(piece))
    if array:
        yield from _array(pieces, piece["max_record"])
        return
    head, pieces = _head(pieces, piece["max_record"])
    try:
        whole = parse(head)
    except ValueError:
        yield from _lines(pieces, piece)
        return
    if head.strip(_BLANK):
        yield 1, whole


def _lines(pieces: Iterable[bytes], piece: Piece) -> Iterator[Numbered]:
    for number, line in lines(pieces, piece["max_record"], piece.get("first_line", 1)):
        if isinstance(line, Fault):
            yield number, line
            continue
        try:
            yield number, orjson.loads(line)
        except ValueError:
            if line.strip(_BLANK):
                yield number, parse_or_fault(line)


def parse(raw: bytes) -> Any:
    """A JSON value; orjson first, the lenient standard parser for what orjson refuses (NaN, lone surrogates).
    ValueError."""
    try:
        return orjson.loads(raw)
    except ValueError:
        try:
            return json.loads(raw.decode())
        except RecursionError:
            raise ValueError("nested too deeply") from None


def parse_or_fault(raw: bytes) -> Any:
    """A JSON value or the Fault that says why not."""
    try:
        return parse(raw)
    except UnicodeDecodeError as error:
        return Fault("invalid_utf8", f"byte {error.start}: {error.reason}", excerpt(raw))
    except ValueError as error:
        return Fault("broken_json", str(error), excerpt(raw))


def _head(pieces: Iterable[bytes], size: int) -> tuple[bytes, Iterator[bytes]]:
    """Up to ``size`` bytes of the stream, and the whole stream again. A break stays in the stream."""
    iterator, taken, total = iter(pieces), [], 0
    rest: Iterator[bytes] = iterator
    try:
        for piece in iterator:
            taken.append(piece)
            total += len(piece)
            if total >= size:
                break
    except Broken as error:
        rest = _raise(error)
    return b"".join(taken), itertools.chain(taken, rest)


def _raise(error: Broken) -> Iterator[bytes]:
    raise error
    yield b""


def _is_array(pieces: Iterable[bytes]) -> tuple[Iterator[bytes], bool]:
    """Whether the stream is one JSON array of records, rather than lines that are arrays (nanochat's conversations)."""
    head, pieces = _head(pieces, 1)
    head = head.lstrip(_BLANK)
    if not head.startswith(b"["):
        return pieces, False
    first, newline, after = head.partition(b"\n")
    if not newline:
        # One line in all that was read: an array of records holds objects with other fields than a message has.
        return pieces, not _is_conversation(head)
    try:
        orjson.loads(first)
    except ValueError:
        return pieces, True
    return pieces, not after.strip(_BLANK) and not _is_conversation(first)


def _is_conversation(raw: bytes) -> bool:
    try:
        value = orjson.loads(raw)
    except ValueError:
        return False
    return bool(value) and all(isinstance(turn, dict) and "role" in turn and "content" in turn for turn in value)


def _array(pieces: Iterable[bytes], limit: int) -> Iterator[Numbered]:
    """The elements of a JSON array, numbered from 1, parsed at once when the file is short and sound, else one by
    one."""
    head, pieces = _head(pieces, limit)
    try:
        whole = orjson.loads(head)
    except ValueError:
        yield from _elements(pieces, limit)
        return
    yield from enumerate(whole, 1)


def _elements(pieces: Iterable[bytes], limit: int) -> Iterator[Numbered]:
    """Elements cut out by their brackets and quotes, so that a bad one costs itself alone. Memory is bounded by
    ``limit``."""
    number, rest, depth = 1, b"", 0
    iterator = iter(pieces)
    while True:
        try:
            piece = next(iterator, b"")
        except Broken as error:
            yield number, Fault(error.reason, error.detail, excerpt(rest))
            return
        if not piece:
            break
        found, rest, depth = _cut(rest + piece, depth)
        for raw in found:
            yield number, parse_or_fault(raw)
            number += 1
        if len(rest) > limit:
            yield (
                number,
                Fault("too_long", f"an element of more than {limit:,} bytes (ingest.max_record_mb)", excerpt(rest)),
            )
            return
    if depth > 0:
        yield number, Fault("truncated_json", "the array does not end", excerpt(rest))
    elif rest.strip(_BLANK):
        yield number, Fault("broken_json", "something follows the array", excerpt(rest))


def _cut(data: bytes, outer: int) -> tuple[list[bytes], bytes, int]:
    """Whole elements in ``data``, the bytes of the unfinished one, and the depth where that begins (0 outside, 1 inside
    the array).

    An unfinished element is scanned again with the next chunk, which keeps the scan simple.
    """
    found: list[bytes] = []
    depth, start = outer, 0
    for token in _TOKEN.finditer(data):
        kind = token.group()
        if kind == b'"':
            break  # a string that goes on in the next chunk
        if kind in (b"[", b"{"):
            depth += 1
            if depth == 1:
                start = token.end()
        elif kind in (b"]", b"}", b","):
            if kind != b",":
                depth -= 1
            if (kind == b"," and depth == 1) or depth == 0:
                raw = data[start : token.start()].strip(_BLANK)
                if raw:
                    found.append(raw)
                start = token.end()
                if depth == 0:
                    return found, data[start:], 0
    return found, data[start:], min(depth, 1)
