"""The export stage: the final model as others use it, with a card that says where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config.evaluation import ExportSection
from pipeline.config.resources import Resources
from storage.lineage import ancestry
from storage.store import Artifact, Store
from tasks.running.stage import Report, stage


@stage(version=1, workers="model.verify", libs=("transformers", "safetensors"), kind="model", base="model")
def export(cfg: ExportSection, model: Artifact, *, on: Resources, out: Path, report: Report) -> dict[str, Any]:
    """Publish weights, tokenizer, chat template and model card; prove that stock transformers gives equal logits."""
    from pipeline.release.export import export as make

    return make(cfg, model.path, out, facts=facts(model), progress=report)


def facts(model: Artifact) -> dict[str, Any]:
    """What the model card says: every stage the model descends from with its section, and the sources by digest."""
    store = Store(model.path.parent.parent)
    found: dict[str, Any] = {"stages": {}, "sources": {}}
    for record in reversed(ancestry(store.own, (model.stage, model.key))):
        section = record.get("identity", {}).get("section", {})
        found["stages"].setdefault(record["stage"], {"digest": record["digest"], "section": section})
        for given in record["inputs"]:
            found["sources"] |= {
                s["name"]: {"digest": s["digest"], "files": s["files"], "bytes": s["bytes"], "stage": record["stage"]}
                for s in given.get("sources", [])
            }
    return found
