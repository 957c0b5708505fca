"""Adopt: accept an artifact that older code made as what today's code would make.

For the case that a change of code or of a library cannot change the bytes (a renamed helper, a faster loop) and
building again would cost hours. The artifact gets a second entry under today's key; its files are hard links where the
file system has them, and its lineage says from what it was adopted and what differed.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.config.base import Section
from storage.digest import RECORDS, VOLATILE
from storage.errors import Refused
from storage.lineage import Identity, Input, LineageRecord, Place
from storage.store import Artifact, Store
from tasks.running.inputs import Bound, Descent, Made, descent_of
from tasks.running.plan import Planned, PlanRun, differences_by_kind
from tasks.running.stage import Stage

HARMLESS = ("code", "libs")
"""What may differ without being forced."""
FORCED = ("section", "version")
"""What may differ when forced. Other inputs never: the lineage would tell a story that is not true."""


class NotAdopted(Refused):
    """Why an artifact cannot be adopted, a line per reason."""


class AdoptRun(PlanRun):
    """A plan in which an artifact of earlier code stands for a miss, wherever code and libraries are all that differs.

    ``taken`` are these misses with the record of the artifact that can be adopted for each, in the order of the DAG.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.taken: list[tuple[Planned, LineageRecord]] = []
        self._sources: dict[tuple[str, str], str] = {}

    def call(self, stage: Stage, cfg: Section, inputs: Bound) -> Planned:
        plan = super().call(stage, cfg, inputs)
        record = _earlier(self.store, plan) if plan.state == "miss" else None
        if record is None:
            return plan
        self._sources[plan.stage, plan.key] = record["key"]
        path = self.store.directory(plan.stage, record["key"])
        adopted = replace(plan, state="adopt", digest=record["digest"], path=path, seconds=record.get("seconds"))
        self.planned[-1] = adopted
        self.taken.append((adopted, record))
        return adopted

    submit = call

    def files(self, stage: str, key: str) -> Mapping[str, str]:
        return super().files(stage, self._sources.get((stage, key), key))

    def descent(self, made: Made) -> Descent:
        def record_of(place: Place) -> LineageRecord | None:
            return self.store.record((place[0], self._sources.get(place, place[1])))

        return descent_of(record_of, made)


def _earlier(store: Store, plan: Planned) -> LineageRecord | None:
    """The newest artifact of the stage that differs from what is planned in code and libraries alone, and is whole."""
    for record in reversed(list(store.records(plan.stage))):
        fits = not record.get("withdrawn") and not _against(store, record, plan, force=False)
        if fits and store.examine(record["stage"], record["key"]).artifact:
            return record
    return None


def adopt(store: Store, record: LineageRecord, plan: Planned, force: bool = False) -> Artifact:
    """Publish the artifact of ``record`` under the key that ``plan`` computed. Raises NotAdopted with everything that
    speaks against it."""
    if withdrawn := record.get("withdrawn"):
        raise NotAdopted(f"{record['stage']}/{record['key'][:12]} was withdrawn: {withdrawn}")
    against = _against(store, record, plan, force)
    if against:
        hint = "" if _against(store, record, plan, force=True) else "\n--force adopts it all the same"
        raise NotAdopted(
            "\n".join(against) + f"\nmore than code and libraries differs, so today's bytes would too{hint}"
        )
    problems = store.verify(record["stage"], record["key"])
    if problems:
        raise NotAdopted("\n".join(problems))
    found = differences_by_kind(record.get("identity", {}), plan.identity or {})
    with store.lease(plan.stage, plan.key) as lease:
        made = store.lookup(plan.stage, plan.key)
        if made is None:
            _link(store.directory(record["stage"], record["key"]), store.partial(plan.stage, plan.key))
            lease.confirm()
            lines = [line for kind, lines in found.items() if kind != "inputs" for line in lines]
            made = store.publish(plan.stage, plan.key, _record(store, record, plan, lines))
    return made


def _against(store: Store, record: LineageRecord, plan: Planned, force: bool) -> list[str]:
    """What speaks against taking ``record`` for ``plan``, a line each. An option that came later, at its default,
    is a matter of code."""
    if "identity" not in record:
        return [f"{record['stage']}/{record['key'][:12]}: its lineage does not tell how it was made"]
    found = differences_by_kind(record["identity"], plan.identity or {}, plan.usual)
    found["inputs"] = _other_inputs(store, record, plan)
    return [
        line
        for kind, lines in found.items()
        if kind not in HARMLESS and not (force and kind in FORCED)
        for line in lines
    ]


def _other_inputs(store: Store, record: LineageRecord, plan: Planned) -> list[str]:
    """Inputs of other content. They are compared by the digests in lineage and not by name: how a stage calls its
    inputs, and whether it declares an ancestor that it always read, is a matter of code."""
    known = _digests(record["inputs"])
    todo = [(entry["stage"], entry["key"]) for entry in record["inputs"]]
    seen = set(todo)
    while todo:
        ancestor = store.record(todo.pop())
        for entry in ancestor["inputs"] if ancestor else ():
            known |= _digests([entry])
            if (place := (entry["stage"], entry["key"])) not in seen:
                seen.add(place)
                todo.append(place)
    changed = [e["name"] for e in plan.listed if not _digests([e]) <= known]
    gone = {e["name"] for e in record["inputs"] if not _digests([e]) <= _digests(plan.listed)}
    return [f"input {name} changed" for name in dict.fromkeys([*changed, *sorted(gone)])]


def _digests(entries: Sequence[Input]) -> set[str]:
    """Digests of artifacts, and of each source for what comes from outside."""
    return {
        digest for e in entries for digest in ([s["digest"] for s in e["sources"]] if "sources" in e else [e["digest"]])
    }


def _record(store: Store, old: LineageRecord, plan: Planned, differences: list[str]) -> dict[str, Any]:
    """The lineage of the adopted artifact: today's identity and inputs, the numbers and the run of the one that made
    the bytes."""
    told: Identity = {**old}
    kept = {name: told[name] for name in ("resources", "metrics", "seconds", "run") if name in told}
    return {
        **kept,
        "kind": plan.kind,
        "identity": plan.identity,
        "inputs": plan.listed,
        "base": plan.base,
        "sources": store.sources_of(plan.listed),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "adopted_from": {
            "stage": old["stage"],
            "key": old["key"],
            "digest": old["digest"],
            "created": old["created"],
            "differences": differences,
        },
    }


def _link(source: Path, target: Path) -> None:
    """The files of an artifact again in ``target``, without its records and checkpoints; what a failed attempt left
    there goes."""
    shutil.rmtree(target)

    def skip(directory: str, names: list[str]) -> set[str]:
        if Path(directory) == source:
            return set(names) & set(RECORDS)
        return {"checkpoints"} if Path(directory) == source / VOLATILE else set()

    shutil.copytree(source, target, ignore=skip, copy_function=_link_or_copy)
    (target / VOLATILE).mkdir(exist_ok=True)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
