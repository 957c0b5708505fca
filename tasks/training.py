"""What the three training stages share: a spec for the worker, its processes, and what is left of them afterwards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from model.config import dump
from pipeline.sections.resources import Resources
from pipeline.sections.training import TrainSection
from tasks.launch import launch
from tasks.sources import SourceSet
from tasks.stage import Report

Read = Callable[..., Iterator[dict[str, Any]]]
Encode = Callable[..., dict[str, Any]]


def train(cfg: TrainSection, *, data: Path, tokenizer: Path, init: Path | None, on: Resources, out: Path, report: Report) -> dict[str, Any]:
    """Train in worker processes until ``out`` is a model directory; an earlier attempt's checkpoints in it are resumed from."""
    spec = cfg.spec(on, data=data, tokenizer=tokenizer, init=init, out=out)
    result = launch("model.train", dump(spec), out, on, report.training)
    shutil.rmtree(out / "_run" / "checkpoints", ignore_errors=True)  # the published model is whole; checkpoints are for attempts
    return result


def encode_records(read: Read, encode: Encode, given: SourceSet, cfg: TrainSection, model: Path, out: Path, report: Report) -> dict[str, Any]:
    """Encode a stage's records into ``out/_run/data`` with the tokenizer of ``model``; returns counts.

    Records that cannot be used are counted in the metrics by reason, told on the console, and listed with file and line in
    ``_run/unusable.jsonl``.
    """
    from pipeline.records import Losses

    losses = Losses()
    counts = encode(read(given.sources, losses=losses), model, out / "_run" / "data", max_tokens=cfg.seq_len, seed=cfg.seed, progress=report)
    if losses.samples:
        lines = (json.dumps(sample, ensure_ascii=False, sort_keys=True) + "\n" for sample in losses.samples)
        (out / "_run" / "unusable.jsonl").write_text("".join(lines), encoding="utf-8")
        first = losses.samples[0]
        report.note(f"{losses.dropped.total():,} of {losses.seen:,} records cannot be used, first {first['path']} line {first['line']}: {first['why']}")
    return counts | {f"unusable.{reason}": count for reason, count in sorted(losses.dropped.items())}
