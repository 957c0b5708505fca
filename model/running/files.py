"""Files that appear whole or not at all: written under a temporary name beside their place, synced, then renamed.

One process writes a file at a time, so the temporary name is fixed (``.NAME.tmp``) and what a killed writer left of it
is overwritten by the next.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; when the block ends well, what was written there is on disk under ``path``, else it
    is gone. Raises OSError (disk full)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Until a file's bytes, or a folder's names, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text; a reader sees the old file or the new one."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any, *, indent: int = 1, finite: bool = False) -> None:
    """Write JSON with sorted keys; a reader sees the old file or the new one. With ``finite`` raises ValueError for NaN
    and infinities, which JSON does not have."""
    text = json.dumps(values, ensure_ascii=False, indent=indent, sort_keys=True, allow_nan=not finite)
    write_text(path, text + "\n")
