"""The shard stage: documents become training and validation shards with a data card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config.data import ShardSection
from pipeline.config.resources import Resources
from storage.lineage import ancestry
from storage.store import Artifact, Store
from tasks.running.stage import Report, stage


@stage(version=1, libs=("pyarrow",))
def shard(cfg: ShardSection, docs: Artifact, *, on: Resources, out: Path, report: Report) -> dict[str, Any]:
    """Split, mix and shuffle documents into Parquet shards."""
    from pipeline.data.shard import shard as make

    return make(cfg, docs.path, out, history=history(docs), workers=on.workers, engine=on.engine, progress=report)


def history(docs: Artifact) -> dict[str, Path]:
    """The artifacts that ``docs`` was made from, the first stage first, and ``docs``: of each its stage and path. Only
    those that this machine holds."""
    store = Store(docs.path.parent.parent)
    records = ancestry(store.own, (docs.stage, docs.key))
    return {record["stage"]: store.directory(record["stage"], record["key"]) for record in records}
