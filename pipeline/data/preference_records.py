"""Preference pairs from sources, in normal form; good and bad answers to one prompt (KTO's form) are put together."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.data.records import Kind, Losses, place_of, read_records
from pipeline.formats.kto import as_judged, is_judged
from pipeline.formats.preference import as_preference, is_preference
from pipeline.formats.record import Record
from pipeline.sources import Source
from pipeline.sources.teaching import teaching_preferences


def read_preferences(
    sources: Sequence[Source], *, max_bad_share: float = 0.1, ignored: Sequence[str] = (), losses: Losses | None = None
) -> Iterator[Record]:
    """``{"prompt": [messages], "chosen": str, "rejected": str, "margin"?: float}`` of every usable pair; see
    :func:`pipeline.data.records.read_records`.

    Single answers with a true or false label become pairs after the last record of their source
    (:meth:`_Judged.pairs`); those that find no other are counted as lost.
    """
    losses = losses or Losses()
    for source in sources:
        judged = _Judged()
        for record in read_records(KIND, [source], max_bad_share, ignored, losses):
            if "label" in record:
                judged.add(record)
            else:
                yield record
        yield from judged.pairs(losses)


def _normal(record: Any, ignored: Sequence[str]) -> Record:
    """A pair, or one answer with its label."""
    single = is_judged(record) and not is_preference(record)
    return as_judged(record, ignored) if single else as_preference(record, ignored)


KIND = Kind("preference", _normal, {"teaching": teaching_preferences})


@dataclass
class _Prompt:
    """The good and the bad answers to one prompt, in the order of the file."""

    good: list[Record] = field(default_factory=list)
    bad: list[Record] = field(default_factory=list)


class _Judged:
    """Single answers of a source by their prompt; they are held in memory until it ends."""

    def __init__(self) -> None:
        self.prompts: dict[str, _Prompt] = {}

    def add(self, record: Record) -> None:
        """One answer in normal form."""
        found = self.prompts.setdefault(json.dumps(record["prompt"], ensure_ascii=False, sort_keys=True), _Prompt())
        (found.good if record["label"] else found.bad).append(record)

    def pairs(self, losses: Losses) -> Iterator[Record]:
        """Each good answer with a bad one of its prompt in turn, so that every answer is in a pair and a prompt of g
        good and b bad ones has max(g, b) of them; the same words with both labels are no pair."""
        for prompt in self.prompts.values():
            good, bad = prompt.good, prompt.bad
            if not (good and bad):
                for lone in good or bad:
                    place = place_of(lone)
                    label, other = ("true", "false") if lone["label"] else ("false", "true")
                    losses.lose(
                        "unpaired_answer", f"labelled {label}, and its prompt has no answer labelled {other}", place
                    )
                continue
            for i in range(max(len(good), len(bad))):
                better, worse = good[i % len(good)], bad[i % len(bad)]
                if better["answer"].strip() == worse["answer"].strip():
                    losses.lose("same_answers", "the same answer is labelled true and false", place_of(worse))
                    continue
                beside = {key: better[key] for key in ("source", "path", "line", "id")}
                yield {"prompt": better["prompt"], "chosen": better["answer"], "rejected": worse["answer"], **beside}
