"""What a file name says: its format and its compression. The one list of suffixes that the project reads."""

from __future__ import annotations

import re

FORMATS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv",
    ".txt": "text", ".text": "text", ".md": "text", ".markdown": "text", ".rst": "text",
    ".html": "html", ".htm": "html", ".xhtml": "html", ".warc": "warc",
}  # fmt: skip
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
_MAGIC = re.compile(r"[*?\[]")


def has_magic(path: str) -> bool:
    """Whether a path is a glob pattern."""
    return _MAGIC.search(path) is not None


def compression_of(name: str) -> str | None:
    """One of "gzip", "zstd", "bz2", "xz" or None, by the last suffix."""
    return next((kind for suffix, kind in COMPRESSIONS.items() if name.lower().endswith(suffix)), None)


def format_of(name: str) -> str | None:
    """One of "jsonl", "json", "parquet", "csv", "text", "html", "warc" or None for a file that we do not read, by its
    suffixes."""
    name = name.lower()
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    return next((kind for suffix, kind in FORMATS.items() if name.endswith(suffix)), None)


def suffixes() -> str:
    """The suffixes for an error message."""
    return ", ".join(FORMATS) + "; each also with " + ", ".join(COMPRESSIONS)
