"""Runs as people name them: what a preset's name stands for, the list of runs, and pins that gc respects."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from flows.dag import model_names, of_kind
from flows.processes import read_json
from storage.places import home
from storage.store import open_store
from tasks.running.run import is_alive

SHOWN = (
    ("bits_per_byte", "{:.3f} bits/byte"),
    ("answers_heldout", "answers {:.0%}"),
    ("choices", "choices {:.0%}"),
    ("preferences", "preferences {:.0%}"),
)
"""Scores in the list of runs."""
PIN = "pinned"
"""A file of this name in a run's directory keeps what the run made."""


def model_stages() -> tuple[str, ...]:
    """Stages that leave a model directory, the most finished first."""
    return tuple(reversed(of_kind("model", "release")))


StageFacts: TypeAlias = dict[str, Any]
"""A stage of ``summary.json``: name, state, key, digest, path, seconds, built_seconds, metrics."""


@dataclass
class RunFacts:
    """A run as its directory tells it. ``state``: running, completed, failed, cancelled, or killed when nothing says
    how it ended; ``stages`` are summary.json's."""

    id: str
    preset: str = ""
    overrides: list[str] = field(default_factory=list[str])
    until: str | None = None
    state: str = "killed"
    pinned: bool = False
    scores: dict[str, float] = field(default_factory=dict[str, float])
    stages: list[StageFacts] = field(default_factory=list[StageFacts])

    @property
    def asked(self) -> str:
        """What was asked for: preset, overrides and where it stopped."""
        return " ".join([self.preset, *self.overrides, *(["--until", self.until] if self.until else [])])

    @property
    def model(self) -> StageFacts | None:
        """The most finished model's stage entry."""
        by_name = {s["name"]: s for s in self.stages}
        return next((by_name[name] for name in model_stages() if name in by_name), None)


def runs() -> list[RunFacts]:
    """All runs below this home, the newest first."""
    return [facts(path.parent) for path in sorted((home() / "runs").glob("*/run.json"), reverse=True)]


def facts(directory: Path) -> RunFacts:
    """One run's facts; what is missing or broken in its directory is left out."""
    asked, summary = read_json(directory / "run.json"), read_json(directory / "summary.json")
    found = RunFacts(
        directory.name,
        str(asked.get("preset") or summary.get("preset") or ""),
        list(asked.get("overrides") or []),
        asked.get("until"),
        pinned=(directory / PIN).exists(),
        stages=summary.get("stages") or [],
    )
    found.state = "running" if is_alive(directory) else "completed" if summary else ended(directory) or "killed"
    scored = next((s for s in found.stages if s["name"] == "evaluate"), StageFacts())
    evaluated: dict[str, float] = scored.get("metrics", {})
    last = next((name for name in reversed(model_names()) if f"{name}.bits_per_byte" in evaluated), "")
    found.scores = {
        name: evaluated[f"{last}.{name}"] for name, _ in SHOWN if evaluated.get(f"{last}.{name}") is not None
    }
    return found


def ended(directory: Path) -> str | None:
    """How the events say that a run ended; None when they do not."""
    try:
        with open(directory / "events.jsonl", "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 20_000))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        if '"run_finished"' in line:
            try:
                return str(json.loads(line)["state"])
            except (ValueError, KeyError):
                return None
    return None


def meant(name: str) -> RunFacts | None:
    """The run that a preset's name or a run's id (or its beginning) stands for.

    Of a preset that is the newest run which came to its end with a model, a whole one rather than one that ``--until``
    cut short.
    """
    known = runs()
    by_id = [run for run in known if run.id == name] or [
        run for run in known if len(name) >= 8 and run.id.startswith(name)
    ]
    if len(by_id) == 1:
        return by_id[0]
    of_preset = [run for run in known if _same(run.preset, name) and run.model]
    return next((run for run in of_preset if not run.until), of_preset[0] if of_preset else None)


def describe(run: RunFacts) -> str:
    """Which model a name stands for, in one line."""
    when = f"{run.id[:4]}-{run.id[4:6]}-{run.id[6:8]} {run.id[9:11]}:{run.id[11:13]}" if run.id[:8].isdigit() else ""
    model = run.model or {}
    return f"{model.get('name')}/{str(model.get('key'))[:12]} of run {run.id} ({when}): {run.asked}"


def print_runs(as_json: bool) -> int:
    """A line per run, the newest first: id, state, what was asked for, scores, and what is pinned."""
    known = runs()
    if as_json:
        from flows.environment import say

        say([{key: value for key, value in asdict(run).items() if key != "stages"} for run in known])
        return 0
    for run in known:
        scores = ", ".join(form.format(run.scores[name]) for name, form in SHOWN if name in run.scores)
        print(f"  {run.id}  {'pinned' if run.pinned else '      '}  {run.state:<9}  {run.asked}   {scores}".rstrip())
    print(f"{len(known)} runs in {home() / 'runs'}" + ("" if known else "; `pipeline run tiny` makes one"))
    return 0


def pin(name: str, keep: bool) -> int:
    """Keep what a run made from gc, or no longer."""
    run = meant(name)
    if run is None:
        print(
            f"error: {name}  is no run in {home() / 'runs'} and no preset that has run; `pipeline runs` lists them",
            file=sys.stderr,
        )
        return 2
    mark = home() / "runs" / run.id / PIN
    if keep:
        mark.touch()
    else:
        mark.unlink(missing_ok=True)
    open_store(home() / "store").note_run(run.id, [(s["name"], s["key"]) for s in run.stages], pinned=keep)
    print(f"{'pinned' if keep else 'no longer pinned'}: {run.id}  {run.asked}")
    return 0


def _same(preset: str, name: str) -> bool:
    """Whether two names are of one preset; files by where they lie."""
    files = preset.endswith(".toml") and name.endswith(".toml")
    return preset == name or (files and Path(preset).resolve() == Path(name).resolve())
