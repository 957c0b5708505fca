"""The evaluate stage: base, SFT and DPO model side by side, scored on the same questions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.evaluation import EvaluateSection
from pipeline.config.resources import Resources
from pipeline.evaluation.names import model_name
from storage.store import Artifact
from tasks.running.inputs import Several
from tasks.running.launch import launch
from tasks.running.sources import SourceSet, unchanged
from tasks.running.stage import Metrics, Report, stage

if TYPE_CHECKING:
    from pipeline.evaluation.selection import Taken


@stage(
    version=2,
    kind="scores",
    workers="model.score",
    libs=("tokenizers", "torch"),
    reads={"learnt": ("contamination.jsonl", "records.jsonl", "stats.json"), "shards": "val/*"},
)
def evaluate(
    cfg: EvaluateSection,
    models: Several,
    tokens: Artifact,
    shards: Artifact,
    exams: SourceSet | None = None,
    standard: SourceSet | None = None,
    learnt: Several | None = None,
    *,
    on: Resources,
    out: Path,
    report: Report,
) -> Metrics:
    """Ask every model the same questions; ``learnt`` are the data they were trained on, to tell which questions those
    hold, and ``shards`` tell language and source of the held-out text."""
    from pipeline.data.jsonl import read_jsonl
    from pipeline.evaluation.heldout import write_documents
    from pipeline.evaluation.selection import taken, write_exams

    data_of = learnt.items if learnt else ()
    named = {model_name(model.stage): model for model in models.items}
    chats = [data.path / "records.jsonl" for data in data_of if data.stage == "chats"]
    asked = (row for path in chats for row in read_jsonl(path))
    contamination = [data.path / "contamination.jsonl" for data in data_of]
    own, known = exams.sources if exams else (), standard.sources if standard else ()
    with unchanged(exams, standard):
        counts = write_exams(cfg, own, out / "_run" / "exams", asked, contamination, known)
    write_documents(shards.path, out / "_run" / "exams")
    gone = taken({data.stage: data.path for data in data_of})
    for line in [*_taken(gone), *_unread(counts)]:
        report.note(f"evaluate: {line}")
    settings = cfg.model_dump(include={"max_new_tokens", "batch", "bits_tokens", "seq_len", "seed"})
    scores = launch(
        "model.score",
        {
            "models": [{"name": name, "path": str(model.path)} for name, model in named.items()],
            "reference": reference_of(list(named)),
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
    if cfg.judge_model and len(named) > 1:
        from pipeline.evaluation.judged import judge_answers

        scores |= judge_answers(cfg, out, list(named), report)
    for line in _windows(scores, named):
        report.note(f"evaluate: {line}")
    lost = {f"exam_took_{name}": row["taken"] for name, row in gone.items()}
    return {f"exam_{name}": count for name, count in counts.items()} | lost | scores


def reference_of(models: Sequence[str]) -> str | None:
    """The model against which what preferences taught is measured: sft where something follows it, else the last but
    one; None of fewer than three."""
    if len(models) < 3:
        return None
    return "sft" if "sft" in models[:-1] else models[-2]


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
