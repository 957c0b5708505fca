"""The sft stage: the base model learns to answer in conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.sections.resources import Resources
from pipeline.sections.training import SftSection
from storage.store import Artifact
from tasks.stage import Report, stage
from tasks.training import encode_records, train


@stage(version=1, workers="model.train", kind="model", base="base")
def sft(
    cfg: SftSection, base: Artifact, chats: Artifact, *, on: Resources, out: Path, report: Report
) -> dict[str, Any]:
    """Supervised fine-tuning on the assistant's tokens of every conversation."""
    from pipeline.chat_tokens import encode_chats

    counts = encode_records(encode_chats, chats, cfg, base.path, out, report)
    return counts | train(
        cfg, data=out / "_run" / "data", tokenizer=base.path, init=base.path, on=on, out=out, report=report
    )
