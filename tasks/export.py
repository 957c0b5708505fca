"""The export stage: the final model as others use it, with a card that says where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config.evaluation import ExportSection
from pipeline.config.resources import Resources
from storage.store import Artifact
from tasks.running.inputs import Descent
from tasks.running.stage import Report, stage


@stage(
    version=1,
    kind="release",
    workers="model.verify",
    libs=("gguf", "safetensors", "torch", "transformers"),
    base="model",
)
def export(
    cfg: ExportSection, model: Artifact, descent: Descent, *, on: Resources, out: Path, report: Report
) -> dict[str, Any]:
    """Publish weights, tokenizer, chat template and a model card that tells the ``descent``; prove that stock
    transformers gives equal logits."""
    from pipeline.release.export import export as make

    return make(cfg, model.path, out, facts={"stages": descent.stages, "sources": descent.sources}, progress=report)
