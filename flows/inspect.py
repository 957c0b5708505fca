"""Looking at what the store holds: plans, artifacts, lineage, models, verification and garbage collection."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from flows.console import duration, headline
from flows.dag import of_kind
from storage.digest import sha256_file
from storage.lineage import (
    FileUse,
    LineageRecord,
    Records,
    ancestors,
    descendants,
    file_users,
    parse,
    read_listings,
    source_users,
)
from storage.places import home
from storage.store import Store, open_store
from tasks.running.run import is_alive


def model_stages() -> tuple[str, ...]:
    """Stages that leave a model directory, the last one first."""
    return tuple(reversed(of_kind("model", "release")))


def store() -> Store:
    return open_store(home() / "store", log=lambda line: print(line, file=sys.stderr))


def print_plan(planned: list[Any], as_json: bool) -> int:
    """A line per stage: hit, miss or depends, why, and what it took when it was built last."""
    if as_json:
        print(
            json.dumps(
                [
                    {
                        "stage": p.stage,
                        "state": p.state,
                        "reasons": p.reasons,
                        "key": p.key,
                        "digest": p.digest,
                        "seconds": p.seconds,
                    }
                    for p in planned
                ],
                ensure_ascii=False,
            )
        )
        return 0
    for plan in planned:
        cost = f"~{duration(plan.seconds)}" if plan.seconds is not None else ""
        print(
            f"  {plan.stage:<14} {plan.state:<8} {cost:>14}   {'; '.join(plan.reasons[:4])}"
            + (" …" if len(plan.reasons) > 4 else "")
        )
    spent = sum(p.seconds or 0 for p in planned if p.state != "hit")
    hits = sum(p.state == "hit" for p in planned)
    print(
        f"\n{hits} of {len(planned)} stages are cached."
        + (f" The rest took {duration(spent)} when built last." if spent else "")
    )
    return 0


def explain_config(config: Any) -> str:
    """Every option as ``path = value`` with its meaning."""
    from pydantic import TypeAdapter

    lines: list[str] = []

    def walk(node: Any, prefix: str) -> None:
        for name, info in TypeAdapter(type(node)).json_schema()["properties"].items():
            value = getattr(node, name)
            if hasattr(type(value), "model_fields") or hasattr(value, "__dataclass_fields__"):
                walk(value, f"{prefix}{name}.")
            else:
                meaning = info.get("description", "").replace("``", "").rstrip(".")
                lines.append(
                    f"{prefix}{name} = {json.dumps(value, default=str, ensure_ascii=False)}   # {meaning}".rstrip(" #")
                )

    walk(config, "")
    return "\n".join(lines)


def show(ref: str, as_json: bool) -> int:
    """Print one artifact's record and files."""
    found = store().find(ref)
    if len(found) != 1:
        return _not_one(ref, found)
    record = found[0]
    path = store().directory(record["stage"], record["key"])
    if as_json:
        print(json.dumps({**record, "path": str(path)}, ensure_ascii=False))
        return 0
    print(
        f"{record['stage']}/{record['key']}\n  digest   {record['digest']}\n  path     {path}\n  made    "
        f" {record['created']} in {duration(record['seconds'])}, run {record['run']}\n  what    "
        f" {headline(record['metrics'])}"
    )
    if "adopted_from" in record:
        print(
            f"  adopted  from {record['stage']}/{record['adopted_from']['key'][:12]}, although"
            f" {'; '.join(record['adopted_from']['differences'])}"
        )
    if record.get("withdrawn"):
        print(f"  WITHDRAWN  {record['withdrawn']}")
    for given in record["inputs"]:
        print(f"  from     {given['name']}: {given['stage']}/{given['key'][:12] or given['digest'][:12]}")
    for listing in read_listings(path):
        for file in listing["files"]:
            print(f"  {file['bytes']:>12,}  {listing['name']}: {file['path']}  sha256 {file['sha256'][:12]}")
    for rel, size in store().contents(record["stage"], record["key"]).items():
        print(f"  {size:>12,}  {rel}")
    return 0


def _not_one(ref: str, found: list[dict[str, Any]]) -> int:
    if not found:
        print(
            f"error: {ref}  nothing in {home() / 'store'} has that name; give a stage, stage/key or the start of a"
            " digest",
            file=sys.stderr,
        )
    else:
        names = ", ".join(f"{r['stage']}/{r['key'][:12]}" for r in found[:8])
        print(f"error: {ref}  means {len(found)} artifacts: {names}; give more of the key", file=sys.stderr)
    return 2


def newest_run(preset: str) -> dict[str, Any] | None:
    """The newest run of a preset whose summary names a model."""
    for path in sorted((home() / "runs").glob("*/summary.json"), reverse=True):
        summary = json.loads(path.read_text())
        if summary.get("preset") == preset and any(s["name"] in model_stages() for s in summary["stages"]):
            return summary
    return None


def find_record(ref: str) -> dict[str, Any]:
    """The record that a preset's name, a stage or a reference means. Raises LookupError in words."""
    summary = newest_run(ref)
    if summary:
        by_name = {s["name"]: s for s in summary["stages"]}
        stage = next(name for name in model_stages() if name in by_name)
        found = [r for r in store().records(stage) if r["key"] == by_name[stage]["key"]]
    else:
        found = store().find(ref)
    if len(found) == 1:
        return found[0]
    if found:
        raise LookupError(f"{ref}  means {len(found)} artifacts; give more of the key")
    raise LookupError(
        f"{ref}  is no preset that has run, no artifact and no model directory; `pipeline run {ref}` makes one if it is"
        " a preset"
    )


