"""Files that a worker writes whole or not at all: under a name that ends in ``.tmp``, then renamed.

The names are those of the store (``storage/files.py``), which takes away what a killed attempt left unfinished; a
worker imports nothing of the store.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to: it becomes ``path`` when the block ends well, and is removed otherwise."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, whole or not at all."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any, indent: int = 1) -> None:
    """Write JSON with sorted keys so that a reader sees the old file or the new one."""
    write_text(path, json.dumps(values, indent=indent, sort_keys=True) + "\n")
