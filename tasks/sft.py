"""The sft stage: the base model learns to answer in conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config.resources import Resources
from pipeline.config.training import SftSection
from storage.store import Artifact
from tasks.running.stage import Report, stage
from tasks.training import encode_records, train


@stage(version=1, workers="model.training.train", kind="model", base="base")
def sft(
    cfg: SftSection, base: Artifact, chats: Artifact, *, on: Resources, out: Path, report: Report
) -> dict[str, Any]:
    """Supervised fine-tuning on the assistant's tokens of every conversation."""
    from pipeline.tokens.chats import encode_chats

    counts = encode_records(encode_chats, chats, cfg, base.path, out, report)
    return counts | train(
        cfg, data=out / "_run" / "data", tokenizer=base.path, init=base.path, on=on, out=out, report=report
    )
