"""The tokenizer stage: a byte-level BPE learnt from the shards, or one that was given."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.resources import Resources
from pipeline.config.tokens import TokenizerSection
from storage.store import Artifact
from tasks.running.stage import Metrics, Report, stage


@stage(
    version=1,
    kind="tokenizer",
    libs=("pyarrow", "tokenizers", "unicode"),
    reads={"shards": ("train/part-*.parquet", "val/part-*.parquet")},
)
def tokenizer(cfg: TokenizerSection, shards: Artifact, *, on: Resources, out: Path, report: Report) -> Metrics:
    """Train the vocabulary (or take an existing one) and measure its compression per language."""
    from pipeline.tokens.tokenizer import make_tokenizer

    return make_tokenizer(cfg, shards.path, out, progress=report)
