"""What the training stages share: their section as the worker's spec, and a training run that leaves a model."""

from __future__ import annotations

import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from model.specs.base import dump
from model.specs.train import TrainSpec
from pipeline.config.resources import Resources
from pipeline.config.rl import RlSection
from pipeline.config.training import TrainSection
from tasks.running.launch import launch
from tasks.running.stage import Report

Spec = TypeVar("Spec", bound=TrainSpec)


def spec_of(
    kind: type[Spec], cfg: TrainSection | RlSection, on: Resources, *, data: Path, tokenizer: Path, out: Path,
    init: Path | None, **more: Any,
) -> Spec:  # fmt: skip
    """The worker's spec: every field of ``kind`` that the section has, by name; ``data`` is a token directory, ``init``
    a model directory (or weights) that takes the place of the section's shape, ``more`` wins over the section.

    Raises ValueError naming the field that cannot be.
    """
    own: dict[str, Any] = {f.name: getattr(cfg, f.name) for f in fields(kind) if hasattr(cfg, f.name)}
    own |= {"data": str(data), "tokenizer": str(tokenizer), "out": str(out), "how": on.how()}
    own |= {"init": str(init), "model": None} if init else {"init": None}
    return kind(**own | more)


def train(spec: TrainSpec, on: Resources, report: Report) -> dict[str, Any]:
    """Train in worker processes until the spec's ``out`` is a model directory; checkpoints of an earlier attempt in it
    are resumed from."""
    out = Path(spec.out)
    result = launch(f"model.{spec.NAME}", dump(spec), out, on, report.training, note=report.note)
    shutil.rmtree(out / "_run" / "checkpoints", ignore_errors=True)  # the published model is whole
    return result
