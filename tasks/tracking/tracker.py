"""Tracking beside the flow: a process of its own mirrors a run into MLflow, so that MLflow never delays or stops a run.

The flow appends events to ``<home>/runs/<id>/events.jsonl``; :func:`start_tracker` starts ``python -m
tasks.tracking.tracker --pipe FD``, which follows that file and the training curves and writes them to MLflow. Importing
MLflow takes 1.7 s, so the command line starts it early (:func:`get_ready`), and they pass while Prefect is imported.
Through a pipe the tracker learns the run's directory, and when the flow is gone: without a ``run_finished`` event
before, its runs become KILLED.

When MLflow cannot be reached the events stay where they are and are tried again every few seconds, by later runs, and
by ``python -m tasks.tracking.tracker --sync <home>``. Applying an event twice changes nothing, so a part of a run that
was already there is no obstacle. ``mlflow.json`` in the run's directory says what MLflow holds.

Where: ``MLFLOW_TRACKING_URI``, or SQLite and a folder of artifacts under ``<home>/mlflow``.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import logging
import os
import select
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from storage.champions import Champions
from storage.files import write_json
from storage.places import ROOT
from storage.store import open_store
from tasks.running.events import Event
from tasks.running.tail import Tail
from tasks.tracking.records import State

if TYPE_CHECKING:
    from tasks.tracking.mirror import Mirror
    from tasks.tracking.openlineage import Emitter

log = logging.getLogger("tracking")
POLL_SECONDS = 0.2
RETRY_SECONDS = 10.0
LOG_FORM = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# A server that is down should be noticed in seconds; MLflow's defaults retry for minutes. Its telemetry stays off.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


class Tracker:
    """The flow's handle on its tracker process."""

    def __init__(self, process: subprocess.Popen[bytes], pipe: int) -> None:
        self.run_dir, self.process, self.pipe = Path(), process, pipe

    def follow(self, run_dir: Path) -> None:
        """Give it the run to follow."""
        self.run_dir = run_dir
        os.write(self.pipe, f"{run_dir.resolve()}\n".encode("utf-8", "surrogateescape"))

    def close(self, timeout: float = 60.0) -> State:
        """Wait until MLflow has the run (``run_finished`` must have been written) and say where it is.

        Returns ``{"tracking_uri", "experiment_id", "parent_run_id", "stages": {stage: {"run_id", "model_id"}},
        "complete", "error"}``, or ``{}`` when nothing reached MLflow. After ``timeout`` seconds the tracker goes on
        alone.
        """
        deadline = time.monotonic() + timeout
        state = summary(self.run_dir)
        while not state.get("complete") and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
            state = summary(self.run_dir)
        os.close(self.pipe)
        return summary(self.run_dir)


_ready: list[Tracker] = []


def get_ready() -> None:
    """Start the tracker of a run that this process is about to make; without a run it ends with this process."""
    if not _ready:
        _ready.append(_started())


def start_tracker(run_dir: Path) -> Tracker:
    """Start the tracker of the run in ``run_dir`` (with its run.json); it lives until the run is finished or this
    process ends."""
    tracker = _ready.pop() if _ready else _started()
    try:
        tracker.follow(run_dir)
    except BrokenPipeError:  # it was killed while it waited
        os.close(tracker.pipe)
        tracker = _started()
        tracker.follow(run_dir)
    return tracker


def _started() -> Tracker:
    read, write = os.pipe()
    environment = {
        k: v
        for k, v in os.environ.items()
        if k not in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID") and not k.startswith("PREFECT_")
    }
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "tasks.tracking.tracker", "--pipe", str(read)],
            pass_fds=(read,),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    finally:
        os.close(read)
    return Tracker(process, write)


def summary(run_dir: Path) -> State:
    """What MLflow holds of a run, as the tracker last wrote it; {} when nothing yet."""
    try:
        return json.loads((run_dir / "mlflow.json").read_text("utf-8"))
    except FileNotFoundError:
        return {}