def find_model(ref: str, force: bool = False) -> Path:
    """The directory of a model: a path, a preset's newest model, or a reference. Raises LookupError in words, for a
    withdrawn one too."""
    path = Path(ref)
    if (path / "config.json").is_file():
        record = _told(path / "lineage.json")
    else:
        record = find_record(ref)
        if record["stage"] not in model_stages():
            raise LookupError(f"{ref}  is a {record['stage']} artifact, not a model")
        look = store().examine(record["stage"], record["key"])
        if look.state == "damaged":
            raise LookupError(f"{ref}  {look.why}; `pipeline run` makes it anew")
        path = store().directory(record["stage"], record["key"])
    if record and not force and (why := store().withdrawals.because(record)):
        raise LookupError(f"{ref}  was withdrawn: {why}; --force talks to it all the same")
    return path


def _told(path: Path) -> LineageRecord | None:
    """The lineage record of a directory that lies anywhere; None when it has none."""
    try:
        told = json.loads(path.read_text("utf-8"))
        return parse(json.dumps(told), told["stage"], told["key"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def lineage(ref: str, down: bool, as_json: bool) -> int:
    """Print the tree of what an artifact was made from, or of what was made from it."""
    records = store().everywhere()
    uses: list[FileUse] = []
    try:
        start = [find_record(ref)]
    except LookupError as error:
        start = source_users(records, ref) if down else []
        if not start:
            uses = files_called(records, ref)
            start = list({(u["record"]["stage"], u["record"]["key"]): u["record"] for u in uses}.values())
        if not start:
            print(f"error: {error}", file=sys.stderr)
            return 2
    tree = descendants if down else ancestors
    if uses and not as_json:
        for line in sorted({_file_line(use) for use in uses}):
            print(line)
    if as_json:
        print(json.dumps([tree(records, r) for r in start], ensure_ascii=False))
        return 0
    for record in start:
        _print_tree(tree(records, record), "", True, True)
    return 0


def files_called(records: Records, what: str) -> list[FileUse]:
    """Which artifacts read the file that ``what`` names: by its content when it lies here, else by path, name or start
    of its sha256."""
    place, path = store(), Path(what).expanduser()
    found = file_users(records, lambda at: place.directory(*at), what, sha256_file(path) if path.is_file() else None)
    return found or file_users(records, lambda at: place.directory(*at), what)


def _file_line(use: FileUse) -> str:
    return f"{use['source']}: {use['file']['path']}  {use['file']['bytes']:,} bytes, sha256 {use['file']['sha256']}"


def _print_tree(node: dict[str, Any], indent: str, last: bool, root: bool = False) -> None:
    mark = "" if root else ("└─ " if last else "├─ ")
    label = f"{node['stage']}/{node['key'][:12]}" if node["key"] else f"source {node['name']}"
    print(f"{indent}{mark}{label}  {node.get('what', '')}".rstrip())
    below = indent if root else indent + ("   " if last else "│  ")
    for i, child in enumerate(node["links"]):
        _print_tree(child, below, i == len(node["links"]) - 1)


def verify(ref: str | None) -> int:
    """Hash artifacts again; damaged ones are set aside so that the next run makes them anew."""
    place = store()
    records = place.find(ref) if ref and "/" in ref else list(place.records(ref))
    if ref and not records:
        return _not_one(ref, [])
    damaged = 0
    for record in records:
        problems = place.verify(record["stage"], record["key"])
        print(f"  {record['stage']}/{record['key'][:12]}  {'; '.join(problems) or 'sound'}")
        if problems:
            damaged += 1
            with place.lease(record["stage"], record["key"]):
                place.set_aside(
                    record["stage"], record["key"], f"{record['stage']}/{record['key'][:12]} is damaged ({problems[0]})"
                )
    print(f"{len(records) - damaged} of {len(records)} artifacts are sound")
    return 1 if damaged else 0


def collect(keep: int, dry_run: bool) -> int:
    """Delete what the newest ``keep`` runs and those going on do not reach: artifacts, damaged copies, abandoned
    attempts.

    Failed runs count: what they finished is their way back, and what they were building can be resumed.
    """
    place = store()
    runs = [
        (path.parent, nodes)
        for path in sorted((home() / "runs").glob("*/events.jsonl"), reverse=True)
        if (nodes := _touched(path))
    ]
    todo = [node for i, (directory, nodes) in enumerate(runs) if i < keep or is_alive(directory) for node in nodes]
    records = {(r["stage"], r["key"]): r for r in place.records()}
    kept: set[tuple[str, str]] = set()
    while todo:
        node = todo.pop()
        if node not in kept:
            kept.add(node)
            todo += [(i["stage"], i["key"]) for i in records.get(node, {"inputs": []})["inputs"]]
    doomed = [place.directory(*node) for node in records if node not in kept]
    place.sweep()
    doomed += [p for p in place.leftovers() if not (p.suffix == ".partial" and (p.parent.name, p.stem) in kept)]
    freed = sum(f.stat().st_size for d in doomed for f in d.rglob("*") if f.is_file())
    for path in sorted(doomed):
        print(f"  {'would delete' if dry_run else 'deleted'} {path.parent.name}/{path.name[:28]}")
        if not dry_run:
            shutil.rmtree(path)
    print(f"{len(doomed)} directories, {freed / 1e6:,.1f} MB; {len(kept & records.keys())} artifacts kept")
    return 0


def _touched(events: Path) -> list[tuple[str, str]]:
    """Stage and key of everything that a run built, took from the cache or tried to build."""
    found = set()
    for line in events.read_text("utf-8").split("\n"):
        if '"stage' in line and line.endswith("}"):
            event = json.loads(line)
            if event["event"] in ("stage_started", "stage_finished"):
                found.add((event["stage"], event["key"]))
    return sorted(found)
