"""What the stages share that tune a model on records: the records become a token dataset in its own vocabulary."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.dpo import DpoSection
from pipeline.config.reward import RewardSection
from pipeline.config.sft import SftSection
from pipeline.data.jsonl import read_jsonl
from storage.store import Artifact
from tasks.running.stage import Report

Encode = Callable[..., dict[str, float]]


def encode_records(
    encode: Encode,
    records: Artifact | Sequence[Artifact],
    cfg: SftSection | DpoSection | RewardSection,
    model: Path,
    data: Path,
    report: Report,
    **options: Any,
) -> dict[str, float]:
    """Encode a stage's records, of one artifact after the other, into the token dataset ``data`` with the tokenizer of
    ``model``; returns counts. ``options`` are passed on to ``encode``.

    Raises ValueError when more of them are unusable than ``cfg.max_dropped`` allows.
    """
    given = [records] if isinstance(records, Artifact) else records
    rows = itertools.chain.from_iterable(read_jsonl(one.path / "records.jsonl") for one in given)
    counts = encode(rows, model, data, max_tokens=cfg.seq_len, seed=cfg.seed, progress=report, **options)
    dropped, seen = counts.get("dropped", 0), counts.get("records", 0)
    if dropped > cfg.max_dropped * seen:
        reasons = ", ".join(f"{key.removeprefix('dropped_')} {n}" for key, n in counts.items() if "dropped_" in key)
        raise ValueError(
            f"{dropped} of {seen} records cannot be trained on: {reasons}; examples with file and line are in"
            f" {data / 'dropped.jsonl'}. {report.name}.max_dropped = {cfg.max_dropped} is the share that is tolerated:"
            f" raise {report.name}.seq_len (now {cfg.seq_len}) if they are too long, mend the data, or raise it"
        )
    return counts
