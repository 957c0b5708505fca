"""One pipeline run: its directory, its events, and what calling a stage means while it lasts.

The flow is straight code that calls stages. What a call does is decided by the run it happens in: ``PrefectRun``
(tasks/running/stage.py) builds or takes from cache, ``PlanRun`` (tasks/running/plan.py) only says what would happen.
"""

from __future__ import annotations

import contextlib
import contextvars
import fcntl
import json
import logging
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, Unpack, overload

from pipeline.config.resources import Resources
from storage.files import write_json
from storage.places import ROOT, home
from storage.store import StoreError, open_store
from tasks.running.events import (
    ComparisonFields,
    DecisionFields,
    FinishedFields,
    Listener,
    NoteFields,
    ProgressFields,
    RunFinishedFields,
    StartedFields,
    Told,
)
from tasks.running.gate import Verdict, found
from tasks.running.inputs import Descent, Made, descent_of
from tasks.running.seeds import Seeds, siblings

log = logging.getLogger(__name__)
STAMP = "%Y%m%d-%H%M%S"
"""How an id of a run begins."""
_current: contextvars.ContextVar[Any] = contextvars.ContextVar("run")


def current() -> Any:
    """The run that is going on. Raises LookupError when a stage is called outside any."""
    return _current.get()


@contextlib.contextmanager
def entered(run: Any) -> Generator[None]:
    """Stage calls inside the context are calls of ``run``."""
    token = _current.set(run)
    try:
        yield
    finally:
        _current.reset(token)


def descent(made: Made) -> Descent:
    """What the lineage records of the current run's store say ``made`` was made from."""
    return current().descent(made)


def seeds(scores: Made) -> Any:
    """The runs that differ from that of ``scores`` by their seeds alone (tasks/running/seeds.py); None without any."""
    return current().seeds(scores)


def verdict(section: Any, model: Made, scores: Made) -> Any:
    """What ``evaluate.gate`` says of ``model`` by its ``scores`` (tasks/running/gate.py); None without a gate."""
    return current().verdict(section, model, scores)


WATCHERS: list[Listener] = []
"""Listeners that every new run in this process gets (the command line's console)."""


class Reached(Exception):
    """Raised after the stage that ``until`` names, to leave the straight code of the flow early."""


