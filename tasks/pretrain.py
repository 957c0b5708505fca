"""The pretrain stage: a base model from packed tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model.specs.train import TrainSpec
from pipeline.config.resources import Resources
from pipeline.config.training import PretrainSection
from storage.store import Artifact
from tasks.running.stage import Report, stage
from tasks.training import spec_of, train


@stage(version=1, kind="model", workers="model.pretrain", libs=("safetensors", "torch"))
def pretrain(
    cfg: PretrainSection, tokens: Artifact, vocabulary: Artifact, *, on: Resources, out: Path, report: Report
) -> dict[str, Any]:
    """Train the base model on next-token prediction; resumes from ``out`` when an earlier attempt died."""
    init = Path(cfg.init).expanduser().resolve() if cfg.init else None
    spec = spec_of(TrainSpec, cfg, on, data=tokens.path, tokenizer=vocabulary.path, out=out, init=init)
    return train(spec, on, report)
