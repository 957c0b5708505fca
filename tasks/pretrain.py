"""The pretrain stage: a base model from packed tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config.resources import Resources
from pipeline.config.training import PretrainSection
from storage.store import Artifact
from tasks.running.stage import Report, stage
from tasks.training import train


@stage(version=1, workers="model.training.train", kind="model")
def pretrain(
    cfg: PretrainSection, tokens: Artifact, vocabulary: Artifact, *, on: Resources, out: Path, report: Report
) -> dict[str, Any]:
    """Train the base model on next-token prediction; resumes from ``out`` when an earlier attempt died."""
    return train(cfg, data=tokens.path, tokenizer=vocabulary.path, init=None, on=on, out=out, report=report)