class Run:
    """State shared by all kinds of run: store, resources, events and their listeners.

    A listener is called with every event (a dict with ``event`` and ``time``); events also go to
    ``<home>/runs/<id>/events.jsonl``, from which the tracker process fills MLflow.
    """

    def __init__(
        self,
        run_id: str,
        resources: Resources,
        until: str | None = None,
        refresh: tuple[str, ...] = (),
        preset: str = "",
    ) -> None:
        self.id, self.resources, self.until, self.refresh, self.preset = run_id, resources, until, refresh, preset
        self.directory = home() / "runs" / run_id
        self.listeners: list[Listener] = []
        self.store = open_store(home() / "store", log=lambda line: self.emit("note", text=line))
        self.stages: dict[str, dict[str, Any]] = {}
        self._lock, self._alive = threading.Lock(), None

    def __enter__(self) -> Run:
        self._token = _current.set(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        _current.reset(self._token)
        if self._alive:
            self._alive.close()
        return kind is Reached

    @overload
    def emit(self, event: Literal["stage_started"], **fields: Unpack[StartedFields]) -> None: ...
    @overload
    def emit(self, event: Literal["stage_finished"], **fields: Unpack[FinishedFields]) -> None: ...
    @overload
    def emit(self, event: Literal["run_finished"], **fields: Unpack[RunFinishedFields]) -> None: ...
    @overload
    def emit(self, event: Literal["comparison"], **fields: Unpack[ComparisonFields]) -> None: ...
    @overload
    def emit(self, event: Literal["decision"], **fields: Unpack[DecisionFields]) -> None: ...
    @overload
    def emit(self, event: Literal["note"], **fields: Unpack[NoteFields]) -> None: ...
    @overload
    def emit(self, event: Literal["progress"], **fields: Unpack[ProgressFields]) -> None: ...
    def emit(self, event: str, **fields: Any) -> None:
        """Record an event and tell the listeners. ``progress`` events are for watching only and not recorded.

        A listener that raises (a display that went away) is told nothing more; the run goes on.
        """
        entry = {"event": event, "time": round(time.time(), 3), **fields}
        with self._lock:
            if event != "progress" and self.directory.is_dir():
                with open(self.directory / "events.jsonl", "a", encoding="utf-8") as f:
                    f.write(json.dumps(entry, ensure_ascii=False) + "\n")
            if event == "stage_finished":
                self.stages[fields["stage"]] = entry
            broken = {listener: error for listener in self.listeners if (error := _told(listener, entry))}
            self.listeners = [listener for listener in self.listeners if listener not in broken]
        for listener, error in broken.items():
            log.warning("%s is told nothing more: %s: %s", listener, type(error).__name__, error)
            self.emit("note", text=f"a display failed and is left out: {type(error).__name__}: {error}")

    def open(self, **facts: Any) -> None:
        """Create the run's directory with ``run.json``: what was asked for, by whom, with which code."""
        self.directory.mkdir(parents=True)
        self._alive = open(self.directory / "alive", "w")  # noqa: SIM115 - held while the run lasts; freed by the system when the process dies
        fcntl.flock(self._alive, fcntl.LOCK_EX)
        write_json(
            self.directory / "run.json",
            {"run_id": self.id, "host": socket.gethostname(), "argv": sys.argv, "git": git_state(), **facts},
        )

    def settle(self) -> None:
        """After the run: keep what Prefect and MLflow noted beside the artifacts where other machines find it."""
        for name, event in self.stages.items():
            if event["state"] == "ran":
                try:
                    self.store.settle(name, event["key"])
                except StoreError as error:
                    self.emit("note", stage=name, text=str(error))
        try:
            self.store.note_run(self.id, [(name, event["key"]) for name, event in self.stages.items()], pinned=False)
        except StoreError as error:
            self.emit("note", text=str(error))

    def stop(self) -> None:
        """End the worker processes of stages that still run in other threads."""
        from tasks.running.processes import stop_all

        stop_all()

    def summary(self, **facts: Any) -> dict[str, Any]:
        """What ``--json`` prints: every stage's state, key, digest, path, seconds and metrics, and the run's ids."""
        stages = [
            {
                "name": name,
                **{k: e[k] for k in ("state", "key", "digest", "path", "seconds", "built_seconds", "metrics")},
            }
            for name, e in self.stages.items()
        ]
        result = {"run_id": self.id, **facts, "seconds": round(facts["seconds"], 3), "stages": stages}
        write_json(self.directory / "summary.json", result)
        return result

    def descent(self, made: Made) -> Descent:
        """What the store's lineage records say ``made`` was made from."""
        return descent_of(self.store.record, made)

    def seeds(self, scores: Made) -> Seeds | None:
        """The scores of runs that differ by their seeds alone, in what can be seen by now."""
        return siblings(self.store, scores)

    def verdict(self, section: Any, model: Made, scores: Made) -> Verdict | None:
        """The gate's verdict, in what it can be seen by now."""
        return found(section.gate, self.preset, model, scores, self.store) if section.gate else None

    def after(self, stage: str) -> None:
        """Leave the flow when ``stage`` is the one to stop at."""
        if stage == self.until:
            raise Reached(stage)


def _told(listener: Listener, entry: Told) -> Exception | None:
    try:
        listener(entry)
    except Exception as error:
        return error
    return None


def is_alive(directory: Path) -> bool:
    """Whether the run of this directory is still going on (on this machine)."""
    try:
        with open(directory / "alive") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def new_run_id() -> str:
    """An id that sorts by time, after those of earlier runs here though the clock was set back, and does not collide
    between machines."""
    stamp = time.strftime(STAMP)
    last = max((path.name[: len(stamp)] for path in (home() / "runs").glob("[0-9]*-*")), default="")
    if last > stamp:
        with contextlib.suppress(ValueError):  # a folder that is no run of ours
            stamp = (datetime.strptime(last, STAMP) + timedelta(seconds=1)).strftime(STAMP)
    return f"{stamp}-{secrets.token_hex(3)}"


def git_state() -> dict[str, Any]:
    """Commit and dirtiness of the project's checkout; empty when it is not one."""

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *args], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return {}
