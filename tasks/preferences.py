"""The preferences stage: preference pairs of any form become the records that dpo learns from."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.cleaning import DecontaminateSection
from pipeline.config.resources import Resources
from tasks.running.sources import SourceSet
from tasks.running.stage import Metrics, Report, stage
from tasks.screening import screened


@stage(version=1, kind="records", libs=("orjson", "pyarrow", "unicode", "xxhash"))
def preferences(
    cfg: DecontaminateSection,
    records: SourceSet,
    exams: SourceSet | None = None,
    *,
    on: Resources,
    out: Path,
    report: Report,
) -> Metrics:
    """Read preference pairs, drop or report those that hold evaluation texts, and write them in normal form."""
    from pipeline.data.preference_records import read_preferences

    return screened(cfg, read_preferences, records, exams, on, out, report)
