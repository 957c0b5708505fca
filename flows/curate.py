"""Saying what may be used: adopt an artifact of older code, withdraw what descends from a source or an artifact."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from flows.inspect import files_called, find_record, store
from storage.lineage import LineageRecord, describe
from storage.places import home
from storage.withdrawal import rule_for


def adopt(ref: str, preset: str | None, overrides: list[str], force: bool, look: bool = False) -> int:
    """Accept the artifact ``ref`` for the key that its stage has today under a preset (default: that of the run which
    made it); where ``ref`` is a preset, everything of a run of it. ``look``: say what would be done and do nothing."""
    from pipeline.config.tree import ConfigError, presets
    from tasks.running.adopt import NotAdopted
    from tasks.running.adopt import adopt as take

    try:
        if preset is None and (ref in presets() or ref.endswith(".toml")):
            return _adopt_run(ref, overrides, look)
        record = find_record(ref)
        if preset is None:
            preset, overrides = _asked(record)
        plan = _planned(record["stage"], preset, overrides)
        if plan.state == "hit":
            print(f"{plan.stage}/{plan.key[:12]} is in the store already; nothing to adopt")
            return 0
        if look:
            print(f"{record['stage']}/{record['key'][:12]} would be adopted if code and libraries are all that differs")
            return 0
        made = take(store(), record, plan, force)
    except (LookupError, ConfigError, NotAdopted) as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    print(f"{made.ref} adopted from {record['stage']}/{record['key'][:12]}, sha256 {made.digest[:12]}")
    return 0


def _adopt_run(preset: str, overrides: list[str], look: bool) -> int:
    """Adopt for every stage of a run what earlier code made, where code and libraries are all that differs."""
    from flows.dag import full
    from pipeline.config.tree import load
    from tasks.running.adopt import AdoptRun
    from tasks.running.adopt import adopt as take
    from tasks.running.sources import given

    config = load(preset, overrides)
    run = AdoptRun("adopt", config.resources, preset=Path(preset).stem)
    with run:
        full(config, given(config))
    taken = {plan.stage: record for plan, record in run.taken}
    for plan in run.planned:
        said = "in the store" if plan.state == "hit" else "\n".ljust(17).join(plan.reasons)
        if plan.stage in taken:
            said = f"takes over {plan.stage}/{taken[plan.stage]['key'][:12]} of {taken[plan.stage]['created']}"
        print(f"  {plan.stage:<14}{said}")
    if look or not run.taken:
        print(f"{len(run.taken)} artifacts can be adopted" if run.taken else "nothing to adopt")
        return 0
    for plan, record in run.taken:
        take(run.store, record, plan)
    print(f"{len(run.taken)} artifacts adopted; code and libraries are all that differed")
    return 0


def _asked(record: LineageRecord) -> tuple[str, list[str]]:
    """Preset and overrides of the run that made an artifact. Raises LookupError when it is not known here."""
    path = home() / "runs" / str(record.get("run")) / "run.json"
    if not path.is_file():
        raise LookupError(
            f"{record['stage']}/{record['key'][:12]}  its run {record.get('run')} is not known here; give the preset:"
            " pipeline adopt REF PRESET"
        )
    facts = json.loads(path.read_text("utf-8"))
    return facts["preset"], facts["overrides"]


def _planned(stage: str, preset: str, overrides: list[str]) -> Any:
    """What a run would do at a stage. Raises LookupError when the stage is not part of it, or depends on what is not
    built."""
    from flows.dag import full
    from pipeline.config.tree import load
    from tasks.running.plan import PlanRun
    from tasks.running.sources import given

    config = load(preset, overrides)
    run = PlanRun("plan", config.resources, preset=Path(preset).stem)
    with run:
        full(config, given(config))
    plan = next((p for p in run.planned if p.stage == stage), None)
    if plan is None:
        raise LookupError(f"{stage}  is no part of {preset} with these overrides")
    if plan.state == "depends":
        missing = next(p.stage for p in run.planned if p.state == "miss")
        raise LookupError(
            f"{stage}  depends on {missing}, which has nothing under today's key either; adopt or run {missing} first"
        )
    return plan


def invalidate(what: str, reason: str | None) -> int:
    """Withdraw a source or an artifact and all that descends from it."""
    if not reason or not reason.strip():
        print("error: say why with --reason; it is shown wherever the artifacts are asked for", file=sys.stderr)
        return 2
    place = store()
    place.check()
    records = place.everywhere()
    try:
        rule = rule_for(records, what, reason.strip()) or rule_for(
            records, what, reason.strip(), files_called(records, what)
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if rule is None:
        print(
            f"error: {what}  no source, no file of one and no artifact in the store is called so; give a source's name"
            " or digest, a file's path or sha256, or stage/key",
            file=sys.stderr,
        )
        return 2
    place.withdrawals.add(rule)
    for stage, key, _ in rule["artifacts"]:
        assert stage and key  # the run alone may be unknown
        print(f"  {stage}/{key[:12]}  {describe(records[stage, key])}")
    print(
        f"withdrawn: {rule['what']}"
        + (f" (the file with sha256 {rule['files'][0][:12]})" if rule["files"] else "")
        + (f" ({len(rule['sources'])} version(s) of the source)" if rule["sources"] else "")
        + f" and {len(rule['artifacts'])} artifacts made from it; --undo takes it back"
    )
    return 0


def undo(what: str) -> int:
    """Take a withdrawal back."""
    place = store()
    place.check()
    named, what = [rule["what"] for rule in place.withdrawals.rules()], what.rstrip("/") or what
    found = [
        name for name in named if name == what or ("/" in what and (name.startswith(what) or what.startswith(name)))
    ]
    if len(found) != 1:
        print(
            f"error: {what}  {'means several withdrawals' if found else 'is not withdrawn'}; withdrawn are:"
            f" {', '.join(named) or 'none'}",
            file=sys.stderr,
        )
        return 2
    place.withdrawals.remove(found[0])
    print(f"no longer withdrawn: {found[0]}")
    return 0
