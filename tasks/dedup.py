"""The dedup stage: of copies, one stays."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.cleaning import DedupSection
from pipeline.config.resources import Resources
from storage.store import Artifact
from tasks.running.sources import SourceSet, unchanged
from tasks.running.stage import Metrics, Report, stage


@stage(
    version=1, kind="documents", libs=("datasketch", "pyarrow", "unicode", "xxhash"), reads={"docs": "part-*.parquet"}
)
def dedup(
    cfg: DedupSection, docs: Artifact, against: SourceSet | None = None, *, on: Resources, out: Path, report: Report
) -> Metrics:
    """Drop exact and verified near copies, keeping the best one of each group."""
    from pipeline.data.dedup import dedup as make

    with unchanged(against):
        return make(cfg, docs.path, out, workers=on.workers, engine=on.engine, progress=report)
