"""The shard stage: documents become training and validation shards with a data card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.sections.data import ShardSection
from pipeline.sections.resources import Resources
from storage.store import Artifact
from tasks.stage import Report, stage


@stage(version=1, libs=("pyarrow",))
def shard(cfg: ShardSection, docs: Artifact, *, on: Resources, out: Path, report: Report) -> dict[str, Any]:
    """Split, mix and shuffle documents into Parquet shards."""
    from pipeline.shard import shard as make

    return make(cfg, docs.path, out, workers=on.workers, engine=on.engine, progress=report)
