"""What the stages share that tune a model on records: the records become a token dataset in its own vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.config.training import TrainSection
from pipeline.data.jsonl import read_jsonl
from storage.store import Artifact
from tasks.running.stage import Report

Encode = Callable[..., dict[str, Any]]


def encode_records(
    encode: Encode, records: Artifact, cfg: TrainSection, model: Path, data: Path, report: Report
) -> dict[str, Any]:
    """Encode a stage's records into the token dataset ``data`` with the tokenizer of ``model``; returns counts."""
    rows = read_jsonl(records.path / "records.jsonl")
    return encode(rows, model, data, max_tokens=cfg.seq_len, seed=cfg.seed, progress=report)
