"""How long a stage should take: the time of an earlier build of it, scaled by the work; nothing where none compares.

Work is characters for the stages on text, bytes for those on records, and tokens times parameters for the training
stages. A build on another kind of device, or of other options that a plain proportion does not cover, is no measure.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from model.specs.shape import ModelConfig
from pipeline.config.resources import Resources
from storage.lineage import LineageRecord, SourceEntry

Lineage = Callable[[str, str], LineageRecord]
"""Reads the lineage record under a stage and a key; raises OSError or ValueError where there is none."""
FURTHEST = 50.0
"""A build of so many times less or more work is no measure: start-up, caches and memory are other ones there."""


Table: TypeAlias = dict[str, Any]
"""A section of a config, or a part of a lineage record."""


@dataclass
class Facts:
    """What decides the work of a run's stages, known of a plan by its sections and of an artifact by its ancestors."""

    sections: dict[str, Table] = field(default_factory=dict[str, Table])
    sources: dict[str, list[SourceEntry]] = field(default_factory=dict[str, list[SourceEntry]])
    steps: int = 0

    def size(self, stage: str) -> float | None:
        """Characters or bytes that a stage is given from outside; None when that is not known."""
        section, total = self.sections.get(stage, {}), 0.0
        for source in self.sources.get(stage, []):
            known = source.get("bytes", 0)
            if source["name"] == "python-docs":
                known = int(section.get("python_docs_chars") or 0)
            if not known:
                return None
            shares: dict[str, float] = section.get("sample") or {}
            total += known * shares.get(source["name"], 1)
        return total or None

    def parameters(self) -> int | None:
        """Of the model; None when its shape comes with given weights."""
        shape = self.sections.get("pretrain", {}).get("model")
        if not shape:
            return None
        vocabulary = shape["vocab_size"] or self.sections.get("tokenizer", {}).get("vocab_size", 0)
        return _parameters(json.dumps({**shape, "vocab_size": vocabulary}))


@functools.cache
def _parameters(shape: str) -> int:
    return ModelConfig(**json.loads(shape)).parameters(active=True)


@dataclass(frozen=True)
class Work:
    """A stage as its work is judged: its name and kind, and the stage whose sources it works through."""

    stage: str
    kind: str
    reads: str


def expected(
    work: Work, plan: Facts, on: Resources, earlier: Iterable[LineageRecord], lineage: Lineage
) -> float | None:
    """Seconds that a stage should take, from the earlier build whose work is nearest; None when none compares.
    ``lineage`` reads a record, at best each once: the builds have most of their ancestors in common."""
    best: tuple[float, float] | None = None
    for record in reversed(list(earlier)):
        where: Table = record.get("resources") or {}
        if where.get("device", on.device) != on.device:
            continue
        ratio = _ratio(work, plan, facts_of(record, lineage))
        if ratio and 1 / FURTHEST <= ratio <= FURTHEST and (best is None or abs(math.log(ratio)) < best[0]):
            best = abs(math.log(ratio)), float(record.get("seconds", 0)) * ratio
    return best[1] if best else None


def facts_of(record: LineageRecord, lineage: Lineage) -> Facts:
    """What an artifact and those it was made from say about their work; those that are gone say nothing."""
    metrics: Table = record.get("metrics") or {}
    found, todo = Facts(steps=int(metrics.get("steps", 0))), [record]
    while todo:
        made = todo.pop()
        identity: Table = made.get("identity") or {}
        if made["stage"] in found.sections:
            continue
        found.sections[made["stage"]] = identity.get("section") or {}
        for given in made["inputs"]:
            if "sources" in given:
                found.sources.setdefault(made["stage"], given["sources"])  # the first is what a stage works on
            elif given["key"]:
                try:
                    todo.append(lineage(given["stage"], given["key"]))
                except (OSError, ValueError):
                    continue
    return found


def _ratio(work: Work, new: Facts, old: Facts) -> float | None:
    """How many times the earlier build's work this one is."""
    if work.kind in ("documents", "records", "tokenizer", "tokens"):
        return _quotient(new.size(work.reads), old.size(work.reads))
    shape = 1.0 if _same(new, old, "pretrain") else _quotient(new.parameters(), old.parameters())
    if work.kind in ("release", "scores"):
        return shape
    if work.kind in ("model", "reward") and shape:
        tokens = _tokens(work, new, old)
        return tokens and tokens * shape
    return 1.0 if _same(new, old, work.stage) else None


def _tokens(work: Work, new: Facts, old: Facts) -> float | None:
    """Tokens of a training, as a multiple of the earlier one's."""
    now, then = new.sections.get(work.stage, {}), old.sections.get(work.stage, {})
    batches = _quotient(now.get("batch_tokens"), then.get("batch_tokens"))
    if now.get("steps"):
        return batches and _quotient(now["steps"] * batches, old.steps)
    if then.get("steps"):
        return None
    data = _quotient(new.size(work.reads), old.size(work.reads))
    return data and _quotient(now.get("epochs", 0) * data, then.get("epochs"))


def _same(new: Facts, old: Facts, stage: str) -> bool:
    return stage in new.sections and new.sections[stage] == old.sections.get(stage)


def _quotient(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None
