"""Whether a source is still what it was when it was hashed.

A run hashes every file at its start, and reads it minutes or hours later. Both must be the same bytes: else text that
nobody named is published under the digest of another, and every later run with the restored file takes it from cache.
A file's state (size, times of change, inode) cannot stay as it was when anything wrote to the file or put another in
its place, and costs one call. So what was read is what was hashed if the state after reading is the one at hashing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path

from pipeline.sources import SourceFile
from storage.digest import sha256_file
from storage.errors import Refused

SETTLED_NS = 20_000_000
"""No clock of a file system ticks slower among those that count nanoseconds: two changes further apart than this leave
different times."""


class SourceChanged(Refused):
    """A file is not what it was when the run hashed it."""


def state_of(path: str | Path) -> tuple[int, ...]:
    """Size, times of change of content and of inode in nanoseconds, and inode number. Raises OSError."""
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def confirm(location: str, name: str, state: Sequence[int], sha256: str) -> None:
    """Raise SourceChanged unless the file at ``location`` has been in this state since it was hashed; ``name`` is what
    the message calls it. Nothing is asked of what has no state (built-in sources, the hub's fixed commits)."""
    if not state:
        return
    try:
        if location.startswith("s3://"):
            from pipeline.sources.s3 import state_of_s3

            same = state_of_s3(location) == (tuple(state), sha256)
        else:
            same = state_of(location) == tuple(state)
    except OSError as error:
        raise SourceChanged(f"{name}: cannot be read any more: {error}; put it back and run again") from None
    if not same:
        raise SourceChanged(
            f"{name}: was changed or replaced after this run had hashed it, and before it was read to the end"
            f" ({location}); run again to take it as it is now"
        )


@contextlib.contextmanager
def unchanged(files: Iterable[SourceFile]) -> Generator[None]:
    """Around reading these files whole: raises SourceChanged, with the first one's name, before the block when one has
    other bytes than it was hashed with, and after it when one was touched meanwhile."""
    states: list[tuple[SourceFile, tuple[int, ...]]] = []
    for file in files:
        now = file.state
        if now and not file.location.startswith("s3://"):
            with contextlib.suppress(OSError):
                now = state_of(file.location)
        if now != file.state and sha256_file(Path(file.location)) != file.sha256:
            confirm(file.location, file.relpath, file.state, file.sha256)
        states.append((file, now))  # another time stamp on the same bytes is no change
    yield
    for file, state in states:
        confirm(file.location, file.relpath, state, file.sha256)
