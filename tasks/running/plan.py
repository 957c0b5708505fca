"""What a run would do, without doing it: hit or miss for every stage, and why.

A miss is explained by the nearest earlier artifact of the same stage: the config field, the code file, the library
or the input that differs, and what building it cost then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tasks.running.run import Run
from tasks.running.stage import Stage, key_of

FILES_SHOWN = 8
"""Changed files that a plan names one by one; of more it says how many."""


@dataclass
class Planned:
    """A stage call as planned. ``digest`` is known for a hit only; ``identity``, ``listed`` (inputs) and ``base`` when
    all inputs are."""

    stage: str
    state: str
    reasons: list[str]
    key: str = ""
    digest: str | None = None
    seconds: float | None = None
    path: Path | None = None
    identity: dict[str, Any] | None = None
    listed: list[dict[str, Any]] = field(default_factory=list)
    base: str | None = None
    kind: str = ""

    def result(self) -> Planned:
        return self


class PlanRun(Run):
    """A run in which calling a stage only looks it up."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.planned: list[Planned] = []

    def call(self, stage: Stage, cfg: Any, inputs: dict[str, Any]) -> Planned:
        plan = self._look(stage, cfg, inputs)
        self.planned.append(plan)
        self.after(stage.name)
        return plan

    submit = call

    def files(self, stage: str, key: str) -> Mapping[str, str]:
        """Path and sha256 of every file of an artifact that the plan counts on."""
        return self.store.files(stage, key)

    def _look(self, stage: Stage, cfg: Any, inputs: dict[str, Any]) -> Planned:
        earlier = list(self.store.records(stage.name))
        unknown = [name for name, value in inputs.items() if value.digest is None]
        if unknown:
            cost = earlier[-1]["seconds"] if earlier else None
            return Planned(stage.name, "depends", [f"on the bytes of {', '.join(unknown)}, made anew"], seconds=cost)
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
        )
        if stage.name in self.refresh:
            return replace(plan, reasons=["refresh asked for"], seconds=earlier[-1]["seconds"] if earlier else None)
        look = self.store.examine(stage.name, plan.key)
        if look.artifact and look.record:
            return replace(
                plan,
                state="hit",
                reasons=[look.why or "unchanged"],
                digest=look.artifact.digest,
                seconds=look.record["seconds"],
                path=look.artifact.path,
            )
        reasons, cost = why(identity, earlier)
        return replace(plan, reasons=[look.why] if look.why else reasons, seconds=cost)


def why(identity: dict[str, Any], earlier: list[dict[str, Any]]) -> tuple[list[str], float | None]:
    """The differences to the nearest of the earlier artifacts, and what that one took to build (seconds)."""
    if not earlier:
        return ["never built"], None
    nearest = min(reversed(earlier), key=lambda r: len(differences(r["identity"], identity)))
    found = differences(nearest["identity"], identity)
    return found or [f"{nearest['stage']}/{nearest['key'][:12]} was removed or damaged"], nearest["seconds"]


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Readable differences between two identities, most telling first."""
    return [line for lines in differences_by_kind(old, new).values() for line in lines]


def differences_by_kind(old: dict[str, Any], new: dict[str, Any]) -> dict[str, list[str]]:
    """Readable differences by the part of the identity they are in: section, inputs, code, libs, version."""
    before, after = flatten(old["section"]), flatten(new["section"])
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


def _differing(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]


def flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested config as dotted names."""
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, dict):
            flat |= flatten(item, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = item
    return flat


def _short(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "…"
