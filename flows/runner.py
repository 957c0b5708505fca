"""``pipeline run``: services up, the flow, what it shows and what it leaves the user with."""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

from rich.console import Console

from flows.console import Watch, duration, summary_lines
from flows.dag import model_names, of_kind
from flows.environment import say
from flows.scores import score_lines
from flows.services import ensure_mlflow, ensure_prefect, kept_up, run_page, runs_page
from flows.zombies import bury_dead
from pipeline.data.jsonl import read_jsonl
from storage.places import home
from storage.store import StoreError
from tasks.running.run import WATCHERS
from tasks.tracking.tracker import get_ready

QUIET = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "true",
}
"""Prefect shows stage lines in its own UI; on this terminal our console speaks."""


def run(args: argparse.Namespace, out: Console) -> int:
    """Run the flow of the parsed command line; prints progress and a summary to ``out``, or with ``--json`` one
    object."""
    os.environ.update(QUIET)
    get_ready()  # imports MLflow while this process imports Prefect
    os.environ["PREFECT_API_URL"] = api = ensure_prefect(home(), wait=False)  # boots while Prefect is imported here
    tracking_ui = None if args.json else ensure_mlflow(home(), wait=False)
    from flows.full_pipeline import full_pipeline, of_this_process

    if ensure_prefect(home()) != api:  # the server had to move to another port, and Prefect has read the old one
        del os.environ["PREFECT_API_URL"]
        os.execv(sys.executable, sys.orig_argv)
    bury_dead(home(), api)
    watch = Watch(out, args.verbose)
    WATCHERS.append(watch)
    try:
        with watch, kept_up(home(), api), of_this_process():
            result = full_pipeline(args.preset, args.overrides, args.until, args.refresh)
    except Exception as error:
        if args.verbose > 0:
            out.print(traceback.format_exc(), markup=False)
        for line in [*readable(error), advice(error)]:
            out.print(line, style="red" if line.startswith("error") else None, markup=False)
        return 1
    finally:
        WATCHERS.remove(watch)
    if args.json:
        say(result)
    else:
        _summary(out, result, args, tracking_ui, watch.lost)
    return 0


RESUMABLE = {"stopped", "signal", "wall_limit", "no_progress", "no_result", "nodes"}
"""Reasons for which workers end although nothing is wrong with what was asked for."""


def advice(error: BaseException) -> str:
    """What to do after a failure: the same command helps when something from outside ended the run, and else only after
    the change that the error names."""
    kept = "finished stages are cached, training resumes from its checkpoint"
    if _disk_full(error):
        return f"Make room (`{command()} gc --dry-run` lists what no run needs) and run the same command again: {kept}."
    outside = getattr(error, "reason", "") in RESUMABLE or isinstance(
        error, (ConnectionError, TimeoutError, StoreError)
    )
    if outside or type(error).__name__ == "LeaseLost" or "was killed by signal" in str(error):
        return f"Run the same command again to go on from here: {kept}."
    return f"Change what the error names and run again: {kept}."


def _disk_full(error: BaseException) -> bool:
    """Whether a disk ran out of space, here or in a process whose error this one quotes."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT))


def command() -> str:
    """How to call this command line from here: by name where it is on the path, else as it was called."""
    if shutil.which("pipeline"):
        return "pipeline"
    return "python -m flows.cli" if sys.argv[0].endswith("cli.py") else os.path.relpath(sys.argv[0])


def readable(error: BaseException) -> list[str]:
    """An error as lines for a person: what failed and why, no traceback."""
    text = str(error).partition("\nTraceback (most recent call last)")[0].strip() or type(error).__name__
    if _disk_full(error):
        free = shutil.disk_usage(home()).free if home().exists() else 0
        text += f"\nthe disk of {home()} has {free / 1e6:,.0f} MB left"
    return [f"error: {line}" if i == 0 else f"  {line}" for i, line in enumerate(text.splitlines())]


def sample_lines(evaluated: Path) -> list[str]:
    """Two held-out questions of each language with the last model's answer, right or wrong; not chosen for looks."""
    answers = list(read_jsonl(evaluated / "answers.jsonl"))
    lines: list[str] = []
    for lang in ("zh", "en"):
        asked = [a for a in answers if a["lang"] == lang and a["set"] != "training"]
        for answer in asked[:: max(1, len(asked) // 2)][:2]:
            model = next(name for name in reversed(model_names()) if name in answer["said"])
            lines += [
                f"  > {answer['question']}",
                f"    {answer['said'][model] or '(nothing)'}  {'✓' if answer['right'][model] else '✗'}",
            ]
    return [*(["  asked what it never saw in training:"] if lines else []), *lines, *([""] if lines else [])]


def _summary(
    out: Console, result: dict[str, Any], args: argparse.Namespace, tracking_ui: str | None, lost: list[tuple[str, str]]
) -> None:
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
        tracking: dict[str, Any] = result.get("mlflow") or {}
        rows += [("MLflow", run_page(tracking_ui, tracking))]
        if tracking.get("experiment_id"):
            rows += [("all runs", runs_page(tracking_ui, tracking["experiment_id"]))]
    if any(name in by_name for name in (*of_kind("model")[1:], *of_kind("release"))):
        rows += [("talk to it", f"{command()} chat {args.preset}")]
    rows += [("made from", f"{command()} lineage {args.preset}"), ("this run", result["run_id"])]
    if lost:
        out.print("\n  left out")
        for line in summary_lines(lost):
            out.print(f"  {line}", style="yellow", markup=False)
    out.print()
    seen = by_name.get("evaluate")
    for line in [
        *(score_lines(seen["metrics"]) + sample_lines(Path(seen["path"])) if seen else []),
        *summary_lines(rows),
    ]:
        out.print(line, markup=False, soft_wrap=True)
