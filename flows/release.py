"""``pipeline quantize`` and ``pipeline prune``: smaller forms of any model, each with what it costs; cached by content,
tracked and with lineage like the stages of a run."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from flows.environment import say
from flows.evaluate import model_of
from flows.inspect import find_record, store
from flows.tracked import CommandRun, mlflow_page, preset_of
from pipeline.config.release import PruneSection, QuantizeSection
from pipeline.config.resources import Resources
from storage.digest import sha256_file
from storage.errors import Refused
from storage.lineage import LineageRecord, ancestry, parse
from storage.store import Artifact
from tasks.running.inputs import Folder

Inputs = tuple["Artifact | Folder", "Artifact | None", "Artifact | None", "Folder | None"]
"""Model, token dataset, evaluation and text: what both stages take."""


def quantize(args: argparse.Namespace) -> int:
    """Make the forms of the parsed command line; exit code."""
    from pipeline.release.forms import check_forms
    from tasks.quantize import quantize as stage

    if problems := check_forms(args.to):
        raise Refused("--to: " + "; ".join(problems))
    inputs = _given(args)
    method = args.method or ("gptq" if inputs[1] or inputs[3] else "search")
    cfg = QuantizeSection(forms=args.to, group=args.group, method=method)
    return _made(args, "quantize", stage, cfg, inputs)


def prune(args: argparse.Namespace) -> int:
    """Make the smaller model of the parsed command line; exit code."""
    from tasks.prune import prune as stage

    inputs = _given(args)
    if not inputs[1] and not inputs[3]:
        raise Refused(f"{args.model}  pruning needs texts to measure by; give --text FILE")
    cfg = PruneSection(layers=args.layers, heads=args.heads, channels=args.ffn)
    return _made(args, "prune", stage, cfg, inputs)


def _made(args: Any, command: str, stage: Any, cfg: Any, inputs: Inputs) -> int:
    """Build it or take it from the cache, copy it to ``--out``, and show what it costs."""
    if args.out and Path(args.out).expanduser().resolve() == inputs[0].path.resolve():
        raise Refused(f"--out {args.out} is the model itself")
    made: Artifact | None = None
    refresh = (command,) if args.refresh else ()
    with CommandRun(command, Resources(), preset_of(inputs[0].path), refresh) as run:
        made = stage(cfg, *inputs)
    assert made is not None  # leaving early is for runs with --until
    where = _copied(made, Path(args.out)) if args.out else made.path
    metrics = run.store.lineage(made.stage, made.key).get("metrics", {})
    costs = json.loads((made.path / "costs.json").read_text("utf-8"))
    if args.json:
        say({"out": str(where), "artifact": str(made.path), "costs": costs})
        return 0
    from pipeline.release.card import forms_table

    if "parameters_before" in metrics:
        fewer = 1 - metrics["parameters"] / metrics["parameters_before"]
        print(
            f"{metrics['parameters']:,.0f} of {metrics['parameters_before']:,.0f} parameters ({fewer:.0%} fewer); loss"
            f" {metrics['loss_before']:.4f} → {metrics['loss']:.4f} nats a token on the texts that it was measured by"
        )
    print("\n".join([*forms_table(costs), f"{made.ref} in {where}"]))
    if page := mlflow_page(made):
        print(f"in MLflow: {page}")
    return 0


def _copied(made: Artifact, out: Path) -> Path:
    """The artifact's own files as a folder of the user's."""
    out = out.expanduser().resolve()
    notes = shutil.ignore_patterns("_run", "lineage.json", "manifest.json", "prefect.json")
    shutil.copytree(made.path, out, ignore=notes, dirs_exist_ok=True)
    return out


def _given(args: argparse.Namespace) -> Inputs:
    """What the command line names, by content. Raises Refused in words."""
    model = model_of(args.model, args.force)
    try:
        scores = find_record(args.scores) if args.scores else None
    except LookupError as error:
        raise Refused(str(error.args[0])) from None
    if scores and scores.get("kind") != "scores":
        raise Refused(f"--scores {args.scores}  is a {scores['stage']} artifact, not an evaluation")
    text = Path(args.text).expanduser() if args.text else None
    if text and not text.is_file():
        raise Refused(f"--text {args.text}  no such file")
    tokens = None if text else _tokens(model.path)
    if tokens is None and text is None:
        print("no text to measure by: bits per byte and KL are left out (--text FILE)", file=sys.stderr)
    folder = Folder(text.name, sha256_file(text), text.resolve()) if text else None
    return model, tokens, _artifact(scores) if scores else None, folder


def _artifact(record: LineageRecord) -> Artifact:
    place = record["stage"], record["key"]
    return Artifact(*place, record["digest"], store().directory(*place))


def _tokens(model: Path) -> Artifact | None:
    """The token dataset that a model of the store was trained on; None for one that lies elsewhere."""
    try:
        told = json.loads((model / "lineage.json").read_text("utf-8"))
        record: LineageRecord = parse(json.dumps(told), told["stage"], told["key"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    for one in reversed(ancestry(store().record, (record["stage"], record["key"]))):
        if one.get("kind") == "tokens" and store().examine(one["stage"], one["key"]).state != "damaged":
            return _artifact(one)
    return None
