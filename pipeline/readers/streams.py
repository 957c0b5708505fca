"""Bytes: opening local, S3 and hub files, inflating them piece by piece, and cutting them into lines of bounded
length."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple, NotRequired, TypedDict

from pipeline.sources.kinds import compression_of

CHUNK = 1 << 20
# So small because one call gives back all that a piece inflates to: a bomb stays within 130 MB.
_FEED = {"gzip": 1 << 17, "zstd": 1 << 13, "bz2": 1 << 13, "xz": 1 << 13}
_EXCERPT = 400


class Range(TypedDict):
    """A file, or a part of it, see :func:`pipeline.readers.read`."""

    location: str
    start: NotRequired[int]
    end: NotRequired[int]
    skip: NotRequired[int]
    broken: NotRequired[tuple[str, str]]


class Limits(TypedDict):
    """What a record may be at most: ``max_record`` bytes, ``max_text`` characters."""

    max_record: int
    max_text: int


LIMITS: Limits = {"max_record": 64 << 20, "max_text": 1_000_000}
"""Those of chats, pairs, problems and exams; texts have their own in ``ingest``."""


class Piece(Range, Limits):
    """A piece of a file to read as records, see :func:`pipeline.readers.read`."""

    format: str | None
    relpath: str
    first_line: NotRequired[int]
    groups: NotRequired[list[int]]
    columns: NotRequired[list[str]]
    unless: NotRequired[Collection[str]]
    whole: NotRequired[str]
    recoded: NotRequired[str]


class Fault(NamedTuple):
    """Something that should have been a record: a reason to count by, what is wrong in words, and the beginning of
    it."""

    reason: str
    detail: str
    raw: bytes = b""


class Text(NamedTuple):
    """A record that is a document already: its text, the input's own id, and whether bytes in it had to be replaced."""

    text: str
    id: str | None = None
    repaired: bool = False


Numbered = tuple[int, Any]
"""A line, or the number of a record where there are no lines, and what stands there: a parsed value, Text or Fault."""


class Broken(Exception):
    """The stream cannot be read beyond this place; everything before it has been given."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def local_path(location: str) -> str:
    """A path that libraries can open: hub files are downloaded, others are where they are."""
    if location.startswith("hf://"):
        from pipeline.sources.hub import fetch_hub

        return fetch_hub(location)
    return location


def open_binary(location: str, start: int = 0) -> BinaryIO:
    """A stream of the file's bytes from ``start`` on. Raises OSError."""
    if location.startswith("s3://"):
        from pipeline.sources.s3 import open_s3

        return open_s3(location, start)
    stream = open(local_path(location), "rb")  # noqa: SIM115 - the caller closes it
    stream.seek(start)
    return stream


def chunks(piece: Range) -> Iterator[bytes]:
    """The inflated bytes of a piece, in chunks. Raises Broken where the compression breaks off, after all that was
    readable."""
    kind = None if "start" in piece else compression_of(piece["location"])
    with open_binary(piece["location"], piece.get("start", 0)) as stream:
        if kind:
            yield from _without(inflate(stream, kind), piece.get("skip", 0))
        else:
            left = piece["end"] - piece["start"] if "start" in piece and "end" in piece else None
            while data := stream.read(CHUNK if left is None else min(CHUNK, left)):
                left = None if left is None else left - len(data)
                yield data
    if broken := piece.get("broken"):
        raise Broken(*broken)


def _without(pieces: Iterator[bytes], skip: int) -> Iterator[bytes]:
    """The chunks without their first ``skip`` bytes."""
    for data in pieces:
        if skip < len(data):
            yield data[skip:] if skip else data
        skip = max(0, skip - len(data))


def inflate(stream: BinaryIO, kind: str) -> Iterator[bytes]:
    """Inflate a stream of one or more gzip, zstd, bz2 or xz members. Raises Broken(truncated_… | corrupt_…)."""
    member, fed = _inflator(kind), False
    while data := stream.read(_FEED[kind]):
        while data:
            if not fed:
                data = data.lstrip(b"\0")  # tar and tape padding between members
                if not data:
                    break
            fed = True
            try:
                out = member.decompress(data)
            except Exception as error:  # isal, zstandard, bz2 and lzma each raise their own
                raise Broken(f"corrupt_{kind}", str(error)) from None
            if out:
                yield out
            data = b""
            if member.eof:
                data, member, fed = member.unused_data, _inflator(kind), False
    if fed:
        raise Broken(f"truncated_{kind}", "the compressed data ends in the middle")


def _inflator(kind: str) -> Any:
    if kind == "gzip":
        from isal import isal_zlib  # the interface of zlib at more than twice its speed

        return isal_zlib.decompressobj(wbits=31)
    if kind == "zstd":
        import zstandard

        return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
    if kind == "bz2":
        import bz2

        return bz2.BZ2Decompressor()
    import lzma

    return lzma.LZMADecompressor()


def lines(pieces: Iterable[bytes], limit: int, first: int = 1) -> Iterator[tuple[int, bytes | Fault]]:
    """Numbered lines without their ``\\n``; a line over ``limit`` bytes, or the one in which the stream breaks, is a
    Fault.

    Memory is bounded by ``limit`` and one chunk.
    """
    number, kept, size = first, [], 0
    try:
        for piece in pieces:
            *ended, rest = piece.split(b"\n")
            for line in ended:
                if size:
                    kept.append(line)
                    size += len(line)
                    line = b"".join(kept)
                    yield number, line if size <= limit else _too_long(line, size, limit)
                    kept, size = [], 0
                else:
                    yield number, line if len(line) <= limit else _too_long(line, len(line), limit)
                number += 1
            if rest:
                size += len(rest)
                if size <= limit or not kept:
                    kept.append(rest)
    except Broken as error:
        yield number, Fault(error.reason, error.detail, b"".join(kept)[:_EXCERPT])
        return
    if size:
        line = b"".join(kept)
        yield number, line if size <= limit else _too_long(line, size, limit)


def _too_long(line: bytes, size: int, limit: int) -> Fault:
    return Fault(
        "too_long", f"{size:,} bytes without an end of line; ingest.max_record_mb allows {limit:,}", line[:_EXCERPT]
    )


def excerpt(raw: bytes) -> bytes:
    """The beginning of a broken record, for the sample."""
    return raw[:_EXCERPT]


class Readable(io.RawIOBase):
    """Chunks as the file-like object that parsers want. ``fault`` tells afterwards where the stream broke."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces, self._rest, self._at, self.fault = iter(pieces), b"", 0, None

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            try:
                self._rest = next(self._pieces)
            except StopIteration:
                return 0
            except Broken as error:
                self.fault = Fault(error.reason, error.detail)
                return 0
        n = min(len(buffer), len(self._rest))
        buffer[:n], self._rest = self._rest[:n], self._rest[n:]
        self._at += n
        return n
