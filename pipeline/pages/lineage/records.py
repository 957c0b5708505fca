"""Lineage records as the lineage page and its note read them, in the order in which they were made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Required, TypedDict, cast

from pipeline.pages.parts.render import markdown
from storage import lineage

HEADLINE = (
    "val_bits_per_byte",
    "val_loss",
    "accuracy",
    "docs_out",
    "sequences",
    "vocab_size",
    "tokens",
    "steps",
    "exam_answers",
)
"""Metrics worth a line on a node, the first that is there."""


class Source(TypedDict, total=False):
    """What came from outside: a name, a digest over its files, how many files and bytes."""

    name: Required[str]
    digest: str
    files: int
    bytes: int


class Input(TypedDict, total=False):
    """An artifact that a stage read, or (stage "source") the sources."""

    name: Required[str]
    stage: str
    key: str
    digest: str
    sources: list[Source]


class Record(TypedDict, total=False):
    """One artifact; ``state``: ran, cached, failed or running. What is not known is left out."""

    stage: Required[str]
    key: str
    digest: str
    state: str
    section: Mapping[str, Any]
    metrics: Mapping[str, Any]
    inputs: list[Input]
    seconds: float
    built_seconds: float
    path: str
    kind: str
    run_id: str
    model_id: str


def ancestry(records: Sequence[Record], stage: str) -> list[Record]:
    """The records that ``stage`` descends from, and itself last, in the given order."""
    by_stage = {record["stage"]: record for record in records}
    # the walk reads a record's inputs and nothing else of it
    known = cast(Mapping[str, lineage.LineageRecord], by_stage)
    wanted = {r["stage"] for r in lineage.ancestry(lambda place: known.get(place[0]), (stage, ""))}
    own = [by_stage[stage]] if stage in by_stage else []
    return [r for r in records if r["stage"] in wanted and r["stage"] != stage] + own


def headline(record: Record) -> str:
    """The number that says most about an artifact, in words; "" when it has none."""
    metrics = record.get("metrics") or {}
    if isinstance(metrics.get("headline"), str):
        return metrics["headline"]
    numbers = {k: v for k, v in metrics.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    name = next((name for name in HEADLINE if name in numbers), next(iter(numbers), None))
    if name is None:
        return ""
    return f"{numbers[name]:{',.4g' if isinstance(numbers[name], float) else ','}} {name.replace('_', ' ')}"


def short(digest: str | None) -> str:
    """The start of a digest, enough to tell artifacts apart."""
    return (digest or "")[:12]


def note(
    record: Record | None, chain: Sequence[Record], run_link: Callable[[str], str], model_link: Callable[[str], str]
) -> str:
    """Markdown for ``mlflow.note.content``: of one artifact (``record``) its inputs with links, of a run (None) its
    stages."""
    here = Path(__file__).parent
    if record is None:
        rows = [
            {
                "stage": r["stage"],
                "state": r.get("state", ""),
                "digest": short(r.get("digest")),
                "what": headline(r),
                "run": run_link(run) if (run := r.get("run_id")) else None,
            }
            for r in chain
        ]
        return markdown(here, "run.md.j2", rows=rows).rstrip("\n")
    by_stage = {r["stage"]: r for r in chain}
    inputs = []
    for item in record.get("inputs") or []:
        made = by_stage.get(item.get("stage", ""))
        sources = item.get("sources")
        what = item.get("stage") or item["name"] if sources is None else ", ".join(s["name"] for s in sources)
        run, model = (made.get("run_id"), made.get("model_id")) if made else (None, None)
        inputs.append(
            {
                "name": item["name"],
                "what": what,
                "digest": short(item.get("digest")),
                "run": run_link(run) if run else None,
                "model": model_link(model) if model else None,
            }
        )
    own = {"stage": record["stage"], "digest": short(record.get("digest")), "what": headline(record)}
    return markdown(here, "artifact.md.j2", own=own, inputs=inputs).rstrip("\n")
