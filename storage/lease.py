"""One builder at a time per key: a small record that its holder keeps changing (the heartbeat).

A lease lies in a :class:`FilePlace` (a file; one machine, or several on one file system) or in any other place that can
create, replace and delete a text only if it still is what it was, such as an object of an S3 bucket (storage/s3.py). It
is dead when its process is gone (same machine) or when it did not change for ``stale`` seconds as the waiting process
counts them, so that no two clocks are compared. A kill -9 or a lost machine frees it without anyone's help.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Protocol, TypedDict, cast

from storage.errors import Failed
from storage.files import STRAY, unfinished, write_text


class Holder(TypedDict):
    """Who holds a lease: process, machine (with its process numbering), the process's start time, and the hold."""

    pid: int
    host: str
    start: str | None
    nonce: str


class LeaseLost(Failed):
    """Another process took the lease over because this one did not show a heartbeat for too long."""


class Place(Protocol):
    """Where a lease lies. A token stands for one state of the text; every write says from which state it starts."""

    heartbeat: float
    stale: float
    poll: float

    def create(self, text: str) -> str | None:
        """Write the text where none is; its token, or None when there is one."""

    def read(self) -> tuple[str, str] | None:
        """The text and its token, or None."""

    def replace(self, token: str, text: str) -> str | None:
        """Write over the state ``token``; the new token, or None when the state is another one."""

    def delete(self, token: str) -> None:
        """Delete the state ``token``; nothing happens when the state is another one."""


class FilePlace:
    """A lease as a file. Its text is its own token."""

    heartbeat, stale, poll = 5.0, 60.0, 0.5

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self, text: str) -> str | None:
        """A hard link to a finished temporary file either makes it whole or fails."""
        partial = unfinished(self.path)
        while True:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                partial.write_text(text)
                os.link(partial, self.path)
                return text
            except FileExistsError:
                return None
            except FileNotFoundError:  # swept away between the two, by a machine to which our process looks dead
                continue
            finally:
                partial.unlink(missing_ok=True)

    def read(self) -> tuple[str, str] | None:
        try:
            text = self.path.read_text(errors="replace")
        except FileNotFoundError:
            return None
        return text, text

    def replace(self, token: str, text: str) -> str | None:
        with self._guarded(token) as same:
            for _ in range(3 if same else 0):
                with contextlib.suppress(FileNotFoundError):  # swept away, as above
                    write_text(self.path, text)
                    return text
        return None

    def delete(self, token: str) -> None:
        with self._guarded(token) as same:
            if same:
                self.path.unlink()

    @contextlib.contextmanager
    def _guarded(self, token: str) -> Generator[bool]:
        """Whether the file is still ``token``; nobody replaces or deletes it meanwhile."""
        with open(self.path.with_name(".guard"), "w") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            yield self.read() == (token, token)


class Lease:
    """Context manager that waits until this process alone holds the place, then holds it.

    ``waiting`` is called once with the holder's description if another process is building the same thing.
    """

    def __init__(self, place: Place | Path, waiting: Callable[[str], None] = lambda holder: None) -> None:
        self.place: Place = FilePlace(place) if isinstance(place, Path) else place
        self.waiting = waiting
        self._stop, self._lock, self._beats = threading.Event(), threading.Lock(), 0
        self._me = this_process()
        self._token: str | None = None

    def __enter__(self) -> Lease:
        seen, since, told = None, time.monotonic(), False
        while not (token := self.place.create(self._text())):
            found = self.place.read()
            if found is None:
                continue
            text, state = found
            if state != seen:
                seen, since = state, time.monotonic()
            holder = parse_holder(text)
            if is_dead(holder) or (not is_here(holder) and time.monotonic() - since > self.place.stale):
                if token := self.place.replace(state, self._text()):
                    break
                continue
            if not told:
                self.waiting(f"process {holder['pid']} on {holder['host'].split(' ')[0] or 'an unknown machine'}")
                told = True
            time.sleep(self.place.poll)
        self._token = token
        threading.Thread(target=self._keep, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        with self._lock:
            if self._token:
                with contextlib.suppress(OSError):  # it is dead with this process, and swept away then
                    self.place.delete(self._token)

    def confirm(self) -> None:
        """Raise LeaseLost unless this process still holds the lease; asked before something is published."""
        with self._lock:
            if not self._beat():
                raise LeaseLost(
                    "another process took over this stage's lease, because this one was suspended or cut off for "
                    f"more than {self.place.stale:.0f} s; run again to take its result"
                )

    def _keep(self) -> None:
        while not self._stop.wait(self.place.heartbeat):
            with self._lock:
                if self._stop.is_set():
                    return
                try:
                    if not self._beat():
                        return
                except Exception:  # the place is out of reach: it may come back; confirm() decides
                    continue

    def _beat(self) -> bool:
        self._beats += 1
        self._token = self._token and self.place.replace(self._token, self._text())
        return self._token is not None

    def _text(self) -> str:
        return json.dumps({**self._me, "beat": self._beats})


def this_process() -> Holder:
    """This process as a holder."""
    pid = os.getpid()
    return {"pid": pid, "host": _host(), "start": start_time(pid), "nonce": secrets.token_hex(8)}


def is_here(holder: Holder) -> bool:
    """Whether a holder is, or was, a process of this machine that can be looked up."""
    return holder["host"] == _host() and holder["start"] is not None and start_time(os.getpid()) is not None


def is_dead(holder: Holder) -> bool:
    """Whether a holder was a process of this machine that has ended; a reused process id does not deceive."""
    return is_here(holder) and start_time(holder["pid"]) != holder["start"]


def sweep(directory: Path) -> None:
    """Remove the leases that dead processes of this machine left in a directory, and what they had not finished
    writing. Leases of other machines stay: only who waits for one sees whether it still beats."""
    for path in directory.glob("*.lease"):
        with contextlib.suppress(OSError):
            found = FilePlace(path).read()
            if found and is_dead(parse_holder(found[0])):
                FilePlace(path).delete(found[1])
    for path in directory.glob(f"*.lease.*{STRAY}"):
        pid = path.name.removesuffix(STRAY).rpartition(".")[2].partition("-")[0]
        with contextlib.suppress(OSError):
            if pid.isdigit() and start_time(int(pid)) is None:
                path.unlink()


def parse_holder(text: str) -> Holder:
    """Who a lease's text says holds it; whatever is missing or of another kind is empty."""
    try:
        loaded: object = json.loads(text)
    except ValueError:
        loaded = None
    entry = cast(dict[str, object], loaded) if isinstance(loaded, dict) else {}
    pid, host, start = entry.get("pid"), entry.get("host"), entry.get("start")
    return {
        "pid": pid if type(pid) is int else -1,
        "host": host if isinstance(host, str) and host.isprintable() else "",
        "start": start if isinstance(start, str) else None,
        "nonce": "",
    }


@functools.cache
def _host() -> str:
    """This machine, and its process numbering: containers that share a host name do not share process ids."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = "-"
    return f"{socket.gethostname()} {space}"


def start_time(pid: int) -> str | None:
    """The kernel's start time of a process, which tells a reused pid from the old one; None when it is gone (or there
    is no /proc)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]
