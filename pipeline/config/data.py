"""What ingest and shard read from the config: where documents come from, what is tolerated, and how they are split and
mixed."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.config.base import Section, where

Share = Annotated[float, Field(ge=0, le=1)]


class IngestSection(Section):
    """Sources and how to read them. The sources' names and contents enter the cache key as the stage's input digest."""

    sources: tuple[str, ...] = where(
        ("python-docs", "teaching"),
        min_length=1,
        description=(
            "source names (python-docs, teaching), files, directories, globs, s3://bucket/prefix,"
            " hf://owner/dataset[/path]"
        ),
    )
    sample: dict[str, Share] = Field(
        default_factory=dict,
        description="share of a source's documents that is read, by source name; 1 where not named",
    )
    text_fields: tuple[str, ...] = Field(
        default=("text", "content", "raw_content"),
        min_length=1,
        description="fields tried in this order for a document's text",
    )
    id_fields: tuple[str, ...] = Field(
        default=("id", "_id", "uid", "warc_record_id"), description="fields tried in this order for the input's own id"
    )
    ignore_fields: tuple[str, ...] = Field(
        default=(),
        description=(
            "fields of chats and preference pairs read as text to leave out on purpose; any other field with text that"
            " no known form has is refused by name"
        ),
    )
    max_bad_share: float = Field(
        default=0.1, ge=0, le=1, description="share of a source's records that may be unreadable before ingest fails"
    )
    max_record_mb: int = Field(
        default=64, ge=1, le=1024, description="longest line or record read, in MB; a longer one is counted as too_long"
    )
    max_text_chars: int = Field(
        default=1_000_000,
        ge=1_000,
        description="a longer text or Markdown file becomes several documents, cut between paragraphs",
    )
    part_mb: int = Field(
        default=8,
        ge=1,
        le=1024,
        description="input read into one output file, in MB; the unit of parallel work from here to shard",
    )
    python_docs_chars: int = Field(
        default=4_000_000, ge=0, description="characters taken from python-docs; 0 takes all there are"
    )


class ShardSection(Section):
    """The final split, mix and order of the documents."""

    val_share: float = Field(
        default=0.01,
        ge=0,
        lt=1,
        description="share of documents held out for validation, chosen by the hash of their id",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="seed of the split and of the order of documents")
    weights: dict[str, Annotated[float, Field(ge=0, le=100)]] = Field(
        default_factory=dict,
        description=(
            "how many times a source's training documents appear, by source name; 0.5 takes half of them, 0 none; 1"
            " where not named"
        ),
    )
    part_mb: int = Field(default=16, ge=1, le=4096, description="text in one output file, in MB before compression")
    row_group_rows: int = Field(
        default=1024, ge=1, le=1_000_000, description="rows in a Parquet row group, the unit of random access"
    )
    licences: dict[str, str] = Field(
        default_factory=dict, description="licence of each source by name, for the data card"
    )
