"""Room on the disk for what a stage writes, asked before it works for hours: about its input's size, and of a training
two checkpoints with the optimizer's state."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

from storage.store import Artifact

STATE_BYTES = 16
"""Of a parameter in a checkpoint: weight, two moments and a master copy in fp32."""
CHECKPOINTS = 2
"""Kept at once: the newest, and the one that is being written."""


def check(stage: str, out: Path, cfg: Any, inputs: dict[str, Any]) -> None:
    """Raise OSError (ENOSPC) with the place, the need and what is free when the disk of ``out`` cannot hold a stage's
    output."""
    needed, free = need(cfg, inputs), shutil.disk_usage(out).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"no room for {stage}: it writes about {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free; make room"
            " there, or set PIPELINE_HOME to a larger disk",
            str(out),
        )


def need(cfg: Any, inputs: dict[str, Any]) -> int:
    """Bytes that a stage is likely to write at the same time."""
    given = [size(value) for value in inputs.values()]
    if not hasattr(cfg, "batch_tokens"):
        return max(given, default=0)
    shape = getattr(cfg, "model", None)
    weights = shape.parameters() if shape else given[0] // 4  # of a model in fp32, which comes first
    return weights * STATE_BYTES * CHECKPOINTS


def size(value: Any) -> int:
    """Bytes of an artifact's files, or of a set of sources' files."""
    if isinstance(value, Artifact):
        try:
            listed = json.loads((value.path / "manifest.json").read_text("utf-8"))
            return sum(entry["bytes"] for entry in listed.values())
        except (OSError, ValueError, KeyError, TypeError):
            return 0
    return sum(source["bytes"] for source in value.describe()) if hasattr(value, "describe") else 0
