"""The evaluate stage: base, SFT and DPO model side by side, and one report about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.evaluation import EvaluateSection
from pipeline.config.resources import Resources
from storage.store import Artifact
from tasks.running.launch import launch
from tasks.running.sources import SourceSet
from tasks.running.stage import Report, stage

if TYPE_CHECKING:
    from pipeline.evaluation.selection import Taken

NAMES = {"pretrain": "base", "sft": "sft", "dpo": "dpo"}


@stage(version=1, workers="model.score", kind="report")
def evaluate(
    cfg: EvaluateSection,
    base: Artifact,
    chat: Artifact,
    aligned: Artifact,
    tokens: Artifact,
    exams: SourceSet,
    text: Artifact,
    chats: Artifact | SourceSet,
    preferences: Artifact | SourceSet,
    *,
    on: Resources,
    out: Path,
    report: Report,
) -> dict[str, Any]:
    """Ask every model the same questions and write report.html and report.md."""
    from pipeline.data.jsonl import read_jsonl
    from pipeline.evaluation.selection import taken, write_exams
    from pipeline.pages.report import write_report

    models = {
        NAMES[model.stage]: model for model in (base, chat, aligned)
    }  # a stage that was left out is not asked twice
    learnt = [
        data for data in (text, chats, preferences) if isinstance(data, Artifact)
    ]  # a SourceSet is one that was left out
    asked = read_jsonl(chats.path / "records.jsonl") if isinstance(chats, Artifact) else ()
    counts = write_exams(
        cfg, exams.sources, out / "_run" / "exams", asked, [data.path / "contamination.jsonl" for data in learnt]
    )
    gone = taken({data.stage: data.path for data in learnt})
    for line in [*_taken(gone), *_unread(counts)]:
        report.note(f"evaluate: {line}")
    settings = cfg.model_dump(include={"max_new_tokens", "batch", "bits_tokens", "seq_len", "seed"})
    scores = launch(
        "model.score",
        {
            "models": [{"name": name, "path": str(model.path)} for name, model in models.items()],
            "reference": "sft" if "dpo" in models else None,
            "exams": str(out / "_run" / "exams"),
            "tokens": str(tokens.path),
            "out": str(out),
            "settings": settings,
            "device": on.device,
            "dtype": "auto",
        },
        out,
        on,
        report.training,
        single=True,
    )
    write_report(
        out,
        title="Evaluation",
        samples=cfg.samples,
        facts={"questions": f"{counts['answers']:,}", "choices": f"{counts['choices']:,}"},
        curves={name: model.path / "_run" / "metrics.jsonl" for name, model in models.items()},
    )
    for line in _windows(scores, models):
        report.note(f"evaluate: {line}")
    lost = {f"exam_took_{name}": row["taken"] for name, row in gone.items()}
    return {f"exam_{name}": count for name, count in counts.items()} | lost | scores


def _taken(gone: Mapping[str, Taken]) -> Iterator[str]:
    """A line for each kind of training data that exams took records from."""
    for name, row in gone.items():
        yield (
            f"{row['taken']:,} of {row['of']:,} records of {name} hold questions of exams ({', '.join(row['sets'])})"
            " and were not trained on (decontaminate.action)"
        )


def _unread(counts: Mapping[str, int]) -> Iterator[str]:
    """A line about records of exams that are no items, and about files that were left out."""
    if counts["skipped"]:
        yield f"{counts['skipped']:,} records of evaluate.sources are no exam items (_run/exams/skipped.jsonl)"
    if counts["left"]:
        yield f"{counts['left']:,} files of evaluate.sources hold few-shot or training examples and were not asked"


def _windows(scores: Mapping[str, float], models: Iterable[str]) -> Iterator[str]:
    """A line for each model whose window was too short for something."""
    for name in models:
        if unread := scores.get(f"{name}.too_long", 0):
            yield f"{unread:,.0f} items do not fit the window of {name} and do not count"
        if cut := scores.get(f"{name}.cut_short", 0):
            yield f"{cut:,.0f} answers of {name} were cut short by its window"
