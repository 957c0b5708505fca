"""A look into what a run is given, before anything runs: is every source of the kind it was named for?

Exams are read whole where they are small; of chats and preference pairs the first records of each file are, since a
file of the wrong kind shows at once. Nothing here decides bytes: the stages read and count for themselves.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from pipeline.evaluation.exams import complaints, read_exams
from pipeline.formats.bad import BadRecord
from pipeline.formats.chat import as_chat
from pipeline.formats.kinds import MARKS, kind_of
from pipeline.formats.kto import as_judged, is_judged
from pipeline.formats.preference import as_preference, is_preference
from pipeline.formats.problem import as_problem
from pipeline.readers import Fault, Text, read
from pipeline.readers.streams import LIMITS, Numbered, Piece
from pipeline.sources import Source, SourceFile, built_in_name
from pipeline.sources.kinds import format_of

_WHOLE = 32 << 20
"""Bytes up to which an exam's files are read whole, and objects of a store are fetched at all."""
_FIRST = 1000
_RECORDS, _FILES = 20, 50
"""Records read of each file of chats or pairs, and files of each source."""
_KNOBS = {
    "chat": "sft.sources",
    "preference": "dpo.sources",
    "problem": "rl.sources",
    "exam": "evaluate.sources",
    "text": "ingest.sources",
}
_CALLED = {
    "chat": "conversations",
    "preference": "preference pairs",
    "problem": "problems",
    "exam": "multiple-choice questions",
    "text": "plain texts",
}
_CHOICES = ({"question", "choices"}, {"question", "options"}, {"ctx", "endings"}, {"question", "A", "B", "C"})


def peek(sources: Iterable[Source], kind: str, max_bad: float) -> list[str]:
    """Why sources cannot be used as ``kind`` ("chat", "preference" or "exam"), a line each; none when all can.

    ``max_bad`` is the share of an exam's records that may be no items. What cannot be looked at cheaply is taken as it
    is.
    """
    return [line for source in sources for line in _look(source, kind, max_bad)]


@functools.lru_cache(maxsize=256)  # a sweep resolves the same files once for each of its configs
def _look(source: Source, kind: str, max_bad: float) -> tuple[str, ...]:
    if source.files and built_in_name(source):
        return ()
    near = tuple(file for file in source.files if _cheap(file))
    if kind == "exam":
        whole = sum(file.bytes for file in source.files) <= _WHOLE
        looked = Source(source.name, source.digest, near, source.skipped)
        exams = read_exams([looked], None if whole else _FIRST)
        # of a part of a large exam only what holds for the rest, too, is said
        return tuple(complaints(exams, [source.name] if near else [], max_bad if whole else 0.5))
    heads = {file.relpath: list(islice(read(_piece(file)), _RECORDS)) for file in near[:_FILES]}
    lines = [line for path, head in heads.items() for line in _wrong_kind(source.name, path, head, kind)]
    return tuple(lines or _unusable(source.name, heads, kind))


def _cheap(file: SourceFile) -> bool:
    """Whether the beginning of a file can be read without fetching much: streams can, hub files and tables of a store
    are fetched whole."""
    remote = file.location.startswith(("s3://", "hf://"))
    streams = file.location.startswith("s3://") and format_of(file.location) != "parquet"
    return not remote or streams or file.bytes <= _WHOLE


def _piece(file: SourceFile) -> Piece:
    return {"format": format_of(file.location), "location": file.location, "relpath": file.relpath, **LIMITS}


def _wrong_kind(source: str, path: str, head: list[Numbered], kind: str) -> Iterator[str]:
    """A line if all that is at the beginning of a file is of one other kind."""
    kinds = {_kind(record) for _, record in head}
    judged = kind == "preference" and all(is_judged(record) for _, record in head)
    same = (kind, "chat") if kind == "problem" else (kind,)  # a question with its answer may be both
    if not judged and len(kinds) == 1 and (other := kinds.pop()) is not None and other not in same:
        file = path if path == source else f"{source}: {path}"
        yield f"{file} holds {_CALLED[other]}, not {_CALLED[kind]}: give it in {_KNOBS[other]}, not {_KNOBS[kind]}"


def _unusable(source: str, heads: dict[str, list[Numbered]], kind: str) -> Iterator[str]:
    """A line if not one record at the beginning of the files can be used."""
    first = None
    for path, head in heads.items():
        for line, record in head:
            try:
                if isinstance(record, Fault):
                    raise BadRecord(record.reason, record.detail)
                if kind == "chat":
                    as_chat(record)
                elif kind == "problem":
                    as_problem(record)
                elif is_judged(record) and not is_preference(record):
                    as_judged(record)
                else:
                    as_preference(record)
                return
            except BadRecord as error:
                first = first or f"{path} line {line}: {error}"
    if first:
        yield f"{source}: no record at the beginning of its files can be used as {_CALLED[kind]}; first: {first}"


def _kind(record: Any) -> str | None:
    """The kind of a record; None where that is not clear."""
    if isinstance(record, Text):
        return "text"
    if isinstance(record, Fault):
        return None
    if isinstance(record, dict):
        there = {key for key, value in record.items() if value is not None}
        if any(fields <= there for fields in _CHOICES):
            return "exam"
        if "text" in there and MARKS.isdisjoint(there):
            return "text"
    try:
        return kind_of(record, ("text",))
    except BadRecord:
        return None
