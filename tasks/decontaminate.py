"""The decontaminate stage: what the models will be asked must not be what they learn from."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.cleaning import DecontaminateSection
from pipeline.config.resources import Resources
from storage.store import Artifact
from tasks.running.sources import SourceSet, unchanged
from tasks.running.stage import Metrics, Report, stage


@stage(version=1, kind="documents", libs=("pyarrow", "unicode", "xxhash"), reads={"docs": "part-*.parquet"})
def decontaminate(
    cfg: DecontaminateSection,
    docs: Artifact,
    exams: SourceSet | None = None,
    *,
    on: Resources,
    out: Path,
    report: Report,
) -> Metrics:
    """Find evaluation texts in the documents and drop or report the documents that hold them."""
    from pipeline.data.decontaminate import decontaminate as make
    from pipeline.evaluation.exams import exam_items

    with unchanged(exams):
        items = exam_items(exams.sources if exams else ())
    return make(cfg, docs.path, items, out, workers=on.workers, engine=on.engine, progress=report)
