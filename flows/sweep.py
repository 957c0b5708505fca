"""``pipeline sweep``: the same preset with every combination of some values, compared by one number.

Children are ordinary runs of the flow, one after another in this process. They share every stage whose section and
inputs are the same, so a sweep over a late stage costs that stage alone, and repeating a sweep costs nothing. A child
that fails does not stop the others. ``<home>/sweeps/<id>/`` holds the table and a page; in MLflow the sweep is a run
with its children below it, all with the tag ``sweep``.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import secrets
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from flows.console import Watch, duration, title
from flows.dag import of_kind, stage_names, trains
from flows.environment import say
from flows.runner import QUIET, readable
from flows.services import ensure_prefect
from flows.zombies import bury_dead
from pipeline.config.tree import ConfigError, load
from pipeline.pages.sweep.page import page
from storage.digest import flatten
from storage.files import write_json
from storage.places import home
from storage.store import open_store
from tasks.running.events import Listener, Told
from tasks.running.run import WATCHERS, Run
from tasks.running.sources import asked, withdrawn
from tasks.tracking.tracker import start_tracker

SMALLER = ("loss", "bits", "seconds", "bad", "dropped", "perplexity")
"""A number whose name has one of these words is better when it is smaller."""


@dataclass
class Child:
    """One point of the grid and what became of it."""

    values: dict[str, str]
    state: str = "not run"
    value: float | None = None
    seconds: float = 0.0
    stages: dict[str, str] = field(default_factory=dict[str, str])
    run_id: str | None = None
    error: str | None = None
    curve: str | None = None

    @property
    def overrides(self) -> list[str]:
        return [f"{path}={value}" for path, value in self.values.items()]


def sweep(args: argparse.Namespace) -> int:
    """Run the sweep of the parsed command line. Exit code 1 when a child failed, 2 when what was asked for is wrong."""
    out = title(args)
    metric = args.metric or default_metric(args.overrides, args.until)
    children, problems = checked(args.preset, args.overrides, args.until, metric)
    if problems:
        for line in problems:
            print(f"error: {line}", file=sys.stderr)
        return 2
    os.environ.update(QUIET)
    os.environ["PREFECT_API_URL"] = ensure_prefect(home())
    bury_dead(home(), os.environ["PREFECT_API_URL"])
    record = Run(f"{time.strftime('%Y%m%d-%H%M%S')}-sweep-{secrets.token_hex(2)}", load(args.preset).resources)
    record.directory = home() / "sweeps" / record.id
    record.open(
        preset=args.preset,
        overrides=args.overrides,
        until=args.until,
        metric=metric,
        part="sweep",
        tags={"sweep": record.id},
    )
    tracker, state = start_tracker(record.directory), "cancelled"
    try:
        for i, child in enumerate(children, 1):
            out.print(f"{i} of {len(children)} {' '.join(child.overrides)}", style="bold", markup=False)
            _run(child, args, metric, record.id, out)
        state = "failed" if any(c.error for c in children) else "completed"
    finally:
        ranked = rank(children, metric)
        result = _written(record, args, metric, ranked)
        record.emit("run_finished", state=state, seconds=sum(c.seconds for c in children), error=None)
        tracking = tracker.close(timeout=60)
    if args.json:
        say({**result, "mlflow": tracking})
    else:
        _show(out, ranked, metric, result["page"])
    return 1 if state == "failed" else 0


def axes(overrides: list[str]) -> dict[str, list[str]]:
    """``section.key=a,b`` as {path: [values]}; a comma inside brackets, braces or quotes does not part values."""
    pairs = [text.partition("=") for text in overrides if "=" in text]
    return {path.strip(): _parts(values) for path, _, values in pairs}


def _parts(text: str) -> list[str]:
    parts, depth, quote = [""], 0, ""
    for c in text:
        if quote:
            quote = "" if c == quote else quote
        elif c in "\"'":
            quote = c
        elif c in "[{":
            depth += 1
        elif c in "]}":
            depth -= 1
        if c == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += c
    return [part.strip() for part in parts]


def default_metric(overrides: list[str], until: str | None) -> str:
    """Held-out loss of the last training stage whose section is swept; of the pretraining when none is."""
    swept = [path.split(".")[0] for path, values in axes(overrides).items() if len(values) > 1]
    reached = [
        name
        for name in of_kind("model")
        if until is None or until not in stage_names() or stage_names().index(name) <= stage_names().index(until)
    ]
    return next((f"{name}.val_loss" for name in reversed(reached) if name in swept), "pretrain.val_loss")


def checked(preset: str, overrides: list[str], until: str | None, metric: str) -> tuple[list[Child], list[str]]:
    """The children of the grid, and every problem of any of them, each once."""
    problems: list[str] = []
    if until is not None and until not in stage_names():
        problems.append(f"{until}  no such stage; stages are {', '.join(stage_names())}")
    stage, dot, name = metric.partition(".")
    if stage not in stage_names() or not dot or not name:
        problems.append(f"--metric {metric}  write stage.number, for example pretrain.val_loss")
    elif until in stage_names() and stage_names().index(stage) > stage_names().index(until):
        problems.append(f"--metric {metric}  {stage} comes after --until {until}; choose a number of a stage that runs")
    grid = axes(overrides)
    children = [Child(dict(zip(grid, values, strict=True))) for values in itertools.product(*grid.values())]
    if len(children) < 2:
        problems.append("nothing to compare: give at least one section.key=value,value")
    store = open_store(home() / "store")
    store.check()
    for overrides_of_one in [[text for text in overrides if "=" not in text], *(child.overrides for child in children)]:
        try:
            problems += withdrawn(asked(preset, overrides_of_one, here=trains(until))[1], store)
        except ConfigError as error:
            problems += error.problems
    return children, list(dict.fromkeys(problems))


def _run(child: Child, args: argparse.Namespace, metric: str, sweep_id: str, out: Console) -> None:
    """Run one child through the flow; whatever goes wrong is noted in it."""
    from flows.full_pipeline import full_pipeline

    watch, began = Watch(out, args.verbose), time.monotonic()
    seen: dict[str, dict[str, Any]] = {}

    def note(event: Told) -> None:
        if event["event"] == "stage_finished":
            seen[event["stage"]] = event

    watchers: list[Listener] = [watch, note]
    WATCHERS.extend(watchers)
    try:
        with watch:
            result = full_pipeline(
                args.preset,
                child.overrides,
                args.until,
                [],
                {"sweep": sweep_id, "sweep.child": " ".join(child.overrides)},
            )
        child.state, child.run_id = "done", result["run_id"]
    except Exception as error:
        child.state, child.error = "failed", str(error).strip() or type(error).__name__
        for line in readable(error):
            out.print(line, style="red", markup=False)
    finally:
        for watcher in watchers:
            WATCHERS.remove(watcher)
        child.seconds = round(time.monotonic() - began, 3)
    child.stages = {name: event["state"] for name, event in seen.items()}
    stage, _, name = metric.partition(".")
    if stage in seen and seen[stage]["state"] != "failed":
        value = flatten(seen[stage]["metrics"]).get(name)
        child.value = float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
        child.curve = f"{seen[stage]['path']}/_run/metrics.jsonl"


def rank(children: list[Child], metric: str) -> list[Child]:
    """Best first by the metric; those without it last, in the order of the grid."""
    sign = 1 if any(word in metric.rpartition(".")[2] for word in SMALLER) else -1
    return sorted(children, key=lambda c: (c.value is None, sign * (c.value or 0.0)))


def _written(record: Run, args: argparse.Namespace, metric: str, ranked: list[Child]) -> dict[str, Any]:
    """Write table and page, and tell the tracker to bring them to MLflow."""
    rows = [
        {
            "values": c.values,
            "state": c.state,
            metric: c.value,
            "seconds": c.seconds,
            "stages": c.stages,
            "run_id": c.run_id,
            "error": c.error,
        }
        for c in ranked
    ]
    html, table = record.directory / "sweep.html", record.directory / "sweep.json"
    result = {"sweep": record.id, "preset": args.preset, "metric": metric, "children": rows, "page": str(html)}
    html.write_text(page(f"{args.preset}: {metric}", metric, ranked), "utf-8")
    write_json(table, result)
    record.emit(
        "comparison", files=[str(html), str(table)], metric=metric, runs={c.run_id: c.value for c in ranked if c.run_id}
    )
    return result


def _show(out: Console, ranked: list[Child], metric: str, path: str) -> None:
    """The table, best first, and where the page is."""
    rows = [["", *ranked[0].values, metric, "time", "stages"]]
    for i, c in enumerate(ranked, 1):
        ran = sum(state == "ran" for state in c.stages.values())
        value = f"{c.value:.4f}" if c.value is not None else "failed" if c.error else "-"
        rows.append(
            [
                str(i),
                *c.values.values(),
                value,
                duration(c.seconds),
                f"{ran} ran, {sum(s == 'cached' for s in c.stages.values())} from cache",
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    out.print()
    for row in rows:
        out.print(
            "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), markup=False
        )
    for c in ranked:
        if c.error:
            out.print(f"  {' '.join(c.overrides)}: {c.error.splitlines()[0]}", markup=False, style="red")
    if all(c.value is None and not c.error for c in ranked):
        out.print(
            f"  no child has the number {metric}; `pipeline show {metric.split('.')[0]} --json` lists those there are",
            markup=False,
        )
    out.print(f"\n  page   {path}", markup=False)
