"""The encode stage: shards become memory-mapped token ids."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.resources import Resources
from pipeline.config.tokens import EncodeSection
from storage.store import Artifact
from tasks.running.stage import Metrics, Report, stage


@stage(
    version=1,
    kind="tokens",
    libs=("pyarrow", "tiktoken", "tokenizers"),
    reads={"shards": ("train/part-*.parquet", "val/part-*.parquet"), "vocabulary": "tokenizer.json"},
)
def encode(
    cfg: EncodeSection, shards: Artifact, vocabulary: Artifact, *, on: Resources, out: Path, report: Report
) -> Metrics:
    """Encode the training and validation text on all cores."""
    from pipeline.tokens.encode import encode_text

    return encode_text(cfg, shards.path, vocabulary.path, out, workers=on.workers, engine=on.engine, progress=report)
