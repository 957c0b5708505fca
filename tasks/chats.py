"""The chats stage: conversations of any form become the records that sft learns from."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.cleaning import DecontaminateSection
from pipeline.config.resources import Resources
from tasks.running.sources import SourceSet
from tasks.running.stage import Metrics, Report, stage
from tasks.screening import screened


@stage(version=1, kind="records", libs=("orjson", "pyarrow", "unicode", "xxhash"))
def chats(
    cfg: DecontaminateSection,
    records: SourceSet,
    exams: SourceSet | None = None,
    *,
    on: Resources,
    out: Path,
    report: Report,
) -> Metrics:
    """Read chats, drop or report those that hold evaluation texts, and write them in normal form."""
    from pipeline.data.chat_records import read_chats

    return screened(cfg, read_chats, records, exams, on, out, report)
