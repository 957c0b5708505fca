"""Follow a file of JSON lines that another process appends to (metrics.jsonl, events.jsonl)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, BinaryIO, cast


class Tail:
    """Reads what was added to ``path`` since the last call.

    A half-written last line waits for its rest. A file that is replaced or cut (a resumed worker drops the steps after
    its checkpoint) is read from its start again, so a reader that must not see a step twice
    compares steps when ``restarts`` went up. A line that
    is not a JSON object is counted in ``bad`` and passed over: a killed writer may leave one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bad = 0
        self.restarts: int = 0
        self.size = 0
        self._offset = 0
        self._inode: int = 0

    def read(self, last: bool = False) -> list[dict[str, Any]]:
        """New records in file order; [] while there is no file. ``last`` takes a final line without newline too."""
        try:
            with open(self.path, "rb") as file:
                data = self._new_bytes(file)
        except FileNotFoundError:
            return []
        whole = len(data) if last else data.rfind(b"\n") + 1
        self._offset += whole
        return [record for line in data[:whole].splitlines() if (record := self._parse(line)) is not None]

    def _new_bytes(self, file: BinaryIO) -> bytes:
        status = os.fstat(file.fileno())
        if status.st_ino != self._inode or status.st_size < self._offset:
            self.restarts += self._inode != 0
            self._inode, self._offset = status.st_ino, 0
        self.size = status.st_size
        file.seek(self._offset)
        return file.read()

    def _parse(self, line: bytes) -> dict[str, Any] | None:
        if not line.strip():
            return None
        try:
            record: object = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            self.bad += 1
            return None
        return cast(dict[str, Any], record)
