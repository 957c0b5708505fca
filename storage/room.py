"""Room on the disk: refused before a stage begins that cannot fit, and said in words when it runs out on the way."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Generator
from pathlib import Path

from storage.errors import PipelineError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOTHING = 1 << 20
"""Less free than this is a full disk, for errors that do not say why a write fell short (numpy's, for one)."""


class DiskFull(PipelineError, OSError):
    """The disk is full: names the path, what is free and what is needed."""


def free_bytes(path: Path) -> int:
    """Bytes that can still be written at ``path``, which need not exist yet."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def filled(error: BaseException, place: Path) -> str | None:
    """The path at which a full disk stopped a write, if that is what ``error`` means; ``place`` when it names none."""
    if not isinstance(error, OSError) or isinstance(error, DiskFull):
        return None
    if error.errno in _FULL or (error.errno is None and free_bytes(place) < _NOTHING):
        named: object = error.filename
        return os.fsdecode(named) if isinstance(named, (str, bytes)) else str(place)
    return None


def human(count: float) -> str:
    """A number of bytes for people: ``1.5 GB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


@contextlib.contextmanager
def room(place: Path, what: str, need: int) -> Generator[None]:
    """Raise DiskFull before the block when ``need`` bytes (an estimate) are not free at ``place``, and in the place of
    whatever a full disk raises inside it."""
    advice = (
        "make room (`pipeline gc` removes what no kept run needs) or set PIPELINE_HOME to a larger disk, then run"
        " again: what is done is kept"
    )
    free = free_bytes(place)
    if free < need:
        raise DiskFull(f"{what}: about {human(need)} are needed at {place}, {human(free)} are free; {advice}")
    try:
        yield
    except OSError as error:
        path = str(error) if isinstance(error, DiskFull) else filled(error, place)
        if path is None:
            raise
        raise DiskFull(
            f"{what}: no space left on the disk of {path}: {human(free_bytes(place))} are free; about"
            f" {human(max(need, _NOTHING))} are needed (the size of what is read); {advice}"
        ) from error
