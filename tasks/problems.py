"""The problems stage: problems that are made, and those of files in any form, become what rl tries answers to."""

from __future__ import annotations

import functools
from pathlib import Path

from pipeline.config.cleaning import DecontaminateSection
from pipeline.config.resources import Resources
from tasks.running.sources import ProblemSet, SourceSet
from tasks.running.stage import Metrics, Report, stage
from tasks.screening import screened


@stage(version=1, kind="records", libs=("orjson", "pyarrow", "unicode", "xxhash"))
def problems(
    cfg: DecontaminateSection,
    records: ProblemSet,
    exams: SourceSet | None = None,
    *,
    on: Resources,
    out: Path,
    report: Report,
) -> Metrics:
    """Make and read problems, drop or report those that hold evaluation texts, and write them in normal form."""
    from pipeline.data.problem_records import read_problems

    return screened(cfg, functools.partial(read_problems, records.settings), records, exams, on, out, report)
