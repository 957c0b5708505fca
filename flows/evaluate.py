"""``pipeline evaluate``: any model folder on any exams, cached by content, with lineage."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from flows.console import duration
from flows.environment import say
from flows.inspect import find_model
from flows.scores import score_lines
from flows.tracked import CommandRun, mlflow_page, preset_of
from pipeline.config.evaluation import EvaluateSection
from pipeline.config.resources import Resources
from pipeline.config.training import check_model, content_digest
from pipeline.evaluation.standard.named import recognised, told
from storage.digest import sha256_file, sha256_json
from storage.errors import Refused
from storage.store import Artifact, open_store
from tasks.measure import measure, names_of
from tasks.running.inputs import Folder, Several
from tasks.running.sources import SourceSet

ITEMS = ("standard", "choices", "answers", "preferences")


def evaluate(args: argparse.Namespace) -> int:
    """Score the models of the parsed command line; prints a table, or with ``--json`` one object."""
    known, others, wrong = recognised(args.exams, args.shots)
    if wrong:
        raise Refused("\n".join(f"--exams  {line}" for line in wrong))
    lines = [told(source, args.shots) for source in known]
    lines += [f"{source.name} is an own exam: asked through the chat template" for source in others]
    for line in lines:
        print(f"  {line}", file=sys.stderr, flush=True)
    models = [model_of(ref) for ref in args.models]
    many = args.limit or 1_000_000
    section = EvaluateSection(
        shots=args.shots,
        limit=args.limit,
        batch=args.batch,
        choices=many,
        heldout_questions=many,
        training_questions=many,
        preferences=many,
    )
    on = Resources(device=args.device, dtype=args.dtype)
    preset = preset_of(models[-1].path)
    made: Artifact | None = None
    with CommandRun("evaluate", on, preset, ("measure",) if args.refresh else ()) as run:
        own = SourceSet("exam", tuple(others)) if others else None
        made = measure(section, Several(tuple(models)), own, SourceSet("exam", tuple(known)) if known else None)
    assert made is not None  # leaving early is for runs with --until
    record = run.store.lineage(made.stage, made.key)
    metrics = record.get("metrics", {})
    if args.out:
        _write_items(made.path, Path(args.out))
    if args.json:
        say({"artifact": str(made.path), "metrics": metrics})
        return 0
    names = names_of([model.path for model in models])
    for line in score_lines(metrics, names) + _measures(metrics, names):
        print(line)
    print(f"  items: {args.out or made.path}\n  {duration(record.get('seconds', 0.0))}, {made.ref}")
    if page := mlflow_page(made):
        print(f"  in MLflow: {page}")
    return 0


def model_of(ref: str, force: bool = False) -> Artifact | Folder:
    """The model that a reference means, by its content; a withdrawn one only with ``force``. Raises Refused for one
    that cannot be computed here."""
    try:
        path = find_model(ref, force)
        check_model(str(path))
    except LookupError as error:
        raise Refused(str(error.args[0])) from None
    if (path / "lineage.json").is_file():
        store = open_store(path.parent.parent)
        record = store.own((path.parent.name, path.name))
        if record:
            return Artifact(record["stage"], record["key"], record["digest"], path)
    texts = [
        sha256_file(path / name) for name in ("tokenizer.json", "tokenizer_config.json") if (path / name).is_file()
    ]
    return Folder(path.resolve().name, sha256_json([content_digest(path), *texts]), path.resolve())


def _measures(metrics: dict[str, Any], names: list[str]) -> list[str]:
    """Every measure of every exam with its standard error, as the harness's table has them."""
    lines: list[str] = []
    for name in names:
        keys = [k for k in metrics if k.startswith(f"{name}.exam.") and k.endswith(".stderr")]
        for key in (key.removesuffix(".stderr") for key in keys):
            exam = key.partition(".exam.")[2]
            parts = [
                f"{measure} {metrics[f'{key}.{measure}']:.4f}"
                for measure in ("acc", "acc_norm", "acc_bytes", "exact_match", "flexible", "macro")
                if f"{key}.{measure}" in metrics
            ]
            chance = f"chance {metrics[f'{key}.chance']:.2f}" if metrics.get(f"{key}.chance") else ""
            facts = [f"n = {metrics[f'{key}.n']:,.0f}", f"stderr {metrics[f'{key}.stderr']:.4f}", *parts, chance]
            lines.append(f"  {name}  {exam}: {', '.join(fact for fact in facts if fact)}")
    return [*lines, ""] if lines else []


def _write_items(scored: Path, out: Path) -> None:
    """All items of all kinds as one file of JSON lines."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "wb") as sink:
        for name in ITEMS:
            if (scored / f"{name}.jsonl").is_file():
                with open(scored / f"{name}.jsonl", "rb") as part:
                    shutil.copyfileobj(part, sink)
