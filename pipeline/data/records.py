"""Records from sources, in normal form, for the stages that train on them and those that compare with them.

Every form of :mod:`pipeline.formats` is recognised; what cannot be used is counted by reason with an example each, and
too much of it is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from pipeline.data.counted import Counted
from pipeline.formats.bad import BadRecord
from pipeline.formats.ids import own_id
from pipeline.formats.record import Record
from pipeline.readers import Fault, Text, read, recoded_rule, recoded_why
from pipeline.readers.streams import LIMITS, Piece
from pipeline.sources import Source, built_in_name
from pipeline.sources.kinds import format_of


class Place(TypedDict):
    """Where a record stands: its source's name, its file's path in there, its line from 1."""

    source: str
    path: str
    line: int


def place_of(record: Record) -> Place:
    """Where a record in normal form comes from."""
    return {"source": record["source"], "path": record["path"], "line": record["line"]}


Sample = dict[str, Any]
"""An example: rule, action, why, and its place."""


@dataclass
class Losses:
    """What could not be used, by reason with examples; and what was changed to be used, files that are not UTF-8."""

    seen: int = 0
    lost: Counted = field(default_factory=Counted)
    recoded: Counted = field(default_factory=Counted)
    by_source: Counter[str] = field(default_factory=Counter)

    @property
    def dropped(self) -> Counter[str]:
        """Records that were lost, by reason."""
        return self.lost.counts

    @property
    def changed(self) -> Counter[str]:
        """Files that were read in another encoding, by it."""
        return self.recoded.counts

    @property
    def samples(self) -> list[Sample]:
        """Examples of both."""
        return [*self.lost.samples, *self.recoded.samples]

    def lose(self, reason: str, why: str, place: Place) -> None:
        """Count one record as lost."""
        self.by_source[place["source"]] += 1
        self.lost.add(reason, {"rule": reason, "action": "dropped", **place, "why": why[:400]})

    def note(self, encoding: str, place: Place) -> None:
        """Count one file that was read in another encoding."""
        rule = recoded_rule(encoding)
        self.recoded.add(rule, {"rule": rule, "action": "changed", **place, "why": recoded_why(encoding)})


@dataclass(frozen=True)
class Kind:
    """A kind of record: its name, how one becomes its normal form, and those of the built-in sources by their names."""

    name: str
    normal: Callable[[Any, Sequence[str]], dict[str, Any]]
    built_in: Mapping[str, Callable[[], list[Record]]]


def read_records(
    kind: Kind, sources: Sequence[Source], max_bad_share: float, ignored: Sequence[str], losses: Losses
) -> Iterator[Record]:
    """Every usable record in normal form with ``source``, ``path``, ``line`` and ``id``, in source, file and line
    order.

    ``ignored`` names fields to leave out; ``losses`` is filled while reading. Raises ValueError after the last record
    of a source of which more than ``max_bad_share`` is unusable.
    """
    for source in sources:
        seen, bad = losses.seen, losses.dropped.total()
        if source.files and (own := built_in_name(source)):
            built_in = kind.built_in[own]()
            losses.seen += len(built_in)
            yield from built_in
            continue
        for file in source.files:
            piece: Piece = {
                "format": format_of(file.location),
                "location": file.location,
                "relpath": file.relpath,
                **LIMITS,
            }
            for line, record in read(piece):
                losses.seen += 1
                place: Place = {"source": source.name, "path": file.relpath, "line": line}
                normal = _normal(record, kind, ignored, place, losses)
                if normal:
                    yield normal
            if "recoded" in piece:
                losses.note(piece["recoded"], {"source": source.name, "path": file.relpath, "line": 1})
        seen, bad = losses.seen - seen, losses.dropped.total() - bad
        if bad > max_bad_share * seen or bad == seen:
            raise ValueError(_complaint(source, kind.name, seen, bad, max_bad_share, losses))


def _normal(record: Any, kind: Kind, ignored: Sequence[str], place: Place, losses: Losses) -> Record | None:
    try:
        if isinstance(record, Fault):
            raise BadRecord(record.reason, record.detail)
        if isinstance(record, Text):
            raise BadRecord("unknown_form", "plain text")
        normal = kind.normal(record, ignored)
    except BadRecord as error:
        losses.lose(error.reason, error.detail, place)
        return None
    return {**normal, **place, "id": own_id(record, ("id", "_id", "uid"))}


def _complaint(source: Source, kind: str, seen: int, bad: int, share: float, losses: Losses) -> str:
    mine = [s for s in losses.samples if s["source"] == source.name and s["action"] == "dropped"]
    example = f"; first: {mine[0]['path']} line {mine[0]['line']}: {mine[0]['rule']}: {mine[0]['why']}" if mine else ""
    counts = ", ".join(f"{reason} {n}" for reason, n in losses.dropped.most_common())
    knob = f"decontaminate.max_bad_records = {share} is what is tolerated: mend the data or raise it"
    return f"source {source.name}: {bad} of {seen} records cannot be used as {kind} data ({counts}){example}. {knob}"
