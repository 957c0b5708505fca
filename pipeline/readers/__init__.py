"""Files to records, streaming and in bounded memory, whatever the format; what is broken comes out as a Fault, never as
a crash.

:func:`read` gives ``(line, record)`` pairs: a parsed JSON value or table row (dict or list), a :class:`Text` that
already is a document, or a :class:`Fault`. Lines count from 1; where a format has no lines (JSON arrays, Parquet, WARC)
records count from 1.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.readers.encodings import recoded_rule, recoded_why
from pipeline.readers.json_records import read_json, read_jsonl
from pipeline.readers.pages import read_html, read_text, read_warc
from pipeline.readers.streams import Broken, Fault, Numbered, Piece, Text
from pipeline.readers.tables import read_csv, read_parquet

__all__ = ["Fault", "Text", "read", "recoded_rule", "recoded_why"]

_READERS = {
    "jsonl": read_jsonl, "json": read_json, "csv": read_csv, "parquet": read_parquet,
    "text": read_text, "html": read_html, "warc": read_warc,
}  # fmt: skip


def read(piece: Piece) -> Iterator[Numbered]:
    """The records of a piece of a file.

    ``piece``: ``format``, ``location`` and ``relpath``; optional ``start``/``end`` (byte range of whole lines) with
    ``first_line``; ``skip`` (bytes of the inflated file) with ``first_line``; ``groups`` (Parquet row groups) with
    ``first_line``; ``broken`` (why what follows the range is lost); limits ``max_record`` (bytes), ``max_text``
    (characters); ``columns`` (all that a table need give, none: all) ``unless`` it has one of these; ``whole`` (the
    file that a spooled piece comes from). A reader that meets another encoding says so in ``piece["recoded"]``. An
    empty file gives Fault("empty_file"), an unreadable one Fault("unreadable_file"); one that a network does not give
    now raises OSError.
    """
    empty = True
    try:
        for item in _READERS[str(piece["format"])](piece):
            empty = False
            yield item
    except Broken as error:  # by a reader that needs the whole file
        empty = False
        yield piece.get("first_line", 1), Fault(error.reason, error.detail)
    except OSError as error:
        if piece["location"].startswith(("s3://", "hf://")):
            raise  # an outage passes; counted as a loss it would be published for ever
        empty = False
        yield piece.get("first_line", 1), Fault("unreadable_file", str(error))
    if empty and "start" not in piece:
        yield 1, Fault("empty_file", "no record in it")
