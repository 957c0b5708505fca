"""A training worker's ``metrics.jsonl`` as curves."""

from __future__ import annotations

import json
import math
from pathlib import Path


def read_curves(path: Path, names: tuple[str, ...]) -> dict[str, list[tuple[float, float]]]:
    """(step, value) of every line of ``path`` that has a step and a number under one of ``names``, by name.

    A file that is not there has none. A line that is torn or no JSON object is left out; where a resumed worker
    repeated a step, its last line counts.
    """
    found: dict[str, dict[float, float]] = {name: {} for name in names}
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and _number(record.get("step")):
            for name in names:
                if _number(record.get(name)):
                    found[name][float(record["step"])] = float(record[name])
    return {name: sorted(points.items()) for name, points in found.items()}


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
