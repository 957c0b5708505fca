"""Champions: what the gate decides at the end of a run, and ``pipeline promote``, which shows, decides by hand and goes
back."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from flows.automations import announce
from flows.dag import of_kind
from flows.inspect import find_record
from flows.inspect import store as open_here
from flows.runs import RunFacts, StageFacts, facts, meant
from pipeline.config.tree import Config
from storage.champions import Champions, Condition, Decision, ModelRef
from storage.errors import Refused
from storage.places import home
from tasks.running.gate import Candidate, Verdict, decide, judge, numbers


def promote(run: Any, preset: str, config: Config) -> Decision | None:
    """At the end of a run: decide whether its last model becomes the champion, and tell it as an event. None when the
    run stopped before its models were scored."""
    candidate = candidate_of(Path(preset).stem, run.stages)
    if candidate is None:
        return None
    decision = decide(config.evaluate.gate, candidate, run.id, run.store)
    run.emit("decision", decision=decision)
    for line in told(decision):
        run.emit("note", text=line)
    announce(decision, "\n".join(told(decision)))
    return decision


def candidate_of(preset: str, stages: dict[str, StageFacts]) -> Candidate | None:
    """The last model that a run trained, with its scores; None where there is none of either."""
    done = {name: entry for name, entry in stages.items() if entry["state"] in ("ran", "cached")}
    models = [name for name in of_kind("model") if name in done]
    scored = next((name for name in of_kind("scores") if name in done), None)
    if not models or scored is None:
        return None
    last = done[models[-1]]
    model: ModelRef = {"stage": models[-1], "key": last["key"], "digest": last["digest"]}
    return Candidate(preset, model, numbers(done[scored]["metrics"]), done[scored]["key"])


def told(decision: Decision) -> list[str]:
    """A decision in lines for a person; none where nothing was asked and nothing changed."""
    name = f"{decision['model']['stage']}/{decision['model']['key'][:12]}"
    failed = [c for c in decision["conditions"] if not c["held"]]
    if decision["moved"]:
        before = decision["before"]
        was = f" instead of {before['stage']}/{before['key'][:12]}" if before else ""
        return [f"champion of {decision['preset']}: {name}{was}"]
    if not failed:
        return []
    return [
        f"{name} does not become the champion of {decision['preset']}:",
        *(f"  {c['text']}: {c['why']}" for c in failed),
    ]


def command(ref: str | None, rollback: bool, dry_run: bool, force: bool) -> int:
    """``pipeline promote [MODEL]``: list the champions, make a model champion, or go back. Exit code 1 when the gate
    says no."""
    champions = Champions(open_here())
    if rollback:
        return _rollback(champions, ref, dry_run)
    if ref is None:
        return _list(champions)
    return _by_hand(champions, ref, dry_run, force)


def _list(champions: Champions) -> int:
    for preset in champions.presets():
        now = champions.current(preset)
        print(f"{preset}: {_name(now['model']) if now else 'no champion'}")
        for decision in champions.history(preset):
            what = f"{'moved' if decision['moved'] else 'kept ':<5}  {decision['action']:<8}"
            print(f"  {decision['created']}  {what}  {_name(decision['model'])}  {decision['run']}")
            for condition in decision["conditions"]:
                print(f"      {_mark(condition)} {condition['text']}: {condition['why']}")
    print(f"{len(champions.presets())} presets with decisions in {champions.store.where}")
    return 0


def _rollback(champions: Champions, ref: str | None, dry_run: bool) -> int:
    known = champions.presets()
    preset = Path(ref).stem if ref else known[0] if len(known) == 1 else None
    if preset is None or preset not in known:
        raise Refused(
            f"{ref or '--rollback'}  name the preset whose champion is taken back: {', '.join(known) or 'none yet'}"
        )
    line = champions.line(preset)
    if len(line) < 2:
        raise Refused(f"{preset}  there is no champion before the present one to go back to")
    now, earlier = line[-1], line[-2]
    print(f"champion of {preset}: {_name(earlier['model'])} instead of {_name(now['model'])}")
    if dry_run:
        return 0
    decision: Decision = {**earlier, "action": "rollback", "moved": True, "before": now["model"], "created": _now()}
    champions.add(decision)
    announce(decision, f"{told(decision)[0]}, taken back by hand")
    return _to_mlflow(preset)


def _by_hand(champions: Champions, ref: str, dry_run: bool, force: bool) -> int:
    run, wanted = _meant(ref)
    config = _gate_of(run)
    stages = {entry["name"]: entry for entry in run.stages}
    candidate = candidate_of(Path(run.preset).stem, stages)
    if candidate is None:
        raise Refused(f"{ref}  run {run.id} scored no model; `pipeline run {run.asked}` to its end does")
    if wanted:
        candidate = Candidate(candidate.preset, wanted, candidate.scores, candidate.evaluated)
    verdict, now = judge(config, candidate, open_here()), champions.current(candidate.preset)
    for condition in verdict.conditions:
        print(f"  {_mark(condition)} {condition['text']}: {condition['why']}")
    name = _name(candidate.model)
    if now and now["model"] == candidate.model:
        print(f"{name} is the champion of {candidate.preset} already")
        return 0
    if not verdict.held and not force:
        print(
            f"{name} does not become the champion of {candidate.preset}: its gate does not hold (--force promotes it)"
        )
        return 1
    print(f"champion of {candidate.preset}: {name}" + (f" instead of {_name(now['model'])}" if now else ""))
    if dry_run:
        return 0
    decision = _decision(candidate, verdict, now, run.id)
    champions.add(decision)
    announce(decision, f"{told(decision)[0]}, by hand")
    return _to_mlflow(candidate.preset)


def _decision(candidate: Candidate, verdict: Verdict, now: Decision | None, run: str) -> Decision:
    return {
        "preset": candidate.preset,
        "action": "promote",
        "model": candidate.model,
        "moved": True,
        "before": now["model"] if now else None,
        "conditions": list(verdict.conditions),
        "scores": candidate.own,
        "evaluated": candidate.evaluated,
        "run": run,
        "created": _now(),
    }


def _meant(ref: str) -> tuple[RunFacts, ModelRef | None]:
    """The run that a reference means, and the model if it names one: a preset or a run means its last."""
    if run := meant(ref):
        return run, None
    record = find_record(ref)
    run = facts(home() / "runs" / str(record.get("run")))
    if record["stage"] not in of_kind("model"):
        raise Refused(f"{ref}  is a {record['stage']} artifact; champions are models that were trained")
    if not run.stages:
        raise Refused(f"{ref}  the run that made it is not on record here; name the preset or a run that used it")
    return run, {"stage": record["stage"], "key": record["key"], "digest": record["digest"]}


def _gate_of(run: RunFacts) -> list[str]:
    """The gate that a run's config states."""
    try:
        config = json.loads((home() / "runs" / run.id / "run.json").read_text("utf-8"))["config"]
        return list(config["evaluate"].get("gate", []))
    except (OSError, ValueError, KeyError):
        return []


def _to_mlflow(preset: str) -> int:
    """Let MLflow's alias follow; what it does not take now is made up for later."""
    from tasks.tracking.tracker import follow_champions

    try:
        version = follow_champions(home(), [preset])[preset]
        print(f"MLflow: champion of {preset} is version {version}" if version else "MLflow has no version of it yet")
    except Exception as error:  # whatever MLflow raises: the store has it
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
        print(f"MLflow could not be told ({reason}); the next run or promote makes up for it", file=sys.stderr)
    return 0


def _name(model: ModelRef) -> str:
    return f"{model['stage']}/{model['key'][:12]}"


def _mark(condition: Condition) -> str:
    return "✓" if condition["held"] else "✗"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
