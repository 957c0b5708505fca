"""What a person sees while a run goes on: a line per stage, a live bar for the long ones, and a summary at the end.

On a terminal the bars move; into a file or a pipe the same facts come as plain lines, at most one every ten seconds.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

QUIET_SECONDS = 10.0


def headline(metrics: dict[str, Any]) -> str:
    """The few numbers of a stage that a person wants first."""
    parts = []
    if "docs_in" in metrics and "docs_out" in metrics:
        parts.append(f"{metrics['docs_in']:,} → {metrics['docs_out']:,} documents")
    elif "docs_out" in metrics:
        parts.append(f"{metrics['docs_out']:,} documents")
    for key, text in (
        ("vocab_size", "{:,} tokens in the vocabulary"),
        ("train_tokens", "{:,} training tokens"),
        ("steps", "{:,} steps"),
        ("val_loss", "held-out loss {:.3f}"),
        ("val_bits_per_byte", "{:.3f} bits/byte"),
        ("tokens_per_second", "{:,.0f} tokens/s"),
        ("mfu", "{:.0%} MFU"),
        ("headline", "{}"),
        ("bytes_out", "{:,} bytes"),
    ):
        if metrics.get(key) is not None:
            parts.append(text.format(metrics[key]))
    return ", ".join(parts[:4])


def duration(seconds: float) -> str:
    """Seconds as people say them: 0.4 s, 12 s, 3 min 05 s."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


class Watch:
    """Listens to a run's events and shows them. Use as a context manager around the run."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self.live = self.console.is_terminal
        self.bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[stage]:<14}"),
            BarColumn(24),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
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

    def __call__(self, event: dict[str, Any]) -> None:
        handler = getattr(self, f"_{event['event']}", None)
        if handler:
            handler(event)

    def _note(self, event: dict[str, Any]) -> None:
        self.console.print(f"  [yellow]{event['text']}[/]" if self.live else f"  {event['text']}", markup=self.live)

    def _stage_started(self, event: dict[str, Any]) -> None:
        name = event["stage"]
        if self.live:
            self.tasks[name] = self.bars.add_task("", stage=name, total=None)
        else:
            self.said[name] = time.monotonic()
            self.console.print(f"  {name:<14} started")

    def _progress(self, event: dict[str, Any]) -> None:
        name, done, total = event["stage"], event["done"], event["total"]
        text = f"{done:,}" + (f"/{total:,}" if total else "") + f" {event['unit']}"
        metrics = event.get("metrics") or {}
        for key, form in (
            ("loss", "loss {:.3f}"),
            ("val_loss", "held-out {:.3f}"),
            ("tokens_per_second", "{:,.0f} tok/s"),
        ):
            if isinstance(metrics.get(key), (int, float)):
                text += " · " + form.format(metrics[key])
        if self.live and name in self.tasks:
            self.bars.update(self.tasks[name], completed=done, total=total, description=text)
        elif not self.live and time.monotonic() - self.said.get(name, 0) > QUIET_SECONDS:
            self.said[name] = time.monotonic()
            self.console.print(f"  {name:<14} {text}")

    def _stage_finished(self, event: dict[str, Any]) -> None:
        name, state = event["stage"], event["state"]
        if name in self.tasks:
            self.bars.remove_task(self.tasks.pop(name))
        if state == "failed":
            self.console.print(f"  {name:<14} [bold red]failed[/]  after {duration(event['seconds'])}")
            return
        took = f"saved {duration(event['built_seconds'])}" if state == "cached" else duration(event["seconds"])
        colour = "cyan" if state == "cached" else "green"
        self.console.print(f"  {name:<14} [{colour}]{state:<7}[/] {took:>16}   {headline(event['metrics'])}")


def summary_lines(rows: list[tuple[str, str]]) -> list[str]:
    """Name and value pairs as aligned lines; values (addresses, commands) are never broken."""
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}   {value}" for name, value in rows]
