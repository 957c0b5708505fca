"""Reading an exam's files as they are: tables with and without a heading, records, and lists of labels."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from pipeline.evaluation.gold import NotAnItem
from pipeline.readers import Fault, read
from pipeline.readers.streams import LIMITS, Numbered, chunks
from pipeline.sources.kinds import format_of

"""Of an exam's records, in bytes, and of a text in one, in characters."""
LABELS = "-labels.lst"
"""How the file of a split's right answers is called, where they are not in the records (PIQA)."""


class ExamFile(Protocol):
    """A file of a source."""

    @property
    def relpath(self) -> str: ...

    @property
    def location(self) -> str: ...


class ExamSource(Protocol):
    """A source as far as exams need it."""

    @property
    def name(self) -> str: ...

    @property
    def files(self) -> Sequence[ExamFile]: ...


def is_labels(relpath: str) -> bool:
    """Whether a file is a list of labels."""
    return relpath.endswith(LABELS)


def text_of(file: ExamFile) -> str:
    """A file's text, UTF-8 with or without a mark. Raises NotAnItem when it is none."""
    inflated = b"".join(chunks({"location": file.location}))
    try:
        return inflated.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotAnItem(f"{file.relpath} is not UTF-8: {error.reason} at byte {error.start}") from None


def rows(file: ExamFile) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV or TSV file with the line that each ends at; a row of nothing is left out."""
    text = text_of(file)
    separator = "\t" if ".tsv" in file.relpath else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    for row in reader:
        if any(cell.strip() for cell in row):
            yield reader.line_num, row


def first_row(file: ExamFile) -> list[str] | None:
    """The first row of a table."""
    return next((row for _, row in rows(file)), None)


def records(file: ExamFile) -> Iterator[Numbered]:
    """The records of a file that is no table, with their lines; what is broken is a Fault."""
    kind = format_of(file.location)
    yield from read({"format": kind, "location": file.location, "relpath": file.relpath, **LIMITS})


def first_record(file: ExamFile) -> Any:
    """The first record of a file; None when there is none, or a broken one."""
    record = next((record for _, record in records(file)), None)
    return None if isinstance(record, Fault) else record
