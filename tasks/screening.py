"""What the stages share that read records from outside: chats, preference pairs and problems."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.config.cleaning import DecontaminateSection
from pipeline.config.resources import Resources
from tasks.running.sources import SourceSet, unchanged
from tasks.running.stage import Report


def screened(
    cfg: DecontaminateSection,
    read: Callable[..., Iterator[dict[str, Any]]],
    records: SourceSet,
    exams: SourceSet | None,
    on: Resources,
    out: Path,
    report: Report,
) -> dict[str, Any]:
    """Read records, drop or report those that hold texts of ``exams``, and write them in normal form into ``out``."""
    from pipeline.data.screen import screen
    from pipeline.evaluation.exams import exam_items

    with unchanged(records, exams):
        items = exam_items(exams.sources if exams else ())
        return screen(cfg, read, records.sources, items, out, workers=on.workers, engine=on.engine, progress=report)
