"""The shard stage: documents become training and validation shards with a data card."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.data import ShardSection
from pipeline.config.resources import Resources
from storage.store import Artifact
from tasks.running.inputs import Several
from tasks.running.stage import Metrics, Report, stage


@stage(
    version=1,
    kind="documents",
    libs=("pyarrow", "xxhash"),
    reads={"docs": "part-*.parquet", "history": "stats.json"},
)
def shard(cfg: ShardSection, docs: Artifact, history: Several, *, on: Resources, out: Path, report: Report) -> Metrics:
    """Split, mix and shuffle documents into Parquet shards; their data card tells what ``history``, the stages that
    made them, did."""
    from pipeline.data.shard import shard as make

    past = {made.stage: made.path for made in history.items}
    return make(cfg, docs.path, out, history=past, workers=on.workers, engine=on.engine, progress=report)
