"""Start training workers as processes, watch them, and bring back their result: the only file that starts processes.

A stage hands over a module and its spec; this starts ``guard -> torchrun | deepspeed -> ranks`` (``single=True``: guard
-> python) and waits. What passes between the two sides are files under ``<out>/_run/``: ``spec.json`` in,
``metrics.jsonl`` and ``result.json`` out, ``logs/launcher.log`` for people. Workers never see Prefect or MLflow.

The caller may end in any way: an exception here (KeyboardInterrupt, Prefect's TerminationSignal) ends the tree before
it goes on, and when the process dies its end of the guard's pipe closes, which does the same. Ranks write a checkpoint
on SIGTERM, so a stage that ran into a limit or was cancelled goes on where it was when it is started again.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.files import write_text
from storage.places import home
from tasks.running import guard, nodes
from tasks.running.environment import check_devices, worker_environment
from tasks.running.failure import WorkerFailed, explain
from tasks.running.tail import Tail

if TYPE_CHECKING:
    from pipeline.config.resources import Resources

log = logging.getLogger(__name__)
Report = Callable[[dict[str, Any]], None]
POLL_SECONDS = 1.0
LOST_SECONDS = 10.0
"""How long ranks may go on when another node's have ended: the first cause may be here."""


# glibc gives every large activation back to the kernel and faults it in again; keeping it is 1.3-1.4x on a CPU.
def launch(
    module: str,
    spec: dict[str, Any],
    out: Path,
    on: Resources,
    report: Report,
    *,
    single: bool = False,
    note: Callable[[str], None] = log.warning,
) -> dict[str, Any]:
    """Run ``python -m module --spec <out>/_run/spec.json`` in ``on.nproc`` ranks and return its ``result.json``.

    ``report`` is called with every record of ``metrics.jsonl``, in order, about once a second with all that came since,
    and has seen the whole file when this returns; what it raises is logged and never stops the training. ``single``
    runs one plain Python process instead of a launcher (scoring, generation). ``note`` gets a line for people when
    other nodes are waited for. Raises :class:`WorkerFailed` when the workers fail, stay silent for
    ``on.no_progress_seconds`` or run longer than ``on.wall_seconds``, when other nodes do not join within
    ``on.join_seconds`` or are lost before the first step, and ValueError when ``on`` cannot be had on this machine.
    """
    run = Path(out) / "_run"
    (run / "logs").mkdir(parents=True, exist_ok=True)
    spec_path, result_path, log_path = run / "spec.json", run / "result.json", run / "logs" / "launcher.log"
    write_text(spec_path, json.dumps(spec, indent=1, sort_keys=True, default=os.fspath))
    result_path.unlink(missing_ok=True)  # an earlier attempt's must not pass for this one's
    worker, others = [module, "--spec", str(spec_path.resolve())], contextlib.nullcontext()
    if on.nnodes > 1 and not single and not on.hostfile:
        on = on.model_copy(update={"rdzv_endpoint": on.rdzv_endpoint or nodes.own_endpoint()})
        others = nodes.calling(home(), worker, run, on.model_dump())
    environment = worker_environment(on, single=single)
    command = [sys.executable, "-m", *worker] if single else launcher_command(on, worker, environment, run)
    with others as roll:
        if roll:
            _gather(roll, module, on, run, note)
        start, code = _logged(command, environment, log_path, _Watch(module, run, on, report, log_path, roll))
    if code:
        failure = explain(module, code, log_path, start)
        raise (
            WorkerFailed(f"{failure}\nOther nodes: {run / 'logs'}/node-*.log", failure.reason)
            if on.nnodes > 1
            else failure
        )
    try:
        return json.loads(result_path.read_text("utf-8"))
    except FileNotFoundError:
        failure = explain(module, 0, log_path, start)
        raise WorkerFailed(f"{module} ended without writing {result_path}\n{failure}", "no_result") from None


