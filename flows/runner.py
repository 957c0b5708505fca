"""``pipeline run``: services up, the flow, what it shows and what it leaves the user with."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from flows.console import Watch, duration, summary_lines
from flows.services import ensure_mlflow, ensure_prefect
from pipeline.data.jsonl import read_jsonl
from storage.places import home
from tasks.running.run import WATCHERS

QUIET = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "true",
}
"""Prefect shows stage lines in its own UI; on this terminal our console speaks."""


def run(args: Any) -> int:
    """Run the flow of the parsed command line; prints progress and a summary, or with ``--json`` one object."""
    out = Console(file=sys.stderr if args.json else sys.stdout, highlight=False, soft_wrap=True)
    os.environ.update(QUIET)
    os.environ["PREFECT_API_URL"] = ensure_prefect(home(), wait=False)  # boots while Prefect is imported here
    tracking_ui = None if args.json else ensure_mlflow(home(), wait=False)
    from flows.full_pipeline import full_pipeline

    ensure_prefect(home())

    out.print(f"[bold]full-pipeline[/] {args.preset} {' '.join(args.overrides)}", markup=True)
    watch = Watch(out)
    WATCHERS.append(watch)
    try:
        with watch:
            result = full_pipeline(args.preset, args.overrides, args.until, args.refresh)
    except Exception as error:
        for line in readable(error):
            out.print(line, style="red", markup=False)
        out.print(
            "Run the same command again to go on from here: finished stages are cached, training resumes from its"
            " checkpoint."
        )
        return 1
    finally:
        WATCHERS.remove(watch)
    if args.json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        _summary(out, result, args, tracking_ui)
    return 0


def command() -> str:
    """How to call this command line from here: by name where it is on the path, else as it was called."""
    return "pipeline" if shutil.which("pipeline") else os.path.relpath(sys.argv[0])


def readable(error: BaseException) -> list[str]:
    """An error as lines for a person: what failed and why, no traceback."""
    text = str(error).strip() or type(error).__name__
    return [f"error: {line}" if i == 0 else f"  {line}" for i, line in enumerate(text.splitlines())]


SCORES = (
    ("bits_per_byte", "held-out bits per byte", "{:.3f}"),
    ("answers_training", "training questions right", "{:.0%}"),
    ("answers_heldout", "held-out paraphrases right", "{:.0%}"),
    ("choices", "multiple choice right", "{:.0%}"),
    ("preferences", "preferred answer likelier", "{:.0%}"),
)


def score_lines(metrics: dict[str, Any]) -> list[str]:
    """The models side by side, from the evaluate stage's flat metrics (``<model>.<score>``); no lines without any."""
    models = [
        name for name in ("base", "sft", "dpo") if f"{name}.bits_per_byte" in metrics or f"{name}.choices" in metrics
    ]
    if not models:
        return []
    lines = ["  " + " " * 28 + "".join(f"{name:>9}" for name in models)]
    for score, label, form in SCORES:
        cells = [metrics.get(f"{name}.{score}") for name in models]
        if any(cell is not None for cell in cells):
            lines.append(
                f"  {label:<28}" + "".join(f"{form.format(cell) if cell is not None else '–':>9}" for cell in cells)
            )
    return [*lines, ""]


def sample_lines(evaluated: Path) -> list[str]:
    """Two held-out questions of each language with the last model's answer, right or wrong; not chosen for looks."""
    answers = list(read_jsonl(evaluated / "answers.jsonl"))
    lines: list[str] = []
    for lang in ("zh", "en"):
        asked = [a for a in answers if a["lang"] == lang and a["set"] != "training"]
        for answer in asked[:: max(1, len(asked) // 2)][:2]:
            model = next(name for name in ("dpo", "sft", "base") if name in answer["said"])
            lines += [
                f"  > {answer['question']}",
                f"    {answer['said'][model] or '(nothing)'}  {'✓' if answer['right'][model] else '✗'}",
            ]
    return [*(["  asked what it never saw in training:"] if lines else []), *lines, *([""] if lines else [])]


def _summary(out: Console, result: dict[str, Any], args: Any, tracking_ui: str | None) -> None:
    stages = result["stages"]
    cached = sum(s["state"] == "cached" for s in stages)
    saved = sum(s["built_seconds"] for s in stages if s["state"] == "cached")
    rows = [
        (
            "stages",
            f"{len(stages) - cached} ran, {cached} from cache" + (f" (saved {duration(saved)})" if cached else ""),
        ),
        ("time", duration(result["seconds"])),
    ]
    by_name = {s["name"]: s for s in stages}
    if (funnel := home() / "runs" / result["run_id"] / "funnel.html").is_file():
        rows += [("documents", str(funnel))]
    if "report" in by_name:
        rows += [("report", str(Path(by_name["report"]["path"]) / "report.html"))]
    if "export" in by_name:
        rows += [("model", by_name["export"]["path"])]
    rows += [
        ("Prefect", os.environ["PREFECT_API_URL"].removesuffix("/api") + f"/runs/flow-run/{result['flow_run_id']}")
    ]
    if tracking_ui:
        rows += [("MLflow", _run_page(tracking_ui, result.get("mlflow") or {}))]
    if "dpo" in by_name or "sft" in by_name or "export" in by_name:
        rows += [("talk to it", f"{command()} chat {args.preset}")]
    rows += [("made from", f"{command()} lineage {args.preset}")]
    out.print()
    seen = by_name.get("evaluate")
    for line in [
        *(score_lines(seen["metrics"]) + sample_lines(Path(seen["path"])) if seen else []),
        *summary_lines(rows),
    ]:
        out.print(line, markup=False, soft_wrap=True)


def _run_page(base: str, tracking: dict[str, Any]) -> str:
    if not tracking.get("parent_run_id"):
        return base
    return f"{base}/#/experiments/{tracking['experiment_id']}/runs/{tracking['parent_run_id']}"
