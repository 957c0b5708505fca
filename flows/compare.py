"""``pipeline diff`` and ``pipeline why``: what made two runs differ, and what made a stage run; first cause first."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flows.console import headline
from flows.dag import model_names, stage_names
from flows.environment import say
from flows.inspect import find_record, store
from flows.processes import read_json
from flows.runs import RunFacts, StageFacts, meant, runs
from storage.digest import flatten
from storage.lineage import LineageRecord, read_listings
from storage.places import home
from storage.store import Store
from tasks.running.causes import Cause, Library, causes, own_differences
from tasks.running.plan import differences

Stages = Mapping[str, StageFacts]
"""Stage entries of a run by name: state, key, digest, metrics."""


@dataclass(frozen=True)
class Change:
    """A stage that is not the same in two runs. ``what``: ``caused`` here, ``follows`` from an earlier change, another
    key with the ``same bytes``, or only ``in a`` or ``in b``."""

    stage: str
    what: str
    lines: list[str]
    headlines: tuple[str, str]


def diff(first: str, second: str | None, as_json: bool) -> int:
    """Print what differs between two runs (without ``second``: between ``first`` and the run of its preset before it):
    causes by stage in the order of the DAG, then settings outside the keys, then scores."""
    a, b = (_run(first), _run(second)) if second else _last_two(first)
    if a is None or b is None:
        return 2
    stages = (entries(a), entries(b))
    changes = compared(library(store()), *stages)
    settings, scores = _settings(a, b), _scores(*stages)
    if as_json:
        say(
            {
                "a": a.id,
                "b": b.id,
                "stages": [asdict(change) for change in changes],
                "settings": settings,
                "scores": {name: list(pair) for name, pair in scores.items()},
            }
        )
        return 0
    print(f"a  {a.id}  {a.state:<9}  {a.asked}\nb  {b.id}  {b.state:<9}  {b.asked}\n")
    for change in changes:
        _print_change(change)
    same = len(stages[0].keys() & stages[1].keys()) - sum(
        c.what in ("caused", "follows", "same bytes") for c in changes
    )
    print(f"{same} stages are the same artifact in both.")
    _print_table("outside the cache keys", settings, _as_it_is)
    _print_table("scores", scores, _score)
    return 0


def why(what: str, run: str | None, as_json: bool) -> int:
    """Print why a stage ran (or did not) in a run, or what tells an artifact from the nearest one before it."""
    known = [_run(run)] if run else [r for r in runs() if what in entries(r)]
    if run and known[0] is None:
        return 2
    of = known[0] if known and what in stage_names() else None
    entry = entries(of).get(what) if of else None
    try:
        record = find_record(f"{what}/{entry['key']}" if entry else what)
    except LookupError as error:
        known_stages = f"; stages are {', '.join(stage_names())}" if "/" not in what else ""
        print(f"error: {error}{known_stages}", file=sys.stderr)
        return 2
    nearest = _nearest(store(), record)
    found = causes(library(store()), nearest, record) if nearest else []
    if as_json:
        say(
            {
                "artifact": f"{record['stage']}/{record['key']}",
                "nearest": nearest and nearest["key"],
                "causes": _json(found),
            }
        )
        return 0
    made = f"{record['stage']}/{record['key'][:12]}"
    if of and entry:
        taken = "" if record.get("run") == of.id else f"; made by run {record.get('run')}"
        print(f"{what} of run {of.id} ({of.asked}): {entry['state']}, {made}{taken}")
    if nearest is None:
        print(f"{made} is the first artifact of {record['stage']} in {home() / 'store'}.")
        return 0
    print(f"{made} differs from the nearest one before it, {nearest['key'][:12]} of run {nearest.get('run')}, in:")
    for cause in found:
        for line in cause.lines:
            print(f"  {cause.stage:<14} {line}")
    if not found:
        print(f"  nothing on record: {nearest['key'][:12]} was removed, damaged, or built again by --refresh")
    return 0


def library(place: Store) -> Library:
    """The records and listings of a store."""
    return Library(place.record, lambda at: read_listings(place.directory(*at)))


def entries(run: RunFacts) -> Stages:
    """The stages of a run; of one that did not end well, what its events say of them."""
    if run.stages:
        return {entry["name"]: entry for entry in run.stages}
    found: dict[str, StageFacts] = {}
    try:
        lines = (home() / "runs" / run.id / "events.jsonl").read_text("utf-8").split("\n")
    except OSError:
        return found
    for line in lines:
        if '"stage_finished"' in line and line.endswith("}"):
            event = json.loads(line)
            if event.get("state") != "failed":
                found[event["stage"]] = event
    return found


def compared(at: Library, a: Stages, b: Stages) -> list[Change]:
    """The stages that differ, in the order of the DAG."""
    changes: list[Change] = []
    for stage in [name for name in stage_names() if name in a or name in b]:
        before, after = a.get(stage), b.get(stage)
        if before is None or after is None:
            only = before or after or {}
            lines = [f"only in {'b' if before is None else 'a'}"]
            changes.append(
                Change(stage, f"in {'b' if before is None else 'a'}", lines, _headlines(before, after, only))
            )
        elif before["key"] != after["key"]:
            old, new = at.record((stage, before["key"])), at.record((stage, after["key"]))
            lines = own_differences(at, old, new) if old and new else ["its record is no longer in the store"]
            same = before["digest"] == after["digest"]
            what = "caused" if lines else "follows"
            changes.append(Change(stage, "same bytes" if same else what, lines, _headlines(before, after)))
        elif before["digest"] != after["digest"]:
            lines = ["made twice from the same inputs with other bytes (--refresh, or another machine's arithmetic)"]
            changes.append(Change(stage, "caused", lines, _headlines(before, after)))
    return changes


def _headlines(*stages: StageFacts | None) -> tuple[str, str]:
    told = [headline(entry["metrics"], entry.get("name", "")) if entry else "" for entry in stages[:2]]
    return told[0], told[1]


def _print_change(change: Change) -> None:
    note = {"follows": "follows from the above", "same bytes": "but the bytes are the same"}.get(change.what, "")
    for i, line in enumerate(change.lines or [note]):
        print(
            f"  {change.stage if i == 0 else '':<14} {line}"
            + (f"  ({note})" if i == 0 and note and change.lines else "")
        )
    a, b = change.headlines
    if a != b:
        print(f"  {'':<14}   a: {a or '–'}\n  {'':<14}   b: {b or '–'}")


def _print_table(title: str, rows: Mapping[str, Sequence[Any]], form: Any) -> None:
    if not rows:
        return
    width = max(len(name) for name in rows)
    print(f"\n{title}")
    for name, (a, b) in rows.items():
        moved = f"  {b - a:+.4g}" if isinstance(a, (int, float)) and isinstance(b, (int, float)) else ""
        print(f"  {name:<{width}}  {form(a)} → {form(b)}{moved}")


def _settings(a: RunFacts, b: RunFacts) -> dict[str, tuple[str, str]]:
    """Resources, code commit and machine, where they differ."""
    told = [_facts(run) for run in (a, b)]
    return {
        name: (str(told[0].get(name, "unset")), str(told[1].get(name, "unset")))
        for name in sorted(told[0].keys() | told[1].keys())
        if told[0].get(name) != told[1].get(name)
    }


def _as_it_is(value: Any) -> Any:
    return value


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _facts(run: RunFacts) -> dict[str, Any]:
    record = read_json(home() / "runs" / run.id / "run.json")
    if not record:
        return {}
    git: dict[str, Any] = record.get("git") or {}
    code = f"{git['commit'][:12]}{' with changes' if git.get('dirty') else ''}" if git.get("commit") else "unknown"
    config: dict[str, Any] = record.get("config") or {}
    resources = flatten({"resources": config.get("resources") or {}})
    return {"code": code, "host": record.get("host"), **resources}


def _scores(a: Stages, b: Stages) -> dict[str, tuple[float | None, float | None]]:
    """Every score of a model that is not the same in both, by ``model.score``; counts and chance lines left out."""
    sides: list[dict[str, float]] = [(side.get("evaluate") or StageFacts()).get("metrics") or {} for side in (a, b)]
    names = dict.fromkeys(name for side in sides for name in side)
    return {
        name: (sides[0].get(name), sides[1].get(name))
        for name in names
        if name.partition(".")[0] in model_names()
        and not name.endswith((".n", ".chance", ".low", ".high"))
        and sides[0].get(name) != sides[1].get(name)
    }


def _nearest(place: Store, record: LineageRecord) -> LineageRecord | None:
    """The artifact made before this one whose identity is nearest to its own."""
    own = record.get("identity")
    earlier = [
        other
        for other in place.records(record["stage"])
        if other["key"] != record["key"] and other["created"] <= record["created"] and "identity" in other
    ]
    if not own or not earlier:
        return None
    return min(reversed(earlier), key=lambda other: len(differences(other.get("identity") or {}, own)))


def _json(found: Sequence[Cause]) -> list[dict[str, Any]]:
    return [asdict(cause) for cause in found]


def _last_two(name: str) -> tuple[RunFacts | None, RunFacts | None]:
    """A run, second, and first the one of the same preset that ended well before it."""
    run = _run(name)
    older = [r for r in runs() if run and r.id < run.id and r.preset == run.preset and r.state == "completed"]
    if run and not older:
        print(f"error: {run.id}  has no run of {run.preset} before it; name two runs", file=sys.stderr)
    return (older[0] if older else None), run


def _run(name: str) -> RunFacts | None:
    run = meant(name)
    if run is None:
        print(
            f"error: {name}  is no run in {home() / 'runs'} and no preset that has run; `pipeline runs` lists them",
            file=sys.stderr,
        )
    return run
