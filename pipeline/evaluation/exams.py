"""Evaluation sets of users and of the teaching facts, read and recognised: what the stages that must not train on them
and the one that asks them share.

Files come in any record format that data come in (JSON lines, JSON, CSV, TSV, Parquet, each compressed or on a store);
a record is an item by its fields (:mod:`pipeline.evaluation.forms`). Those that are none are counted and sampled with
file and line; a source of which too many are none is refused (:func:`complaints`). A data set that comes with its
training or few-shot split beside the one to be asked is asked the latter alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypedDict

from pipeline.evaluation.forms import KINDS, TRAINING, guarded_text, recognise
from pipeline.evaluation.gold import Item, NotAnItem
from pipeline.evaluation.standard.files import ExamFile
from pipeline.evaluation.standard.files import ExamSource as Source
from pipeline.evaluation.standard.questions import questions
from pipeline.readers import Fault, read
from pipeline.readers.streams import LIMITS, Piece
from pipeline.sources.kinds import format_of

SAMPLES = 100
"""Skipped records kept of each source."""
_EXAMPLES, _ASKED = ("dev", "train", "auxiliary_train"), ("test", "val", "valid", "validation")


class ExamSource(Source, Protocol):
    """A source as far as exams need it; ``form``: the standard exam that it is, or nothing."""

    @property
    def form(self) -> str: ...


class Skipped(TypedDict):
    """A record that is no item, and why."""

    source: str
    path: str
    line: int
    why: str


@dataclass
class Exams:
    """What was read: ``items`` by kind, the number of ``records`` and of those that are no item (``bad``) by source,
    samples of these, files whose numbers cannot be trusted (``doubtful``), and ``left``: files of examples, not
    asked."""

    items: dict[str, list[Item]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    records: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    skipped: list[Skipped] = field(default_factory=list)
    doubtful: dict[str, Skipped] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)

    def skip(self, why: Skipped, doubtful: bool) -> None:
        """Count a record that is no item."""
        self.bad[why["source"]] += 1
        if self.bad[why["source"]] <= SAMPLES:
            self.skipped.append(why)
        if doubtful:
            self.doubtful.setdefault(why["source"], why)


def read_exams(sources: Iterable[ExamSource], first: int | None = None) -> Exams:
    """All items of the sources, or of the ``first`` records of each file, each with its source, path and line."""
    exams = Exams()
    seen: set[tuple[str, str]] = set()
    for source in sources:
        asked, left = _asked(source.files)
        exams.left += [f"{source.name}/{file.relpath}" for file in left]
        for file in (file for file in asked if format_of(file.location)):
            _read_file(exams, source.name, file, first, seen)
    return exams


def _read_file(exams: Exams, source: str, file: ExamFile, first: int | None, seen: set[tuple[str, str]]) -> None:
    place = {"source": source, "path": str(file.relpath)}
    piece: Piece = {
        "format": format_of(file.location),
        "location": str(file.location),
        "relpath": place["path"],
        **LIMITS,
    }
    for count, (line, record) in enumerate(read(piece)):
        if first is not None and count >= first:
            return
        exams.records[source] += 1
        try:
            if isinstance(record, Fault):
                raise NotAnItem(f"{record.reason}: {record.detail}")
            found = list(recognise(record, f"{source}/{place['path']}:{line}", source))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            why = str(error) if isinstance(error, NotAnItem) else f"{type(error).__name__}: {error}"
            skipped: Skipped = {"source": source, "path": place["path"], "line": line, "why": why[:200]}
            exams.skip(skipped, doubtful=isinstance(error, NotAnItem) and error.whole)
            continue
        for kind, item in found:
            if (item["set"], item["id"]) in seen:  # tables number their rows each for itself
                item["id"] = f"{item['id']}@{place['path']}:{line}"
            seen.add((item["set"], item["id"]))
            exams.items[kind].append({**item, **place, "line": line})


def _asked(files: Sequence[ExamFile]) -> tuple[list[ExamFile], list[ExamFile]]:
    """The files to ask, and those that hold examples for them: dev beside test, train beside validation."""
    of = {file.relpath: _split(str(file.relpath)) for file in files}
    if not any(split == "asked" for split in of.values()):
        return list(files), []
    return [f for f in files if of[f.relpath] != "examples"], [f for f in files if of[f.relpath] == "examples"]


def _split(relpath: str) -> str | None:
    """Whether a path says that it is a split to ask or one of examples: by a folder's name, or the first or last word
    of a file's, but for suffixes and numbers (``law_val.csv``, ``arc-test-00000-of-00001.parquet``)."""
    *folders, name = relpath.lower().split("/")
    words = [
        word for word in re.split(r"[._-]", name.partition(".")[0]) if word and not word.isdigit() and word != "of"
    ]
    for part in [*reversed(folders), *words[:1], *words[-1:]]:
        if part in _EXAMPLES or part in _ASKED:
            return "examples" if part in _EXAMPLES else "asked"
    return None


def complaints(exams: Exams, names: Iterable[str], max_bad: float) -> list[str]:
    """Why sources cannot be used as exams, a line each: no items, more than ``max_bad`` of the records no item, or
    answers that seem to count from another number than their form does."""
    lines = []
    for name in names:
        seen, bad = exams.records[name], exams.bad[name]
        sample = next((s for s in exams.skipped if s["source"] == name), None)
        first = f"; first: {sample['path']} line {sample['line']}: {sample['why']}" if sample else ""
        if name in exams.doubtful:
            doubt = exams.doubtful[name]
            lines.append(f"{name}: {doubt['path']} line {doubt['line']}: {doubt['why']}")
        elif bad == seen:
            lines.append(f"{name}: none of {seen:,} records is an exam item{first}")
        elif bad > max_bad * seen:
            lines.append(
                f"{name}: {bad:,} of {seen:,} records are no exam items{first}"
                f" (evaluate.max_bad_records = {max_bad} is what is tolerated: mend the data or raise it)"
            )
    return lines


def exam_items(sources: Sequence[ExamSource]) -> list[dict[str, str]]:
    """``{"id", "set", "text"}`` of every question that must not be trained on, for the decontaminate stage.

    Left out is what the teaching set asks on purpose in the words it was taught in: its training questions and choices.
    """
    items = read_exams(source for source in sources if not source.form).items
    guarded = [{"id": item["id"], "set": item["set"], "text": guarded_text(item)} for item in _guarded(items)]
    for source in (source for source in sources if source.form):
        guarded += questions(source, source.form)
    return guarded


def _guarded(items: dict[str, list[Item]]) -> Iterator[Item]:
    return (item for kind in KINDS for item in items[kind] if item["set"] != TRAINING)
