"""Commands that make one artifact of models: a run in MLflow with its child, model and data, like a pipeline run's.

A command that takes everything from the cache leaves no run: what it shows is the run that made it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from flows.services import mlflow_address, run_page
from pipeline.config.resources import Resources
from storage.places import home
from storage.store import Artifact
from tasks.running.direct import DirectRun
from tasks.running.run import new_run_id
from tasks.tracking.tracker import Tracker, start_tracker

WAIT_SECONDS = 10.0
"""How long a command waits for MLflow before the tracker goes on alone."""


class CommandRun(DirectRun):
    """What ``pipeline COMMAND`` builds, in ``<home>/commands/<id>``; ``preset`` is what its models are filed under."""

    def __init__(self, command: str, resources: Resources, preset: str, refresh: tuple[str, ...] = ()) -> None:
        super().__init__(f"{command}-{new_run_id()}", resources, refresh=refresh, preset=preset)
        self.directory = home() / "commands" / self.id
        self.command, self.tracker, self.began = command, None, time.monotonic()
        self.listeners.append(_progress())

    def begin(self) -> None:
        """Something will be built: the run's directory and its tracker."""
        if self.tracker is None:
            self.open(preset=self.preset, part=self.command)
            self.tracker: Tracker | None = start_tracker(self.directory)

    def __exit__(self, kind: Any, *rest: Any) -> bool:
        if self.tracker is not None:
            state = "completed" if kind is None else "failed" if issubclass(kind, Exception) else "cancelled"
            said = None if kind is None else f"{kind.__name__}: {rest[0]}"
            self.emit("run_finished", state=state, seconds=round(time.monotonic() - self.began, 3), error=said)
            self.tracker.close(timeout=WAIT_SECONDS)
            self.settle()
        return super().__exit__(kind, *rest)


def mlflow_page(artifact: Artifact) -> str | None:
    """The page of the run in MLflow that made an artifact; None when MLflow's server is not known, or has none."""
    try:
        signed = json.loads((artifact.path / "_run" / "mlflow.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    base = mlflow_address(home())
    known = {"parent_run_id": signed.get("run_id"), "experiment_id": signed.get("experiment_id")}
    return run_page(base, known) if base and all(known.values()) else None


def preset_of(model: Path) -> str:
    """What a model is filed under: the preset of the run that made it, else its folder's name."""
    try:
        run = json.loads((model / "lineage.json").read_text("utf-8"))["run"]
        kind = "runs" if (home() / "runs" / run).is_dir() else "commands"
        return Path(json.loads((home() / kind / run / "run.json").read_text("utf-8"))["preset"]).stem
    except (OSError, ValueError, KeyError, TypeError):
        return model.resolve().name


def _progress() -> Any:
    """A listener that says on standard error how far it is and what is left."""
    last = [0.0]

    def listen(event: dict[str, Any]) -> None:
        from flows.console import duration

        if event["event"] == "note":
            print(f"  {event['text']}", file=sys.stderr)
        if event["event"] != "progress" or not event.get("metrics"):
            return
        if time.monotonic() - last[0] < (1 if sys.stderr.isatty() else 15) and event["done"] != event["total"]:
            return
        last[0] = time.monotonic()
        left = event["metrics"].get("seconds_left")
        text = f"  {event['done']:,} of {event['total']:,} · {duration(left)} left" if left else f"  {event['done']:,}"
        print(text.ljust(60), end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)

    return listen
