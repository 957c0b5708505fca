"""How much a score moves by the seed alone: runs of one config that differ in nothing but the seeds of training.

Two evaluations are siblings when all that they descend from agrees in sections, code, libraries and sources, but for
the seeds of stages that train. Seven runs of nanochat's d32 ended 0.0165 apart in CORE: a difference between two models
that is smaller than such a band says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from storage.digest import sha256_json
from storage.lineage import LineageRecord, Place, ancestry
from storage.store import Store
from tasks.running.inputs import Made

TRAINING = ("model", "reward")
"""Kinds of artifact whose seed may differ."""


@dataclass(frozen=True)
class Seeds:
    """The scores of an evaluation and of its siblings in the store, each as flat numbers, in the order of their keys.
    As a stage's input it counts by them; not known while the evaluation is only planned."""

    digest: str | None
    scores: tuple[Mapping[str, float], ...] = field(default=())


def siblings(store: Store, scores: Made) -> Seeds | None:
    """An evaluation with those that differ by seeds alone; None where there is no other."""
    own = store.record((scores.stage, scores.key)) if scores.digest else None
    if own is None:
        return Seeds(None)
    wanted = _config(store, own)
    found = {scores.key: own}
    for record in store.records(scores.stage):
        if record["key"] not in found and _config(store, record) == wanted:
            found[record["key"]] = record
    if len(found) < 2:
        return None
    rows = tuple(_numbers(found[key]) for key in sorted(found))
    return Seeds(sha256_json([dict(sorted(row.items())) for row in rows]), rows)


def _config(store: Store, record: LineageRecord) -> str:
    """What an evaluation came from, but for the seeds of training, as a digest."""

    def known(place: Place) -> LineageRecord | None:
        return store.record(place)

    parts: list[Any] = []
    for one in ancestry(known, (record["stage"], record["key"])):
        identity = one.get("identity", {})
        section = identity.get("section", {})
        if one.get("kind") in TRAINING:
            section = {name: value for name, value in section.items() if name != "seed"}
        sources = sorted(s["digest"] for entry in one["inputs"] for s in entry.get("sources", []))
        parts.append([one["stage"], section, identity.get("code"), identity.get("libs"), sources])
    return sha256_json(sorted(parts, key=lambda part: sha256_json(part)))


def _numbers(record: LineageRecord) -> dict[str, float]:
    metrics = record.get("metrics", {})
    return {k: float(v) for k, v in metrics.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
