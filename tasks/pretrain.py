"""The pretrain stage: a base model from packed tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.sections.resources import Resources
from pipeline.sections.training import PretrainSection
from storage.store import Artifact
from tasks.stage import Report, stage
from tasks.training import train


@stage(version=1, workers="model.train", kind="model")
def pretrain(
    cfg: PretrainSection, tokens: Artifact, vocabulary: Artifact, *, on: Resources, out: Path, report: Report
) -> dict[str, Any]:
    """Train the base model on next-token prediction; resumes from ``out`` when an earlier attempt died."""
    return train(cfg, data=tokens.path, tokenizer=vocabulary.path, init=None, on=on, out=out, report=report)
