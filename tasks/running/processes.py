"""Run a command below a guard and watch it: the only file that starts worker processes, and ends them.

The caller may end in any way: an exception here (KeyboardInterrupt, Prefect's TerminationSignal) ends the tree before
it goes on, and when the process dies its end of the guard's pipe closes, which does the same.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import IO, Protocol

from tasks.running import guard
from tasks.running.failure import WorkerFailed

POLL_SECONDS = 1.0


class Watch(Protocol):
    """Looks at a running command about once a second."""

    def look(self) -> None:
        """Raises what ends the command."""

    def deliver(self, last: bool = False) -> None:
        """Called once more with ``last`` when it has ended."""


_running: set[subprocess.Popen[bytes]] = set()
_stopped: set[subprocess.Popen[bytes]] = set()
_elsewhere: set[threading.Event] = set()


def stop_all() -> None:
    """End the workers of every launch that still runs, in any thread; each of those calls raises WorkerFailed
    ("stopped")."""
    for stopped in list(_elsewhere):
        stopped.set()
    for process in list(_running):
        _stopped.add(process)
        process.terminate()


@contextlib.contextmanager
def stoppable() -> Generator[threading.Event]:
    """An event that :func:`stop_all` sets, for work that runs on other machines."""
    stopped = threading.Event()
    _elsewhere.add(stopped)
    try:
        yield stopped
    finally:
        _elsewhere.discard(stopped)


def stopped_failure() -> WorkerFailed:
    """What a launch that :func:`stop_all` ended raises, whatever the ranks and their launcher say of it."""
    return WorkerFailed(
        "stopped; its checkpoints are kept\nWhat to do: run the same command again to go on from the newest one",
        "stopped",
    )


def logged(command: list[str], environment: dict[str, str], log_path: Path, watch: Watch) -> tuple[int, int]:
    """Run ``command`` with its output appended to a log; where that begins, and the exit code."""
    with open(log_path, "ab") as output:
        start = output.tell()
        output.write(f"$ {shlex.join(command)}\n".encode())
        output.flush()
        return start, _run(command, environment, output, watch)


def _run(command: list[str], environment: dict[str, str], output: IO[bytes], watch: Watch) -> int:
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
            if code and process in _stopped:
                raise stopped_failure()
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
