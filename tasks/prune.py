"""The prune stage, which `pipeline prune` runs by itself: a smaller model, with what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config.release import PruneSection
from pipeline.config.resources import Resources
from storage.store import Artifact
from tasks.costs import measure_costs, texts_of
from tasks.running.inputs import Folder
from tasks.running.launch import launch
from tasks.running.stage import Report, stage

CUT = {"layers", "heads", "channels", "calibration_tokens", "seq_len"}
"""Options of the section that the cutting process takes."""


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
    texts = texts_of(tokens, text, scores)
    cut = {name: texts[name] for name in ("tokens", "text")} | cfg.model_dump(include=CUT)
    spec = {"model": str(model.path), "out": str(out), "pruned": str(out), **cut}
    found = launch("model.prune", spec, out, on, report.training, single=True)
    form = {"name": "pruned", "path": str(out), "bytes": (out / "model.safetensors").stat().st_size}
    return {**found, **measure_costs(cfg, model.path, [form], texts, on=on, out=out, report=report)}
