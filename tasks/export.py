"""The export stage: the final model as others use it, with a card that says where it comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.config.evaluation import ExportSection
from pipeline.config.resources import Resources
from storage.store import Artifact
from tasks.running.inputs import Descent
from tasks.running.stage import Metrics, Report, stage


@stage(
    version=1,
    kind="release",
    workers="model.verify",
    libs=("gguf", "safetensors", "torch", "transformers"),
    base="model",
    reads={"scores": "scores.json", "forms": "costs.json"},
)
def export(
    cfg: ExportSection,
    model: Artifact,
    descent: Descent,
    scores: Artifact | None = None,
    forms: Artifact | None = None,
    *,
    on: Resources,
    out: Path,
    report: Report,
) -> Metrics:
    """Publish weights, tokenizer, chat template and a model card that tells the descent, the scores and what rounded
    forms cost; prove that stock transformers gives equal logits."""
    from pipeline.release.export import export as make

    facts: dict[str, Any] = {"stages": descent.stages, "sources": descent.sources}
    for name, made, file in (("scores", scores, "scores.json"), ("costs", forms, "costs.json")):
        if made:
            facts[name] = json.loads((made.path / file).read_text(encoding="utf-8"))
    return make(cfg, model.path, out, facts=facts, progress=report)
