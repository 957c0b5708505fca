"""Pages and notes about the ancestry of what a run made, from the tracker's records."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pipeline.pages import lineage as pages
from tasks.tracking.records import StageRecord

Link = Callable[[str], str]


def ancestry(records: Iterable[StageRecord], stage: str) -> list[StageRecord]:
    """The records that ``stage`` descends from, and itself last."""
    records = list(records)
    names = [record["stage"] for record in pages.ancestry([dict(record) for record in records], stage)]
    by_stage = {record["stage"]: record for record in records}
    return [by_stage[name] for name in names]


def note(record: StageRecord | None, chain: list[StageRecord], run_link: Link, model_link: Link) -> str:
    """Markdown for ``mlflow.note.content`` of one artifact, or (``record`` None) of a run."""
    return pages.note(dict(record) if record else None, [dict(r) for r in chain], run_link, model_link)


def page(records: Iterable[StageRecord], title: str, run_link: Callable[[str], str | None]) -> str:
    """The HTML page of these records."""
    return pages.page([dict(record) for record in records], title, run_link)
