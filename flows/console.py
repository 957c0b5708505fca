"""What a person sees while a run goes on: a line per stage, a live bar for the long ones, and a summary at the end.

On a terminal the bars move; into a file or a pipe the same facts come as plain lines, at most one every ten seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from tasks.running.events import Told

QUIET_SECONDS = 10.0
UNITS = {
    "chats": "chats",
    "sft": "chats",
    "preferences": "pairs",
    "reward": "pairs",
    "sample": "prompts",
    "dpo": "pairs",
    "problems": "problems",
    "rl": "problems",
}
"""What a stage counts, where it is not documents."""
KNOBS = {
    ("ingest", "too_long"): "ingest.max_record_mb",
    ("ingest", "sampled_out"): "ingest.sample",
    ("clean", "too_long"): "clean.max_characters",
    ("clean", "too_short"): "clean.min_width",
    ("decontaminate", "contaminated"): "evaluation texts: evaluate.sources, decontaminate.action",
    ("chats", "contaminated"): "evaluation texts: evaluate.sources, decontaminate.action",
    ("preferences", "contaminated"): "evaluation texts: evaluate.sources, decontaminate.action",
    ("shard", "weight"): "shard.weights",
    ("sft", "too_long"): "sft.seq_len",
    ("reward", "too_long"): "reward.seq_len",
    ("sample", "tie"): "sample.min_gap, sample.temperature",
    ("sample", "too_long"): "sample.max_new_tokens",
    ("dpo", "too_long"): "dpo.seq_len",
    ("problems", "contaminated"): "evaluation texts: evaluate.sources, decontaminate.action",
    ("rl", "too_long"): "rl.max_prompt_length",
    ("rl", "nothing_to_judge_by"): "rl.rewards",
}
"""The option behind a loss, by stage and reason."""
LOSSES = ("dropped/", "dropped_", "lost/", "lost_", "lost.")
"""How the name of a metric that counts a loss begins; what follows is the reason."""
LOSS = ("loss", "val_loss")
"""What says nothing of reinforcement learning, where it is about 0 by construction: rewards are shown instead."""


def title(args: argparse.Namespace) -> Console:
    """The console of the parsed command line, after its first line: before anything slow is loaded."""
    out = Console(file=sys.stderr if args.json else sys.stdout, highlight=False, soft_wrap=True)
    if args.verbose >= 0:
        out.print(f"full-pipeline {args.preset} {' '.join(args.overrides)}".rstrip(), style="bold", markup=False)
    return out


def headline(metrics: dict[str, Any], stage: str = "") -> str:
    """The few numbers of a stage that a person wants first, in what it counts (:data:`UNITS`)."""
    parts, unit = list[str](), UNITS.get(stage, "documents")
    came, left = metrics.get("docs_in"), metrics.get("docs_out")
    if came is not None and left is not None:
        more = f"{came:,} {unit}, {left:,} with repeats"  # weights repeat documents
        parts.append(more if left > came else f"{came:,} → {left:,} {unit}")
    elif left is not None:
        parts.append(f"{left:,} {unit}")
    for key, text in (
        ("vocab_size", "{:,} tokens in the vocabulary"),
        ("train_tokens", "{:,} training tokens"),
        ("steps", "{:,} steps"),
        ("headline", "{}"),
        ("val_loss", "held-out loss {:.3f}"),
        ("val_bits_per_byte", "{:.3f} bits/byte"),
        ("tokens_per_second", "{:,.0f} tokens/s"),
        ("mfu", "{:.0%} MFU"),
        ("bytes_out", "{:,} bytes"),
    ):
        if metrics.get(key) is not None and not (key in LOSS and "val_reward" in metrics):
            parts.append(text.format(metrics[key]))
    return ", ".join(parts[:4])


def duration(seconds: float) -> str:
    """Seconds as people say them: 0.4 s, 12 s, 3 min 05 s, 7 h 10 min, 3 d 04 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if hours < 1:
        return f"{minutes} min {int(seconds % 60):02d} s"
    return f"{hours} h {minutes % 60:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24:02d} h"


def losses(event: Told) -> list[str]:
    """What a finished stage left out, a line for each kind: ``38 of 40 conversations dropped: too_long 38
    (sft.seq_len)``."""
    stage, metrics = event["stage"], _metrics(event)
    unit, lines = UNITS.get(stage, "documents"), list[str]()
    reasons: dict[str, float] = {}
    for key, n in metrics.items():
        start = next((start for start in LOSSES if key.startswith(start)), None)
        if start and isinstance(n, (int, float)) and n > 0:
            reasons[key.removeprefix(start)] = n
    if reasons:
        seen = metrics.get("docs_in", metrics.get("records"))
        named = [
            f"{reason} {n:,}" + (f" ({KNOBS[stage, reason]})" if (stage, reason) in KNOBS else "")
            for reason, n in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
        ]
        count = f"{sum(reasons.values()):,}" + (f" of {seen:,}" if seen else "")
        lines.append(f"{count} {unit} dropped: {', '.join(named[:6])}" + (" …" if len(named) > 6 else ""))
    if metrics.get("truncated"):
        lines.append(f"{unit} that lost their oldest exchanges ({stage}.seq_len): {metrics['truncated']:,}")
    if metrics.get("exam_skipped"):
        lines.append(f"lines of evaluation sets that cannot be read (evaluate.sources): {metrics['exam_skipped']:,}")
    return lines + _unread(event)


