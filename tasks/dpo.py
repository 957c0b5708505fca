"""The dpo stage: the chat model learns which of two answers is preferred."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config.resources import Resources
from pipeline.config.training import DpoSection
from storage.store import Artifact
from tasks.running.stage import Report, stage
from tasks.training import encode_records, train


@stage(version=1, workers="model.training.train", kind="model", base="chat")
def dpo(
    cfg: DpoSection, chat: Artifact, preferences: Artifact, *, on: Resources, out: Path, report: Report
) -> dict[str, Any]:
    """Direct preference optimisation against the SFT model, whose log-probabilities are computed once."""
    from pipeline.tokens.chats import encode_pairs

    counts = encode_records(encode_pairs, preferences, cfg, chat.path, out, report)
    return counts | train(
        cfg, data=out / "_run" / "data", tokenizer=chat.path, init=chat.path, on=on, out=out, report=report
    )