def _gather(roll: nodes.Roll, module: str, on: Resources, run: Path, note: Callable[[str], None]) -> None:
    """Wait until all nodes have joined; raises :class:`WorkerFailed` when some do not, one is lost, or :func:`stop_all`
    was called."""
    stopped = threading.Event()

    def go_on() -> None:
        if stopped.is_set():
            raise WorkerFailed(f"{module} was stopped while it waited for other nodes", "stopped")

    _waiting.add(stopped)
    try:
        trouble = roll.wait(on.join_seconds, note, go_on)
    finally:
        _waiting.discard(stopped)
    if trouble:
        raise WorkerFailed(
            f"{module} was not started: {trouble}\nWhat to do: run `pipeline join` on every other machine, with"
            f" PIPELINE_HOME={home()} in a folder that all see under the same path and {roll.endpoint} open to them;"
            f" lower resources.nnodes (now {on.nnodes}), or raise resources.join_seconds (now {on.join_seconds}; 0"
            f" waits for ever)\nLogs: {run / 'logs'}/node-*.log",
            "nodes",
        )


def take_part(call: nodes.Call, number: int, on: Resources, watch: Any) -> int:
    """Start this machine's ranks as node ``number`` of a training that another machine called for; the launcher's exit
    code."""
    run = Path(call.run)
    if not run.is_dir():
        raise ValueError(
            f"{run} is not here; machines that train together need PIPELINE_HOME in a folder that all see under the"
            " same path"
        )
    environment = worker_environment(on)
    return _logged(
        launcher_command(on, call.worker, environment, run, number),
        environment,
        run / "logs" / f"node-{number}.log",
        watch,
    )[1]


def launcher_command(
    on: Resources, worker: list[str], environment: dict[str, str], run: Path, node: int = 0
) -> list[str]:
    """The command line that starts ``on.nproc`` ranks of ``python -m worker…`` as node number ``node`` of
    ``on.nnodes``.

    Every node starts its own, and ranks meet at ``on.rdzv_endpoint``; only with ``on.hostfile`` DeepSpeed's launcher
    reaches the others itself by ssh, and ``run/deepspeed.env`` carries the environment over. Adds to ``environment``
    what gloo needs.
    """
    check_devices(on)
    if on.nnodes > 1 and not on.hostfile and (interface := nodes.interface_towards(nodes.split(on.rdzv_endpoint)[0])):
        environment.setdefault("GLOO_SOCKET_IFNAME", interface)
    if on.launcher == "torchrun":
        # The static rendezvous keeps rank 0 on the calling node, whose files people look at, and needs no host names.
        several = [
            f"--nnodes={on.nnodes}",
            f"--node-rank={node}",
            "--rdzv-backend=static",
            f"--rdzv-endpoint={on.rdzv_endpoint}",
        ]
        where = several if on.nnodes > 1 else ["--standalone"]
        return [
            sys.executable,
            "-m",
            "torch.distributed.run",
            *where,
            f"--nproc-per-node={on.nproc}",
            "--max-restarts=0",
            "-m",
            *worker,
        ]
    if importlib.util.find_spec("deepspeed") is None:
        raise ValueError(
            "resources.launcher=deepspeed needs the package deepspeed (pip install deepspeed), or set"
            " resources.launcher=torchrun"
        )
    return [
        sys.executable,
        "-m",
        "deepspeed.launcher.runner",
        *_deepspeed_nodes(on, environment, run, node),
        "--no_local_rank",
        "--module",
        *worker,
    ]


