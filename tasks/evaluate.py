"""The evaluate stage: base, SFT and DPO model side by side, scored on the same questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config.evaluation import EvaluateSection
from pipeline.config.resources import Resources
from pipeline.evaluation.names import model_name
from storage.store import Artifact
from tasks.running.inputs import Several, several
from tasks.running.launch import launch
from tasks.running.sources import SourceSet, unchanged
from tasks.running.stage import Report, stage


@stage(
    version=1,
    kind="scores",
    workers="model.score",
    libs=("tokenizers", "torch"),
    reads={"learnt": ("contamination.jsonl", "records.jsonl")},
)
def evaluate(
    cfg: EvaluateSection,
    models: Several,
    tokens: Artifact,
    exams: SourceSet | None = None,
    learnt: Several = several(),
    *,
    on: Resources,
    out: Path,
    report: Report,
) -> dict[str, Any]:
    """Ask every model the same questions; ``learnt`` are the data they were trained on, to tell which questions those
    hold."""
    from pipeline.data.jsonl import read_jsonl
    from pipeline.evaluation.exams import write_exams

    named = {model_name(model.stage): model for model in models.items}
    chats = [data.path / "records.jsonl" for data in learnt.items if data.stage == "chats"]
    asked = (row for path in chats for row in read_jsonl(path))
    contamination = [data.path / "contamination.jsonl" for data in learnt.items]
    with unchanged(exams):
        counts = write_exams(cfg, exams.sources if exams else (), out / "_run" / "exams", asked, contamination)
    settings = cfg.model_dump(include={"max_new_tokens", "batch", "bits_tokens", "seq_len", "seed"})
    scores = launch(
        "model.score",
        {
            "models": [{"name": name, "path": str(model.path)} for name, model in named.items()],
            "reference": list(named)[-2] if len(named) > 2 else None,
            "exams": str(out / "_run" / "exams"),
            "tokens": str(tokens.path),
            "out": str(out),
            "settings": settings,
            "device": on.device,
            "dtype": "auto",
        },
        out,
        on,
        report.training,
        single=True,
    )
    return {f"exam_{name}": count for name, count in counts.items()} | scores
