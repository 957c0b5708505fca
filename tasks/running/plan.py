"""What a run would do, without doing it: hit or miss for every stage, and why.

A miss is explained by the nearest earlier artifact of the same stage: the config field, the code file, the library
or the input that differs. How long it should take is told by the one with the most similar work (cost.py).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline.config.base import Section
from storage.digest import flatten
from storage.lineage import Identity, LineageRecord
from tasks.running.cost import Facts, Work, expected
from tasks.running.events import StageInput
from tasks.running.inputs import Bound
from tasks.running.run import Run
from tasks.running.stage import Stage, key_of

FILES_SHOWN = 8
"""Changed files that a plan names one by one; of more it says how many."""


@dataclass
class Planned:
    """A stage call as planned. ``digest`` is known for a hit only; ``identity``, ``listed`` (inputs), ``usual`` (its
    options' defaults) and ``base`` when all inputs are."""

    stage: str
    state: str
    reasons: list[str]
    key: str = ""
    digest: str | None = None
    seconds: float | None = None
    path: Path | None = None
    identity: Identity | None = None
    listed: list[StageInput] = field(default_factory=list[StageInput])
    base: str | None = None
    kind: str = ""
    usual: dict[str, Any] = field(default_factory=dict[str, Any])

    def result(self) -> Planned:
        return self


class PlanRun(Run):
    """A run in which calling a stage only looks it up."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.planned: list[Planned] = []
        self.facts = Facts()
        self.reads: dict[str, str] = {}
        self.kinds: dict[str, str] = {}
        self.earlier: dict[str, list[LineageRecord]] = {}
        self.lineage = functools.cache(self.store.lineage)

    def call(self, stage: Stage, cfg: Section, inputs: Bound) -> Planned:
        self.facts.sections[stage.name] = cfg.identity()
        if outside := [value.describe() for value in inputs.values() if hasattr(value, "describe")]:
            self.facts.sources.setdefault(stage.name, outside[0])
        self.reads[stage.name] = self._work_of(stage, inputs)
        plan = self._look(stage, cfg, inputs)
        self.planned.append(plan)
        self.after(stage.name)
        return plan

    submit = call

    def files(self, stage: str, key: str) -> Mapping[str, str]:
        """Path and sha256 of every file of an artifact that the plan counts on."""
        return self.store.files(stage, key)

    def _look(self, stage: Stage, cfg: Section, inputs: Bound) -> Planned:
        unknown = [name for name, value in inputs.items() if value.digest is None]
        if unknown:
            reasons = [f"on the bytes of {', '.join(unknown)}, made anew"]
            return Planned(stage.name, "depends", reasons, seconds=self._cost(stage))
        identity = stage.identity(cfg, inputs, self.files)
        plan = Planned(
            stage.name,
            "miss",
            [],
            key_of(identity),
            identity=identity,
            listed=stage.listed(inputs),
            base=stage.base_key(inputs),
            kind=stage.kind,
            usual=flatten(type(cfg)().identity()),
        )
        if stage.name in self.refresh:
            return replace(plan, reasons=["refresh asked for"], seconds=self._cost(stage))
        look = self.store.examine(stage.name, plan.key)
        if look.artifact and look.record:
            return replace(
                plan,
                state="hit",
                reasons=[look.why or "unchanged"],
                digest=look.artifact.digest,
                seconds=look.record.get("seconds"),
                path=look.artifact.path,
            )
        reasons = [look.why] if look.why else why(identity, self._earlier(stage))
        return replace(plan, reasons=reasons, seconds=self._cost(stage))

    def _work_of(self, stage: Stage, inputs: Bound) -> str:
        """The stage whose sources decide how much ``stage`` has to do: that of its records, else of the text."""
        own = [stage.name] if stage.name in self.facts.sources else []
        given = [value.stage for value in inputs.values() if isinstance(value, Planned)]
        records = [name for name in given if self.kinds.get(name) == "records"]
        self.kinds[stage.name] = stage.kind
        return next(iter([*own, *records, *(self.reads[name] for name in given if name in self.reads)]), stage.name)

    def _earlier(self, stage: Stage) -> list[LineageRecord]:
        """Records of earlier builds of a stage, read when the first one is asked for."""
        if stage.name not in self.earlier:
            self.earlier[stage.name] = list(self.store.records(stage.name))
        return self.earlier[stage.name]

    def _cost(self, stage: Stage) -> float | None:
        work = Work(stage.name, stage.kind, self.reads[stage.name])
        return expected(work, self.facts, self.resources, self._earlier(stage), self.lineage)


def why(identity: Identity, earlier: Sequence[LineageRecord]) -> list[str]:
    """The differences to the nearest of the earlier artifacts whose identity is on record."""
    told = [(record["identity"], record) for record in earlier if "identity" in record]
    if not told:
        return ["never built"]
    old, nearest = min(reversed(told), key=lambda pair: len(differences(pair[0], identity)))
    found = differences(old, identity)
    return found or [f"{nearest['stage']}/{nearest['key'][:12]} was removed or damaged"]


def differences(old: Identity, new: Identity) -> list[str]:
    """Readable differences between two identities, most telling first."""
    return [line for lines in differences_by_kind(old, new).values() for line in lines]


def differences_by_kind(
    old: Identity, new: Identity, usual: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, list[str]]:
    """Readable differences by the part of the identity they are in: section, inputs, code, libs, version. ``usual`` are
    values that an option had before it existed, by dotted name."""
    before, after = {**usual, **flatten(old["section"])}, flatten(new["section"])
    before = {name: value for name, value in before.items() if name in after or name not in usual}
    found = {
        "section": [
            f"{new['stage']}.{name}: {_short(before.get(name))} → {_short(after.get(name))}"
            for name in _differing(before, after)
        ]
    }
    found["inputs"] = [f"input {name} changed" for name in _differing(old["inputs"], new["inputs"])]
    files = _differing(old["code"], new["code"])
    shown = files if len(files) <= FILES_SHOWN else [f"of {len(files)} files ({', '.join(files[:3])} …)"]
    found["code"] = [f"code {name} changed" for name in shown]
    found["libs"] = [
        f"library {name}: {old['libs'].get(name)} → {new['libs'].get(name)}"
        for name in _differing(old["libs"], new["libs"])
    ]
    found["version"] = (
        [f"stage version {old['version']} → {new['version']}"] if old["version"] != new["version"] else []
    )
    return found


def _differing(old: Identity, new: Identity) -> list[str]:
    return [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]


def _short(value: object) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "…"
