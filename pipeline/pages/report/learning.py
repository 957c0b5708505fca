"""What the report tells of reinforcement learning: held-out problems before and after, and answers to read."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.data.jsonl import read_jsonl
from pipeline.pages.parts.charts import Chart, lines
from pipeline.pages.parts.curves import read_curves
from pipeline.pages.parts.forms import Table

NAMES = {
    "exact": "solved, greedy answers",
    "pass_1": "pass@1, sampled",
    "pass_4": "pass@4",
    "pass_8": "pass@8",
    "reward": "reward",
}

PART = "reward_"


@dataclass(frozen=True)
class Learning:
    """Tables, curves and answers for the page."""

    table: Table
    curves: list[tuple[str, Chart]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)


def learning(model: Path | None, samples: int) -> Learning | None:
    """From the artifact of the rl stage; None without it."""
    if model is None or not (model / "_run" / "result.json").is_file():
        return None
    run = model / "_run"
    result: dict[str, float] = json.loads((run / "result.json").read_text(encoding="utf-8"))
    return Learning(_table(result), _curves(run / "metrics.jsonl"), _answers(run, samples))


def _table(result: dict[str, float]) -> Table:
    """A row for each number that was measured before and after, tasks last."""
    tasks = sorted(
        name.removeprefix("val_exact_")
        for name in result
        if name.startswith("val_exact_") and name not in ("val_exact_low", "val_exact_high")
    )
    rows = []
    for name, words in [*NAMES.items(), *((f"exact_{task}", f"solved: {task}") for task in tasks)]:
        if f"val_{name}" in result and f"before_{name}" in result:
            rows.append([words, *(_share(result, when, name) for when in ("before", "val"))])
    return Table(["held-out problems", "before", "after"], rows, frozenset({1, 2}))


def _share(result: dict[str, float], when: str, name: str) -> str:
    value = result[f"{when}_{name}"]
    if name == "reward":
        return f"{value:.3f}"
    if f"{when}_{name}_low" in result:
        return f"{value:.1%} ({result[f'{when}_{name}_low']:.1%} to {result[f'{when}_{name}_high']:.1%})"
    return f"{value:.1%}"


def _curves(path: Path) -> list[tuple[str, Chart]]:
    """Reward, in all and by part, length and entropy by step."""
    parts = _parts(path)
    found = read_curves(path, ("reward", "val_exact", "completion_length", "entropy", *parts))
    groups = {
        "reward": [("reward of sampled answers", found["reward"]), ("held-out problems solved", found["val_exact"])],
        "parts of the reward": [(name.removeprefix(PART), found[name]) for name in parts] if len(parts) > 1 else [],
        "length": [("tokens in an answer", found["completion_length"])],
        "entropy": [("nats a token", found["entropy"])],
    }
    made = [
        (name, lines([s for s in series if s[1]], f"{name} by step", "step", height=200))
        for name, series in groups.items()
    ]
    return [(name, chart) for name, chart in made if chart]


def _parts(path: Path) -> list[str]:
    """The rewards that add up, as the curves are named."""
    first = next((row for row in read_jsonl(path) if "reward_std" in row), {})
    return sorted(name for name in first if name.startswith(PART) and name != f"{PART}std")


def _answers(run: Path, samples: int) -> list[dict[str, Any]]:
    """Held-out problems with what was said before and after: first those that became right, then the others."""
    paths = [run / f"heldout-{when}.jsonl" for when in ("before", "after")]
    if not all(path.is_file() for path in paths):
        return []
    rows = [
        {**after, "before": before["said"], "was_right": bool(before["right"]), "right": bool(after["right"])}
        for before, after in zip(*map(read_jsonl, paths), strict=False)
    ]
    kinds = [
        [row for row in rows if (row["was_right"], row["right"]) == kind]
        for kind in ((False, True), (True, False), (False, False), (True, True))
    ]
    each = -(-samples // 3)
    return [row for kind in kinds for row in kind[:each]][:samples]
