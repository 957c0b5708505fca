"""The prune stage, which `pipeline prune` runs by itself: a smaller model, with what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config.release import PruneSection
from pipeline.config.resources import Resources
from storage.store import Artifact
from tasks.running.inputs import Folder
from tasks.running.launch import launch
from tasks.running.stage import Report, stage

CUT = {"layers", "heads", "channels", "calibration_tokens"}
MEASURED = {"bits_tokens", "kl_tokens", "exam_items", "seq_len", "speed_tokens", "max_new_tokens", "batch"}
"""Options of the section that the two worker processes take; both read ``seq_len``."""


@stage(
    version=1,
    kind="model",
    workers=("model.prune", "model.measure"),
    libs=("safetensors", "tokenizers", "torch"),
    base="model",
    reads={"scores": ("answers.jsonl", "choices.jsonl", "standard.jsonl")},
)
def prune(
    cfg: PruneSection,
    model: Artifact | Folder,
    tokens: Artifact | None = None,
    scores: Artifact | None = None,
    text: Folder | None = None,
    *,
    on: Resources,
    out: Path,
    report: Report,
) -> dict[str, Any]:
    """Leave out the parts that cost least, and measure what is left against the whole model."""
    same = {
        "model": str(model.path),
        "out": str(out),
        "tokens": str(tokens.path) if tokens else None,
        "text": str(text.path) if text else None,
    }
    cut = {**same, **cfg.model_dump(include=CUT | {"seq_len"}), "pruned": str(out)}
    found = launch("model.prune", cut, out, on, report.training, single=True)
    size = (out / "model.safetensors").stat().st_size
    measured = {
        **same,
        "exams": str(scores.path) if scores else None,
        "forms": [{"name": "pruned", "path": str(out), "bytes": size}],
        "settings": cfg.model_dump(include=MEASURED),
    }
    return {**found, **launch("model.measure", measured, out, on, report.training, single=True)}
