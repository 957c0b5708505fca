"""Guard process between a stage and its workers: when the caller dies, however it dies, the whole process tree ends.

Run as ``python guard.py FD command…`` where FD is the read end of a pipe whose write end only the caller holds. The
guard starts the command in a session of its own and waits. End of file on the pipe (the caller exited, crashed or was
killed with ``kill -9``), SIGTERM or SIGINT end the tree: SIGTERM to all, a grace period in which ranks write a
checkpoint, then SIGKILL. The guard exits with the command's exit code (128 + n when signal n ended it), and leaves
nothing behind even when the command itself left processes.

Descendants that moved to another process group or session are found too: on Linux the guard is a "child subreaper"
(prctl(2)), so orphans become its children and a walk over /proc sees them all. Elsewhere only the process group is
known. The guard is single-threaded on purpose: PR_SET_PDEATHSIG follows the *thread* that started the child, and here
that is the process, so ``kill -9`` of the guard itself still sends SIGTERM to the launcher.

Standard library only; starts in about 30 ms and needs no environment. ``PIPELINE_GRACE_SECONDS`` sets the grace (20 s).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
GRACE_SECONDS = float(os.environ.get("PIPELINE_GRACE_SECONDS", "20"))


def main(arguments: list[str]) -> int:
    """Run ``arguments[1:]`` until it ends or the pipe ``arguments[0]`` closes; return the exit code."""
    pipe, command = int(arguments[0]), arguments[1:]
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    wake, _keep = _signals_as_bytes()
    try:
        child = subprocess.Popen(command, start_new_session=True, preexec_fn=_die_with_guard)
    except OSError as error:
        print(f"guard: cannot start {command[0]}: {error}", file=sys.stderr)
        return 127
    status = _wait(child.pid, pipe, wake)
    late = _end_tree(child.pid)
    if status is None:
        status = late
    code = os.waitstatus_to_exitcode(status) if status is not None else -signal.SIGKILL
    return code if code >= 0 else 128 - code


def _wait(child: int, pipe: int, wake: int) -> int | None:
    """Wait until the child ends (its wait status), or the caller is gone or a signal came (None: end the tree)."""
    while True:
        ready, _, _ = select.select([pipe, wake], [], [], 1.0)
        if pipe in ready and not os.read(pipe, 64):
            return None
        if wake in ready and set(os.read(wake, 64)) & {signal.SIGTERM, signal.SIGINT}:
            return None
        status = _reap(child)
        if status is not None:
            return status


def _end_tree(child: int) -> int | None:
    """SIGTERM everything below, wait, SIGKILL what is left. Returns the child's wait status if it ended here."""
    status = None
    for number, seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, 5.0)):
        told: set[int] = set()
        deadline = time.monotonic() + seconds
        while alive := _tree(child):
            for pid in alive:
                if pid not in told or number == signal.SIGKILL:
                    _kill(pid, number)
                    told.add(pid)
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
            ended = _reap(child)
            status = ended if ended is not None else status
        ended = _reap(child)
        status = ended if ended is not None else status
    return status


def _reap(child: int) -> int | None:
    """Collect every ended process of ours, adopted orphans too; the wait status of ``child`` if it is among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == child:
            found = status


def _tree(child: int) -> list[int]:
    """Living descendants of this process, by /proc; without /proc the child's process group as a negative number."""
    if not os.path.isdir("/proc/self"):
        try:
            os.killpg(child, 0)
            return [-child]
        except OSError:
            return []
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            parent, state = _parent_and_state(entry)
            if state not in ("Z", "X", ""):
                children.setdefault(parent, []).append(int(entry))
    found, queue = list[int](), [os.getpid()]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def _parent_and_state(pid: str) -> tuple[int, str]:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # the name before ")" may hold spaces and brackets
        return int(fields[1]), fields[0].decode()
    except (OSError, IndexError):
        return 0, ""


def _kill(pid: int, number: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, number)


def _noticed(number: int, frame: object) -> None:
    """The byte in the descriptor is all that a signal does."""


def _signals_as_bytes() -> tuple[int, int]:
    """Make signals readable from a file descriptor, so that one select() waits for everything. Returns both ends."""
    read, write = os.pipe()
    for end in (read, write):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(write)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, _noticed)
    return read, write


def _die_with_guard() -> None:
    """In the child before exec: SIGTERM when the guard is killed, and signals handled as usual again."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