def tracking_uri(home: Path) -> str:
    """``MLFLOW_TRACKING_URI``, or the SQLite database under ``home``."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home.resolve()}/mlflow/mlflow.db"


def follow(run_dir: Path, pipe: int | None) -> bool:
    """Mirror a run into MLflow while it lasts; ``pipe`` None mirrors what is there. True when MLflow has all of it."""
    tail, waiting = Tail(run_dir / "events.jsonl"), deque[Event]()
    mirror: Mirror | None = None
    others: list[Emitter] = []
    again, tries = 0.0, 0
    over = False
    while True:
        # at first MLflow's import is all there is to wait for
        over = over or pipe is None or _closed(pipe, POLL_SECONDS if mirror else 0.0)
        waiting.extend(cast("list[Event]", tail.read(last=over)))
        over = over or any(event["event"] == "run_finished" for event in waiting)
        if time.monotonic() < again:
            continue
        try:
            mirror = mirror or _mirror(run_dir, live=pipe is not None)
            others = others or _others(run_dir, mirror)
            _apply([mirror, *others], waiting)
            if over:
                mirror.close()
                return True
            mirror.poll()
        except Exception as error:  # whatever MLflow raises: the run goes on, the spool stays
            log.warning(
                "MLflow: %s: %s", type(error).__name__, str(error).strip().splitlines()[0] if str(error) else ""
            )
            write_json(
                run_dir / "mlflow.json",
                {**summary(run_dir), "complete": False, "error": f"{type(error).__name__}: {error}"[:2000]},
            )
            tries += over
            if tries > 1:
                return False
            again = time.monotonic() + (1.0 if over else RETRY_SECONDS)


def _apply(readers: Sequence[Mirror | Emitter], waiting: deque[Event]) -> None:
    """Apply events in order; one is dropped only after it went through, so an outage in the middle repeats it."""
    while waiting:
        for reader in readers:
            reader.apply(waiting[0])
        waiting.popleft()


def _others(run_dir: Path, mirror: Mirror) -> list[Emitter]:
    """Who reads the events beside MLflow."""
    from tasks.tracking import openlineage

    return [openlineage.Emitter(run_dir, mirror.connection.preset)] if openlineage.wanted() else []


def _mirror(run_dir: Path, live: bool) -> Mirror:
    from tasks.tracking.mirror import Mirror

    return Mirror(run_dir, tracking_uri(run_dir.parent.parent), live)


def _closed(pipe: int, seconds: float) -> bool:
    """Wait for ``seconds``; True as soon as the other end of the pipe is gone."""
    ready, _, _ = select.select([pipe], [], [], seconds)
    return bool(ready) and not os.read(pipe, 64)


@contextlib.contextmanager
def _lock(run_dir: Path) -> Generator[bool]:
    """Hold the run's tracker lock; False when another tracker has it. Released by the system when the process ends."""
    with open(run_dir / "tracker.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def sync(home: Path) -> dict[str, bool]:
    """Fill MLflow with every run under ``home`` that it does not have whole yet. Returns {run id: whether it has
    now}."""
    done: dict[str, bool] = {}
    kinds = ("runs", "sweeps", "commands")
    for run_json in sorted(path for kind in kinds for path in (home / kind).glob("*/run.json")):
        run_dir = run_json.parent
        if summary(run_dir).get("complete"):
            continue
        with _lock(run_dir) as mine:
            if mine:
                done[run_dir.name] = follow(run_dir, None)
    return done


def follow_champions(home: Path, presets: Iterable[str]) -> dict[str, str | None]:
    """Point MLflow's alias ``champion`` of each preset at what the store says; gives {preset: version, or None where
    MLflow has none of it}. Raises whatever MLflow raises when it cannot be reached."""
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    import mlflow

    from tasks.tracking.champion import follow as follow_champion

    client = mlflow.MlflowClient(tracking_uri(home))
    store = open_store(home / "store")
    return {preset: follow_champion(client, store, preset) for preset in presets}


def main(arguments: list[str]) -> int:
    """``--pipe FD`` follows the run that the pipe names; ``--sync HOME`` fills in what earlier outages left out."""
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    if arguments[:1] == ["--pipe"] and len(arguments) == 2:
        return _follow_pipe(int(arguments[1]))
    logging.basicConfig(level=logging.WARNING, format=LOG_FORM)
    if arguments[:1] != ["--sync"] or len(arguments) != 2:
        print("usage: python -m tasks.tracking.tracker --pipe FD | --sync HOME", file=sys.stderr)
        return 2
    root = Path(arguments[1]).resolve()
    done = sync(root)
    if all(done.values()):
        follow_champions(root, Champions(open_store(root / "store")).presets())
    for run_id, complete in done.items():
        print(f"{run_id}  {'complete in MLflow' if complete else 'not in MLflow yet, see its mlflow.json'}")
    return 0 if all(done.values()) else 1


def _follow_pipe(pipe: int) -> int:
    """Import MLflow, wait for the name of the run's directory, follow it; what is said goes to its tracker.log."""
    with contextlib.suppress(Exception):  # said when it is needed
        importlib.import_module("tasks.tracking.mirror")
    name = b""
    while not name.endswith(b"\n"):
        if not (more := os.read(pipe, 4096)):
            return 0  # no run came of it
        name += more
    run_dir = Path(os.fsdecode(name[:-1]))
    with open(run_dir / "tracker.log", "ab") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    logging.basicConfig(level=logging.WARNING, format=LOG_FORM)
    with _lock(run_dir) as mine:
        complete = mine and follow(run_dir, pipe)
    if complete:
        sync(run_dir.parent.parent)  # MLflow is up: catch up on what an outage left
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
