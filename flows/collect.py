"""``pipeline gc``: one policy over the store, a shared bucket, and what MLflow and Prefect keep of runs.

What stays: everything that the newest runs, pinned ones, those going on and the champions reach, with all it was made
from, and what commands such as ``pipeline evaluate`` made of that; so a lineage record is never removed while something
made from it is there. The rest goes: from this machine; with ``--shared`` from the bucket, by the runs of all machines;
with ``--history`` also the runs themselves, from this machine's list, from MLflow and from Prefect, unless something
that they made stays.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flows.inspect import store
from flows.runs import PIN, facts, model_stages
from storage.champions import Champions
from storage.lineage import LineageRecord, Place, Records
from storage.places import home
from storage.s3 import S3Store
from storage.store import Store
from tasks.running.run import is_alive

YOUNG = 86400.0
"""Artifacts that have been in a bucket for fewer seconds, by its server's clock, stay: a run on another machine may be
about to need them."""
FORGOTTEN_DAYS = 14
"""Checkpoints in the bucket of a training that nobody has gone on with for so long are taken away."""


@dataclass(frozen=True)
class Policy:
    """The runs that are kept and those that are not, newest first, and the artifacts that stay."""

    kept_runs: list[Path]
    other_runs: list[Path]
    kept: set[Place]


def collect(keep: int, dry_run: bool, shared: bool = False, history: bool = False) -> int:
    """Delete what the newest ``keep`` runs, pinned ones, those going on and champions do not reach: artifacts, damaged
    copies, abandoned attempts.

    Failed runs count: what they finished is their way back, and what they were building can be resumed.
    """
    place = store()
    records = {(r["stage"], r["key"]): r for r in place.records()}
    policy = decide(place, keep, records)
    freed, gone = _sweep(place, policy, records, dry_run)
    for forgotten in place.forgotten(FORGOTTEN_DAYS):
        print(f"  {'would delete' if dry_run else 'deleted'} checkpoints in {forgotten.address}")
        if not dry_run:
            forgotten.remove()
    print(
        f"{gone} directories, {freed / 1e6:,.1f} MB; {len(policy.kept & records.keys())} artifacts of"
        f" {len(policy.kept_runs)} runs kept in {place.root}"
        + ("; `pipeline pin RUN` keeps a run's model" if dry_run and gone else "")
    )
    code = 0
    if shared:
        code = _sweep_bucket(place, policy, keep, dry_run)
    if history:
        _forget(policy, records, dry_run)
    return code


def decide(place: Store, keep: int, records: Records) -> Policy:
    """Which runs and artifacts stay, by the runs of this machine."""
    runs = [path.parent for path in sorted((home() / "runs").glob("*/run.json"), reverse=True)]
    runs += [p.parent for p in (home() / "runs").glob("*/events.jsonl") if not (p.parent / "run.json").is_file()]
    told = {run: touched(run / "events.jsonl") for run in sorted(runs, reverse=True)}
    newest = [run for run in told if told[run]][:keep]
    kept = [run for run in told if run in newest or (run / PIN).exists() or is_alive(run)]
    start = [node for run in kept for node in told[run]]
    reached = closure([*start, *Champions(place).kept()], records)
    reached |= made_by_commands(reached, records, keep)
    return Policy(kept, [run for run in told if run not in kept], reached)


def made_by_commands(reached: set[Place], records: Records, keep: int) -> set[Place]:
    """What commands made (scores, forms, smaller models) of artifacts that stay; of folders outside the store what the
    newest ``keep`` commands made."""
    commands = sorted((home() / "commands").glob("*/run.json"), key=lambda path: path.stat().st_mtime)
    names = [path.parent.name for path in commands]
    found: set[Place] = set()
    for node in sorted(records, key=lambda node: records[node]["created"]):  # one may be made of another
        maker = records[node].get("run")
        if maker in names:
            given = [(i["stage"], i["key"]) for i in records[node]["inputs"] if i["key"]]
            stays = all(place in reached or place in found for place in given) if given else maker in names[-keep:]
            found |= {node} if stays else set()
    return found


def closure(start: Iterable[Place], records: Records) -> set[Place]:
    """These artifacts and all that they were made from."""
    todo, reached = list(start), set[Place]()
    while todo:
        node = todo.pop()
        if node not in reached:
            reached.add(node)
            record = records.get(node)
            todo += [(given["stage"], given["key"]) for given in (record["inputs"] if record else ())]
    return reached


def touched(events: Path) -> list[Place]:
    """Stage and key of everything that a run built, took from the cache or tried to build."""
    found: set[Place] = set()
    try:
        lines = events.read_text("utf-8").split("\n")
    except OSError:
        return []
    for line in lines:
        if '"stage' in line and line.endswith("}"):
            event = json.loads(line)
            if event["event"] in ("stage_started", "stage_finished"):
                found.add((event["stage"], event["key"]))
    return sorted(found)


def _sweep(place: Store, policy: Policy, records: Records, dry_run: bool) -> tuple[int, int]:
    """Delete from this machine; bytes and directories."""
    doomed = [place.directory(*node) for node in records if node not in policy.kept]
    place.sweep()
    doomed += [p for p in place.leftovers() if not (p.suffix == ".partial" and (p.parent.name, p.stem) in policy.kept)]
    freed = sum(f.stat().st_size for d in doomed for f in d.rglob("*") if f.is_file())
    for path in sorted(doomed):
        lost = _model_of(records.get((path.parent.name, path.name)))
        print(f"  {'would delete' if dry_run else 'deleted'} {path.parent.name}/{path.name[:28]}{lost}")
        if not dry_run:
            shutil.rmtree(path)
    return freed, len(doomed)


def _model_of(record: LineageRecord | None) -> str:
    """What is lost with a model: of which run it is, and what was asked for there; nothing for other artifacts."""
    if not record or record["stage"] not in model_stages():
        return ""
    directory = home() / "runs" / str(record.get("run"))
    return f"  MODEL of run {record.get('run')}: {facts(directory).asked}".rstrip(": ")


def _sweep_bucket(place: Store, policy: Policy, keep: int, dry_run: bool) -> int:
    """Delete from the bucket what the newest runs of all machines, and this machine's kept ones, do not reach."""
    if not isinstance(place, S3Store):
        print("error: --shared  there is no bucket: PIPELINE_STORE is not set", file=sys.stderr)
        return 2
    records = place.everywhere()
    runs = place.noted_runs()
    newest = [runs[name] for name in sorted(runs, reverse=True)[:keep]]
    pinned = [run for run in runs.values() if run["pinned"]]
    start = [(stage, key) for run in [*newest, *pinned] for stage, key in run["nodes"]]
    reached = closure(start, records) | policy.kept
    young = place.younger_than(YOUNG)
    kept = closure((node for node in records if node in reached or node in young), records)
    doomed = [node for node in place.shared_places() if node not in kept]
    for stage, key in doomed:
        print(f"  {'would delete' if dry_run else 'deleted'} {stage}/{key[:28]} in {place.bucket.address}")
        if not dry_run:
            place.remove_shared(stage, key)
    print(f"{len(doomed)} artifacts of {place.bucket.address}, by {len(runs)} runs of all machines")
    return 0


def _forget(policy: Policy, records: Records, dry_run: bool) -> None:
    """Remove runs that are not kept, and of whose making nothing stays, here, in MLflow and in Prefect."""
    makers = {record.get("run") for node, record in records.items() if node in policy.kept}
    names = [run.name for run in policy.other_runs if run.name not in makers]
    for name in names:
        print(
            f"  {'would forget' if dry_run else 'forgot'} run {name}: {facts(home() / 'runs' / name).asked}".rstrip(
                ": "
            )
        )
    if dry_run or not names:
        print(f"{len(names)} runs to forget" if dry_run else "no run to forget")
        return
    from flows.processes import ServiceError
    from flows.services import forget_flow_runs
    from tasks.tracking.forget import forget

    try:
        flows = f"{forget_flow_runs(home(), names)} flow runs in Prefect"
    except ServiceError as error:
        flows = f"none in Prefect ({error})"
    print(f"forgot {len(names)} runs: {forget(home(), names)} runs in MLflow, {flows}")
    for name in names:
        shutil.rmtree(home() / "runs" / name)
