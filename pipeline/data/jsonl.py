"""JSON lines: the form of every record list that the stages leave for each other and for people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_jsonl(path: Path) -> Iterator[Any]:
    """The values of a file's lines, blank ones left out. ``str.splitlines`` would also cut at U+2028, which JSON
    strings may hold."""
    with open(path, encoding="utf-8", newline="\n") as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)
