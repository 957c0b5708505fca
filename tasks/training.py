"""What the three training stages share: a spec for the worker, its processes, and what is left of them afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.network.config import dump
from pipeline.config.resources import Resources
from pipeline.config.training import DpoSection, SftSection, TrainSection
from storage.store import Artifact
from tasks.running.launch import launch
from tasks.running.stage import Report

Encode = Callable[..., dict[str, Any]]


def train(
    cfg: TrainSection, *, data: Path, tokenizer: Path, init: Path | None, on: Resources, out: Path, report: Report
) -> dict[str, Any]:
    """Train in worker processes until ``out`` is a model directory; an earlier attempt's checkpoints in it are resumed
    from."""
    spec = cfg.spec(on, data=data, tokenizer=tokenizer, init=init, out=out)
    result = launch("model.training.train", dump(spec), out, on, report.training, note=report.note)
    shutil.rmtree(
        out / "_run" / "checkpoints", ignore_errors=True
    )  # the published model is whole; checkpoints are for attempts
    return result


def encode_records(
    encode: Encode, records: Artifact, cfg: SftSection | DpoSection, model: Path, out: Path, report: Report
) -> dict[str, Any]:
    """Encode a stage's records into ``out/_run/data`` with the tokenizer of ``model``; returns counts.

    Raises ValueError when more of them are unusable than ``cfg.max_dropped`` allows.
    """
    from pipeline.data.jsonl import read_jsonl

    counts = encode(
        read_jsonl(records.path / "records.jsonl"),
        model,
        out / "_run" / "data",
        max_tokens=cfg.seq_len,
        seed=cfg.seed,
        progress=report,
    )
    name, dropped, seen = type(cfg).OBJECTIVE, counts.get("dropped", 0), counts.get("records", 0)
    if dropped > cfg.max_dropped * seen:
        reasons = ", ".join(f"{key.removeprefix('dropped_')} {n}" for key, n in counts.items() if "dropped_" in key)
        raise ValueError(
            f"{name}: {dropped} of {seen} records cannot be trained on: {reasons}; examples with file and line are in"
            f" {out / '_run' / 'data' / 'dropped.jsonl'}. {name}.max_dropped = {cfg.max_dropped} is the share that is"
            f" tolerated: raise {name}.seq_len (now {cfg.seq_len}) if they are too long, mend the data, or raise it"
        )
    return counts
