"""Text, Markdown, HTML and WARC: records that are documents. HTML stays as it is; the clean stage takes the main text
out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from pipeline.readers.encodings import utf8
from pipeline.readers.streams import Broken, Fault, Numbered, Piece, Readable, Text, chunks, excerpt, lines

_BAD_SHARE = 0.01
"""A text with more replaced characters than this is not UTF-8 with an accident in it but something else."""


def read_text(piece: Piece) -> Iterator[Numbered]:
    """A file as one document; above ``max_text`` characters it is cut between paragraphs (at worst between lines)."""
    start, kept, size = 1, [], 0
    for number, line in lines(utf8(piece), piece["max_record"]):
        if isinstance(line, Fault):
            yield from _document(start, kept)
            yield number, line
            start, kept, size = number + 1, [], 0
            continue
        kept.append(line)
        size += len(line) + 1
        if size > piece["max_text"] and (not line.strip() or size > 2 * piece["max_text"]):
            yield from _document(start, kept)
            start, kept, size = number + 1, [], 0
    yield from _document(start, kept)


def _document(start: int, kept: list[bytes]) -> Iterator[Numbered]:
    """The kept lines as a document that starts where its first line with content does."""
    lead = next((i for i, line in enumerate(kept) if line.strip()), None)
    if lead is not None:
        yield start + lead, text_or_fault(b"\n".join(kept[lead:]))


def text_or_fault(raw: bytes) -> Any:
    """UTF-8 bytes as Text, with U+FFFD for the odd broken byte; Fault(not_utf8) when it is not UTF-8 at all."""
    try:
        return Text(raw.decode())
    except UnicodeDecodeError as error:
        text = raw.decode("utf-8", "replace")
        if text.count("\ufffd") <= _BAD_SHARE * len(text):
            return Text(text, None, True)
        return Fault("not_utf8", f"byte {error.start}: {error.reason}; recode the file to UTF-8", excerpt(raw))


def read_html(piece: Piece) -> Iterator[Numbered]:
    """A page as one document, decoded by its byte-order mark, its meta tag or its bytes."""
    kept, size = [], 0
    try:
        for data in chunks(piece):
            kept.append(data)
            size += len(data)
            if size > piece["max_record"]:
                yield (
                    1,
                    Fault(
                        "too_long",
                        f"a page of more than {piece['max_record']:,} bytes (ingest.max_record_mb)",
                        excerpt(kept[0]),
                    ),
                )
                return
    except Broken as error:
        yield 1, Fault(error.reason, error.detail, excerpt(b"".join(kept)))
        return
    if kept:
        yield 1, Text(_decode(b"".join(kept), None))


def _decode(raw: bytes, charset: str | None) -> str:
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding

    try:
        return raw.decode("utf-8-sig")  # most pages, whatever they say
    except UnicodeDecodeError:
        return bytes_to_str(raw, charset or detect_encoding(raw, from_html_meta=True) or "utf-8")


def read_warc(piece: Piece) -> Iterator[Numbered]:
    """Responses and conversions (WET) of a web archive that are HTML or text; the own id is the record's.

    Other content types and HTTP errors come out as Faults not_a_page and http_error, which count as left out, not as
    bad.
    """
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    stream = Readable(chunks(piece))
    binary = cast(BinaryIO, stream)  # a RawIOBase that blocks: its read() never returns None
    wanted = WarcRecordType.response | WarcRecordType.conversion | WarcRecordType.resource
    number = 0
    try:
        for record in ArchiveIterator(binary, record_types=wanted, parse_http=True, auto_decode="all"):
            number += 1
            yield number, _page(record, piece["max_record"])
    except Exception as error:  # fastwarc raises OSError, ValueError and its own
        if not stream.fault:
            yield number + 1, Fault("broken_warc", str(error))
    if stream.fault:
        yield number + 1, stream.fault


def _page(record: Any, limit: int) -> Any:
    head = record.http_headers
    if head is not None and head.status_code is not None and not 200 <= head.status_code < 300:
        return Fault("http_error", f"{record.headers.get('WARC-Target-URI')}: status {head.status_code}")
    kind = (record.http_content_type if head is not None else record.headers.get("Content-Type")) or ""
    if not kind.startswith(("text/", "application/xhtml")):
        return Fault("not_a_page", f"{record.headers.get('WARC-Target-URI')}: {kind or 'no content type'}")
    body = record.reader.read(limit + 1)
    if len(body) > limit:
        return Fault("too_long", f"a page of more than {limit:,} bytes (ingest.max_record_mb)", excerpt(body))
    return Text(_decode(body, record.http_charset if head is not None else None), record.record_id)
