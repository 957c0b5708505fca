"""Pages and notes about the ancestry of what a run made, from the tracker's records."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

from pipeline.pages.lineage import records as pages
from pipeline.pages.lineage.page import page as html_page
from pipeline.pages.lineage.records import Record
from tasks.tracking.records import StageRecord

Link = Callable[[str], str]


def ancestry(records: Iterable[StageRecord], stage: str) -> list[StageRecord]:
    """The records that ``stage`` descends from, and itself last."""
    records = list(records)
    names = [record["stage"] for record in pages.ancestry([_page_record(record) for record in records], stage)]
    by_stage = {record["stage"]: record for record in records}
    return [by_stage[name] for name in names]


def note(record: StageRecord | None, chain: list[StageRecord], run_link: Link, model_link: Link) -> str:
    """Markdown for ``mlflow.note.content`` of one artifact, or (``record`` None) of a run."""
    return pages.note(_page_record(record) if record else None, [_page_record(r) for r in chain], run_link, model_link)


def page(records: Iterable[StageRecord], title: str, run_link: Callable[[str], str | None]) -> str:
    """The HTML page of these records."""
    return html_page([_page_record(record) for record in records], title, run_link)


def _page_record(record: StageRecord) -> Record:
    """The tracker's record as the page reads it: the same fields, of which the page needs fewer."""
    return cast(Record, dict(record))
