"""Small texts that only grow, a line at a time, written by several processes or machines at once."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Protocol


class Journal(Protocol):
    """A text of lines; what was appended is durable and stands once."""

    def read(self) -> str:
        """The lines so far, "" when there are none."""
        ...

    def append(self, line: str) -> None:
        """Add a line at the end."""


class FileJournal:
    """A journal as a file of this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> str:
        try:
            return self.path.read_text("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def append(self, line: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
                torn = file.read(1) != b"\n"  # by a crash: what follows must not join it
                file.write(b"\n" if torn else b"")
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
