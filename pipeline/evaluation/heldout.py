"""What is known of the documents behind a token dataset's validation split: language and source of each, in order."""

from __future__ import annotations

import json
from pathlib import Path


def write_documents(shards: Path, out: Path) -> None:
    """Write ``documents.json`` into ``out``: {"lang": […], "source": […]}, one entry a document of ``shards/val``."""
    import pyarrow.parquet as pq

    known: dict[str, list[str]] = {"lang": [], "source": []}
    for part in sorted((shards / "val").glob("part-*.parquet")):
        table = pq.read_table(part, columns=list(known))
        for name, values in known.items():
            values += [str(value) for value in table.column(name).to_pylist()]
    (out / "documents.json").write_text(json.dumps(known, ensure_ascii=False), encoding="utf-8")
