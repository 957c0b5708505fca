"""Start training workers, watch them, and bring back their result.

A stage hands over a module and its spec; this starts ``guard -> torchrun | deepspeed -> ranks`` (``single=True``: guard
-> python) and waits, here or, with ``resources.engine=ray``, on the machines of a cluster. What passes between the two
sides are files under ``<out>/_run/``: ``spec.json`` in, ``metrics.jsonl`` and ``result.json`` out,
``logs/launcher.log`` for people. Workers never see Prefect, MLflow or Ray.

Ranks write a checkpoint on SIGTERM, so a stage that ran into a limit or was cancelled goes on where it was when it is
started again; with a bucket, on any machine (tasks/running/sharing.py).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.files import write_text
from tasks.running.cluster import run_on_cluster
from tasks.running.command import launcher_command
from tasks.running.environment import worker_environment
from tasks.running.events import Listener
from tasks.running.failure import WorkerFailed, explain
from tasks.running.processes import logged
from tasks.running.sharing import restore, sharing
from tasks.running.tail import Tail

if TYPE_CHECKING:
    from pipeline.config.resources import Resources

log = logging.getLogger(__name__)
Report = Listener


def launch(
    module: str,
    spec: dict[str, Any],
    out: Path,
    on: Resources,
    report: Report,
    *,
    single: bool = False,
    one_folder: bool = False,
    note: Callable[[str], None] = log.warning,
) -> dict[str, Any]:
    """Run ``python -m module --spec <out>/_run/spec.json`` in ``on.nproc`` ranks and return its ``result.json``.

    ``report`` is called with every record of ``metrics.jsonl``, in order, about once a second with all that came since,
    and has seen the whole file when this returns; what it raises is logged and never stops the training. ``single``
    runs one plain Python process instead of a launcher (scoring, generation). ``one_folder``: the ranks meet in ``out``
    and not in a process group, so machines that share no folder leave the work to one of them. ``note`` gets a line for
    people when a cluster's machines are waited for. Raises :class:`WorkerFailed` when the workers fail, stay silent for
    ``on.no_progress_seconds`` or run longer than ``on.wall_seconds``, when the cluster has no room within
    ``on.place_seconds`` or a node dies, and ValueError when ``on`` cannot be had.
    """
    out = Path(out)
    run = out / "_run"
    (run / "logs").mkdir(parents=True, exist_ok=True)
    spec_path, result_path, log_path = run / "spec.json", run / "result.json", run / "logs" / "launcher.log"
    text = json.dumps(spec, indent=1, sort_keys=True, default=os.fspath)
    write_text(spec_path, text)
    result_path.unlink(missing_ok=True)  # an earlier attempt's must not pass for this one's
    watch = _Watch(module, run, on, report, log_path)
    with contextlib.nullcontext() if single else sharing(out, note):
        if on.engine == "ray":
            start = 0
            failure = run_on_cluster(module, text, out, on, watch, single=single, one_folder=one_folder, note=note)
        else:
            if not single:
                restore(out, note)
            worker = [module, "--spec", str(spec_path.resolve())]
            environment = worker_environment(on, single=single)
            command = [sys.executable, "-m", *worker] if single else launcher_command(on, worker, environment, run)
            start, code = logged(command, environment, log_path, watch)
            failure = explain(module, code, log_path, start) if code else None
        if failure:
            raise failure
    try:
        return json.loads(result_path.read_text("utf-8"))
    except FileNotFoundError:
        failure = explain(module, 0, log_path, start)
        raise WorkerFailed(f"{module} ended without writing {result_path}\n{failure}", "no_result") from None


class _Watch:
    """Looks at the workers once a second: passes metrics on and notices silence and time limits."""

    def __init__(self, module: str, run: Path, on: Resources, report: Report, log_path: Path) -> None:
        self.module, self.on, self.log_path = module, on, log_path
        self.tail, self.report = Tail(run / "metrics.jsonl"), report
        self.signs = (run / "metrics.jsonl", run / "heartbeat")
        self.seen = self._progress()
        self.started = self.moved = time.monotonic()
        self.complained = False

    def look(self) -> None:
        """Deliver new metrics; raise :class:`WorkerFailed` when a limit is passed."""
        self.deliver()
        now = time.monotonic()
        if (progress := self._progress()) != self.seen:
            self.seen, self.moved = progress, now
        if now - self.moved > self.on.no_progress_seconds:
            raise WorkerFailed(
                f"{self.module} made no progress for {now - self.moved:.0f} s (no step in metrics.jsonl, no heartbeat)"
                " and was ended; checkpoints are kept\nWhat to do: run again to resume; if a step really takes so"
                f" long, raise resources.no_progress_seconds\nLog: {self.log_path}",
                "no_progress",
            )
        if self.on.wall_seconds and now - self.started > self.on.wall_seconds:
            raise WorkerFailed(
                f"{self.module} reached resources.wall_seconds = {self.on.wall_seconds} and was ended; its checkpoints"
                f" are kept\nWhat to do: run again to resume, or raise resources.wall_seconds\nLog: {self.log_path}",
                "wall_limit",
            )

    def deliver(self, last: bool = False) -> None:
        """Hand every new record to the report; its errors (a tracking server that is down) must not stop a training."""
        for record in self.tail.read(last):
            try:
                self.report(record)
            except Exception as error:
                if not self.complained:
                    log.warning("%s: reporting metrics failed, training goes on: %s", self.module, error)
                self.complained = True

    def _progress(self) -> list[tuple[int, int]]:
        return [(s.st_size, s.st_mtime_ns) for path in self.signs if (s := _stat(path)) is not None]


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None