def _metrics(event: Told) -> dict[str, Any]:
    """What an event says in numbers; nothing when it says none."""
    return event.get("metrics") or {}


RECODED = "recoded_"


def _unread(event: Told) -> list[str]:
    """Files that a source holds and nobody reads, which its statistics list."""
    try:
        stats = json.loads(Path(event["path"], "stats.json").read_text("utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        return []
    unread = _counted(stats, "files_of_unknown_type")
    recoded = [(name, n) for name, n in _counted(stats, "changed") if name.startswith(RECODED)]
    lines = [f"source {name}: files of no form that is read: {n:,}" for name, n in unread]
    return lines + [f"files read as {name.removeprefix(RECODED)}, not UTF-8: {n:,}" for name, n in recoded]


def _counted(stats: dict[str, Any], key: str) -> list[tuple[str, int]]:
    """Counts by source of a part of ``stats.json``; a list counts as its length."""
    found = stats.get(key)
    known = cast(dict[str, int | list[str]], found) if isinstance(found, dict) else {}
    counts = [(name, n if isinstance(n, int) else len(n)) for name, n in known.items()]
    return [(name, n) for name, n in counts if n]


class Left(ProgressColumn):
    """How long a stage will still take, once that can be told."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        left = task.time_remaining
        return Text(f"{duration(left)} left" if left and not task.finished else "")


class Watch:
    """Listens to a run's events and shows them. Use as a context manager around the run.

    ``level`` -1 shows failures and losses only, 1 every metric and place too. ``lost`` collects the losses for the
    summary.
    """

    def __init__(self, console: Console | None = None, level: int = 0) -> None:
        self.console = console or Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self.level = level
        self.lost: list[tuple[str, str]] = []
        self.live = self.console.is_terminal and level >= 0
        self.bars = Progress(
            SpinnerColumn("dots" if self.console.encoding.startswith("utf") else "line"),
            TextColumn("{task.fields[stage]:<14}"),
            BarColumn(24),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            Left(),
            console=self.console,
            transient=True,
            disable=not self.live,
        )
        self.tasks: dict[str, Any] = {}
        self.said: dict[str, float] = {}

    def __enter__(self) -> Watch:
        self.bars.start()
        return self

    def __exit__(self, *_) -> None:
        self.bars.stop()

    def __call__(self, event: Told) -> None:
        handler = getattr(self, f"_{event['event']}", None)
        if handler:
            handler(event)

    def _note(self, event: Told) -> None:
        self._line(f"  {event['text']}", style="yellow")

    def _stage_started(self, event: Told) -> None:
        name = event["stage"]
        if self.live:
            self.tasks[name] = self.bars.add_task("", stage=name, total=None)
        elif self.level >= 0:
            self.said[name] = time.monotonic()
            self._line(f"  {name:<14} started")

    def _progress(self, event: Told) -> None:
        name, done, total = event["stage"], event["done"], event["total"]
        text = f"{done:,}" + (f"/{total:,}" if total else "") + f" {event['unit']}"
        metrics = _metrics(event)
        for key, form in (
            ("reward", "reward {:.3f}"),
            ("val_reward", "held-out reward {:.3f}"),
            ("loss", "loss {:.3f}"),
            ("val_loss", "held-out {:.3f}"),
            ("tokens_per_second", "{:,.0f} tok/s"),
        ):
            told = not (key in LOSS and {"reward", "val_reward"} & set(metrics))
            if told and isinstance(metrics.get(key), (int, float)):
                text += " · " + form.format(metrics[key])
        if self.live and name in self.tasks:
            self.bars.update(self.tasks[name], completed=done, total=total, description=text)
        elif not self.live and self.level >= 0 and time.monotonic() - self.said.get(name, 0) > QUIET_SECONDS:
            self.said[name] = time.monotonic()
            self._line(f"  {name:<14} {text}")

    def _stage_finished(self, event: Told) -> None:
        name, state = event["stage"], event["state"]
        if name in self.tasks:
            self.bars.remove_task(self.tasks.pop(name))
        if state == "failed":
            self.console.print(f"  {name:<14} [bold red]failed[/]  after {duration(event['seconds'])}")
            return
        took = f"saved {duration(event['built_seconds'])}" if state == "cached" else duration(event["seconds"])
        colour = "cyan" if state == "cached" else "green"
        if self.level >= 0:
            self.console.print(f"  {name:<14} [{colour}]{state:<7}[/] {took:>16}   {headline(event['metrics'], name)}")
        if self.level > 0:
            for key, value in sorted(event["metrics"].items()):
                self._line(f"  {'':<14} {key} = {value}")
            self._line(f"  {'':<14} {event['path']}")
        for line in losses(event):
            self.lost.append((name, line))
            self._line(f"  {name:<14} {line}", style="yellow")

    def _line(self, text: str, style: str | None = None) -> None:
        """One line as it is: square brackets in names and paths are no markup."""
        self.console.print(text, style=style, markup=False)


def summary_lines(rows: list[tuple[str, str]]) -> list[str]:
    """Name and value pairs as aligned lines; values (addresses, commands) are never broken."""
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}   {value}" for name, value in rows]
