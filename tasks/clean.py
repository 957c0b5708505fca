"""The clean stage: raw documents become clean ones."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.cleaning import CleanSection
from pipeline.config.resources import Resources
from storage.store import Artifact
from tasks.running.stage import Metrics, Report, stage


@stage(
    version=1,
    kind="documents",
    libs=("ftfy", "pyarrow", "resiliparse", "trafilatura", "unicode"),
    reads={"docs": "part-*.parquet"},
)
def clean(cfg: CleanSection, docs: Artifact, *, on: Resources, out: Path, report: Report) -> Metrics:
    """Repair, filter and mask documents; every drop and change has a named rule."""
    from pipeline.data.clean import clean as make

    return make(cfg, docs.path, out, workers=on.workers, engine=on.engine, progress=report)
