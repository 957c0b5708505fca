"""What the report tells of the stages that judge answers: how well a reward model does, and which pairs a model made
of its own answers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.data.jsonl import read_jsonl
from pipeline.pages.parts.forms import Table

NAMES = {
    "accuracy": "better answer scores higher",
    "longer_wins": "length alone: the longer one wins",
    "accuracy.short": "short conversations",
    "accuracy.middle": "middling ones",
    "accuracy.long": "long ones",
    "accuracy.longer_is_better": "where the better answer is longer",
    "accuracy.shorter_is_better": "where it is shorter",
}


@dataclass(frozen=True)
class Judging:
    """Tables and pairs for the page; each is left out where the run has no such stage."""

    reward: Table | None = None
    sample: Table | None = None
    pairs: list[dict[str, Any]] = field(default_factory=list)


def judging(reward: Path | None, sample: Path | None, samples: int) -> Judging | None:
    """From the artifacts of the reward and the sample stage; None without either."""
    if not (reward or sample):
        return None
    return Judging(
        reward=_accuracy(reward) if reward else None,
        sample=_counts(sample) if sample else None,
        pairs=list(islice(read_jsonl(sample / "records.jsonl"), samples)) if sample else [],
    )


def _accuracy(reward: Path) -> Table | None:
    path = reward / "_run" / "accuracy.json"
    if not path.is_file():
        return None
    table: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8"))
    order = ["accuracy", "longer_wins", *(name for name in table if name not in ("accuracy", "longer_wins"))]
    rows = [
        [
            NAMES.get(name, name.removeprefix("accuracy.")),
            f"{row['share']:.1%}",
            f"{row['low']:.1%} to {row['high']:.1%}",
            f"{row['n']:,.0f}",
        ]
        for name in order
        if (row := table.get(name))
    ]
    return Table(["held-out pairs", "share", "95 % interval", "pairs"], rows, frozenset({1, 2, 3}))


def _counts(sample: Path) -> Table:
    stats = json.loads((sample / "stats.json").read_text(encoding="utf-8"))
    rows = [["prompts", f"{stats['docs_in']:,}"], ["with a pair", f"{stats['docs_out']:,}"]]
    rows += [[f"left out: {reason}", f"{n:,}"] for reason, n in sorted(stats["dropped"].items())]
    return Table(["the model's own answers", ""], rows, frozenset({1}))