def _deepspeed_nodes(on: Resources, environment: dict[str, str], run: Path, node: int) -> list[str]:
    """Options of DeepSpeed's launcher that say which nodes there are; without ``on.hostfile`` each starts its own
    ranks."""
    if on.nnodes == 1:
        return [f"--num_accelerators={on.nproc}", f"--master_port={nodes.free_port()}"]
    if on.hostfile:
        environment["DS_ENV_FILE"] = str((run / "deepspeed.env").resolve())
        write_text(
            run / "deepspeed.env", "".join(f"{name}={environment[name]}\n" for name in sorted(_ours(environment)))
        )
        return [
            f"--num_accelerators={on.nproc}",
            f"--master_port={nodes.free_port()}",
            f"--hostfile={Path(on.hostfile).resolve()}",
            f"--num_nodes={on.nnodes}",
        ]
    hosts = run / "hostfile"
    if node == 0:
        write_text(hosts, "".join(f"node-{i} slots={on.nproc}\n" for i in range(on.nnodes)))
    host, port = nodes.split(on.rdzv_endpoint)
    return [
        f"--hostfile={hosts.resolve()}",
        "--no_ssh",
        f"--node_rank={node}",
        f"--master_addr={host}",
        f"--master_port={port}",
    ]


class _Watch:
    """Looks at the workers once a second: passes metrics on and notices silence and time limits."""

    def __init__(
        self, module: str, run: Path, on: Resources, report: Report, log_path: Path, roll: nodes.Roll | None = None
    ) -> None:
        self.module, self.on, self.log_path, self.roll = module, on, log_path, roll
        self.lost: tuple[str, float] | None = None
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
        if self.roll and self.moved == self.started:
            self._count_nodes(self.roll, now)
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

    def _count_nodes(self, roll: nodes.Roll, now: float) -> None:
        """Before the first step ranks may wait minutes for one that is gone; own ranks that fail too get the time to
        say why."""
        why = roll.lost()
        self.lost = (why, self.lost[1] if self.lost else now) if why else None
        if self.lost and now - self.lost[1] > LOST_SECONDS:
            raise WorkerFailed(
                f"{self.module} lost a node before its first step: {why}\nWhat to do: see that node's log, start"
                f" `pipeline join` there again if it has ended, and run again\nLog: {self.log_path}",
                "nodes",
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


_running: set[subprocess.Popen[bytes]] = set()
_stopped: set[subprocess.Popen[bytes]] = set()
_waiting: set[threading.Event] = set()


def stop_all() -> None:
    """End the workers of every launch that still runs, in any thread; each of those calls raises WorkerFailed
    ("stopped")."""
    for waiting in list(_waiting):
        waiting.set()
    for process in list(_running):
        _stopped.add(process)
        process.terminate()


def _logged(command: list[str], environment: dict[str, str], log_path: Path, watch: Any) -> tuple[int, int]:
    """Run ``command`` with its output appended to a log; where that begins, and the exit code."""
    with open(log_path, "ab") as output:
        start = output.tell()
        output.write(f"$ {shlex.join(command)}\n".encode())
        output.flush()
        return start, _run(command, environment, output, watch)


def _run(command: list[str], environment: dict[str, str], output: Any, watch: Any) -> int:
    """Start the guard with ``command``, watch until it ends, return its exit code. On any exception the tree is
    ended."""
    read, write = os.pipe()
    try:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", guard.__file__, str(read), *command],
                pass_fds=(read,),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        finally:
            os.close(read)
        _running.add(process)
        try:
            while (code := _wait(process)) is None:
                watch.look()
            watch.deliver(last=True)
            if code and process in _stopped:  # whatever the ranks and their launcher say of it
                raise WorkerFailed(
                    "stopped; its checkpoints are kept\nWhat to do: run the same command again to go on from the"
                    " newest one",
                    "stopped",
                )
            return code
        except BaseException:
            process.terminate()
            process.wait(guard.GRACE_SECONDS + 15)
            raise
        finally:
            _running.discard(process)
            _stopped.discard(process)
    finally:
        os.close(write)


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _ours(environment: dict[str, str]) -> set[str]:
    """Variables that this module sets, for nodes that do not inherit them."""
    return {
        name for name in environment if name.startswith(("MALLOC_", "TORCH", "PYTORCH_", "PYTHON", "OMP_", "DS_ACC"))
    }
