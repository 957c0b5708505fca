"""The ingest stage: files of any known form become documents with provenance."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.data import IngestSection
from pipeline.config.resources import Resources
from tasks.running.sources import SourceSet
from tasks.running.stage import Metrics, Report, stage


@stage(version=1, kind="documents", libs=("orjson", "fastwarc", "pyarrow"))
def ingest(cfg: IngestSection, sources: SourceSet, *, on: Resources, out: Path, report: Report) -> Metrics:
    """Read every source into Parquet documents; what cannot be read is counted and sampled."""
    from pipeline.data.ingest import ingest as make

    return make(cfg, list(sources.sources), out, workers=on.workers, engine=on.engine, progress=report)
