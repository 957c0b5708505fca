"""Small document artifacts for the tests of the data stages."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.documents import SCHEMA

ENGLISH = (
    "A tokenizer cuts text into pieces that a model can count. The pieces are learned from the data, so that common"
    " words are one piece and rare words are several. What the tokenizer has never seen it spells in bytes, and nothing"
    " is ever lost on the way."
)
CHINESE = (
    "分词器把文本切成模型能够处理的小块。这些小块是从语料里学来的，常见的词是一个整"
    "体，少见的词由几块拼成。没有见过的字符用字节表示，所以任何文本都不会丢失信息。"
)


def write(directory: Path, texts: list[str] | list[dict], parts: int = 1, **common) -> Path:
    """An artifact of the given texts (or rows with some columns), cut into `parts` files."""
    rows = []
    for i, text in enumerate(texts):
        row = {"text": text} if isinstance(text, str) else text
        base = {"id": hashlib.sha256(f"{i}".encode()).hexdigest()[:32], "lang": None, "source": "s", "path": "f.jsonl"}
        base |= {"line": i + 1, "origin_id": str(i), "kind": "text"}
        rows.append({**base, **common, **row})
    directory.mkdir(parents=True, exist_ok=True)
    step = -(-len(rows) // parts)
    for p in range(parts):
        pq.write_table(
            pa.Table.from_pylist(rows[p * step : (p + 1) * step], SCHEMA),
            directory / f"part-{p:05d}.parquet",
            row_group_size=64,
        )
    return directory


def rows(directory: Path) -> list[dict]:
    """All documents of an artifact in order."""
    return [row for path in sorted(directory.glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()]


def files(directory: Path) -> dict[str, bytes]:
    """The artifact's files, `_run` apart, by name."""
    return {p.name: p.read_bytes() for p in sorted(directory.iterdir()) if p.is_file()}
