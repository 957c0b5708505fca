"""Files that are written whole or not at all, and directories that go in one step.

Everything is written under a name that ends in :data:`STRAY`, beside where it belongs, and renamed when it is
complete. So a file under its own name is whole, and what a kill, a crash or a full disk leaves behind is known by its
name: :func:`sweep` takes it away before the next attempt.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Generator
from pathlib import Path

STRAY = ".tmp"
"""The suffix of what is not finished. Nothing of that name is ever part of an artifact."""


def unfinished(path: Path) -> Path:
    """The name under which what becomes ``path`` is written. It is this thread's alone, so that a worker of an attempt
    that was killed and its successor never write to the same file."""
    return path.with_name(f"{path.name}.{os.getpid()}-{threading.get_native_id()}{STRAY}")


@contextlib.contextmanager
def whole(path: Path) -> Generator[Path]:
    """A name beside ``path`` to write to: it becomes ``path`` when the block ends well, and is removed otherwise."""
    partial = unfinished(path)
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def write_bytes(path: Path, data: bytes, durable: bool = False) -> None:
    """Write a file whole or not at all; ``durable``: it is on the disk before it has its name."""
    with whole(path) as partial, open(partial, "wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Write a text as UTF-8, whole or not at all."""
    write_bytes(path, text.encode("utf-8", errors))


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as readable JSON with sorted keys, whole, durable or not at all."""
    text = json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    write_bytes(path, text.encode("utf-8", "surrogateescape"), durable=True)


def discard(directory: Path) -> None:
    """Remove a directory so that no one ever finds half of it under its name; nothing happens when there is none."""
    doomed = unfinished(directory)
    with contextlib.suppress(FileNotFoundError):
        os.rename(directory, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def sweep_entry(path: Path) -> None:
    """Remove what is not finished at or below ``path``, and links, which no attempt of ours makes.

    Only for who holds the directory alone. Raises OSError when something cannot be removed.
    """
    if path.is_symlink():
        path.unlink()
    elif path.is_dir():
        if path.name.endswith(STRAY):
            shutil.rmtree(path)
        else:
            for entry in path.iterdir():
                sweep_entry(entry)
    elif path.name.endswith(STRAY):
        path.unlink()


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
