"""What the data stages leave for the funnel page: ``stats.json``, ``samples.jsonl``, ``pairs.jsonl`` and the token
dataset's ``meta.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NotRequired, TypedDict

from pipeline.data.jsonl import read_jsonl


class Counts(TypedDict, total=False):
    """Documents into and out of a stage, of one source or language."""

    docs_in: int
    docs_out: int


class Histogram(TypedDict):
    """Candidate pairs between neighbouring edges of similarity, and where copies begin."""

    edges: list[float]
    pairs: list[int]
    threshold: float


class Stats(TypedDict):
    """``stats.json``: documents and characters, what every rule dropped and changed, and what single stages count."""

    docs_in: int
    docs_out: int
    chars_in: int
    chars_out: int
    dropped: dict[str, int]
    changed: dict[str, int]
    by_source: NotRequired[dict[str, Counts]]
    by_lang: NotRequired[dict[str, Counts]]
    decided_by: NotRequired[dict[str, int]]
    similarity_histogram: NotRequired[Histogram]
    candidate_pairs: NotRequired[int]
    verified_pairs: NotRequired[int]
    clusters: NotRequired[int]
    evaluation: NotRequired[dict[str, dict[str, int]]]
    splits: NotRequired[dict[str, dict[str, int]]]


class Sample(TypedDict):
    """One thing that a rule did, with the text before and after it."""

    rule: str
    action: str
    source: str
    path: str
    line: int
    before: str
    after: str
    why: str


class Pair(TypedDict):
    """Two documents that were compared, from where they first differ."""

    similarity: float
    a: str
    b: str
    copies: bool
    text_a: str
    text_b: str


class Meta(TypedDict):
    """The token dataset: sequences, tokens and bytes of every split."""

    splits: dict[str, dict[str, int]]
    vocab_size: int


def read_stats(stages: Mapping[str, Path]) -> dict[str, Stats]:
    """The statistics of those stages that have any, in the given order."""
    files = {name: path / "stats.json" for name, path in stages.items()}
    return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}


def read_samples(stages: Mapping[str, Path]) -> dict[str, list[Sample]]:
    """The samples of every stage; none where it left none."""
    return {name: _lines(path / "samples.jsonl") for name, path in stages.items()}


def read_pairs(stages: Mapping[str, Path]) -> list[Pair]:
    """The pairs that were compared, of all stages that compare."""
    return [pair for path in stages.values() for pair in _lines(path / "pairs.jsonl")]


def read_meta(tokens: Path | None) -> Meta | None:
    """What the token dataset says of itself, if there is one."""
    file = tokens / "meta.json" if tokens else None
    return json.loads(file.read_text(encoding="utf-8")) if file and file.is_file() else None


def _lines(path: Path) -> list:
    return list(read_jsonl(path)) if path.is_file() else []
