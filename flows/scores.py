"""Scores on the terminal: the models side by side, and what each stage changed beyond chance."""

from __future__ import annotations

import math
from typing import Any

from flows.dag import model_names

SCORES = (
    ("bits_per_byte", "held-out bits per byte", "{:.3f}", None),
    ("answers_training", "training questions right", "{:.0%}", None),
    ("answers_heldout", "held-out paraphrases right", "{:.0%}", None),
    ("answers_exam", "exam questions right", "{:.0%}", None),
    ("choices", "multiple choice right", "{:.0%}", 0.25),
    ("preferences", "preferred answer likelier", "{:.0%}", 0.5),
    ("judged", "better than before, says the judge", "{:.0%}", 0.5),
)
"""Score, label, form, and what guessing gives where the stage does not say."""
EXAM = ".exam."


def score_lines(metrics: dict[str, Any], names: list[str] | None = None) -> list[str]:
    """The models side by side, from the evaluate stage's flat metrics (``<model>.<score>``, with ``.n`` and ``.chance``
    where it counts); no lines without any. A star marks what guessing would do as well. ``names``: the models, those of
    the DAG when nothing is said."""
    known = (f"{name}.{score}" for name in (names or model_names()) for score in ("bits_per_byte", "choices", "place"))
    scored = list(dict.fromkeys(key.rpartition(".")[0] for key in known if key in metrics))
    if not scored:
        return []
    lines, guessed = ["  " + " " * 38 + "".join(f"{name:>9}" for name in scored)], False
    for score, label, form, chance in (*SCORES, *exams_of(metrics)):
        cells = [metrics.get(f"{name}.{score}") for name in scored]
        if all(cell is None for cell in cells):
            continue
        asked = [n for name in scored if (n := metrics.get(f"{name}.{score}.n", metrics.get(f"exam_{score}")))]
        label += f" (of {max(asked):,.0f})" if asked and "%" in form else ""
        texts: list[str] = []
        for name, cell in zip(scored, cells, strict=True):
            by_luck = cell is not None and _by_luck(
                cell, metrics.get(f"{name}.{score}.chance", chance), max(asked, default=0)
            )
            guessed |= by_luck
            texts.append("–" if cell is None else form.format(cell) + ("*" if by_luck else ""))
        lines.append(f"  {label:<38}" + "".join(f"{text:>9}" for text in texts))
    return [*lines, *(["  * no better than guessing"] if guessed else []), *change_lines(metrics, scored), ""]


def exams_of(metrics: dict[str, Any]) -> list[tuple[str, str, str, None]]:
    """The standard exams among the metrics, as rows of :data:`SCORES`."""
    names = [
        key.partition(EXAM)[2].removesuffix(".chance") for key in metrics if EXAM in key and key.endswith(".chance")
    ]
    return [(f"exam.{name}", name, "{:.1%}", None) for name in dict.fromkeys(names)]


def change_lines(metrics: dict[str, Any], scored: list[str]) -> list[str]:
    """For each model after the first what it changed beyond the interval of the difference."""
    lines: list[str] = []
    for name in scored[1:]:
        told: list[str] = []
        for score, label, form, _ in (*SCORES, *exams_of(metrics)):
            change, low, high = (
                metrics.get(f"{name}.{score}.{end}") for end in ("change", "change_low", "change_high")
            )
            if change is not None and low is not None and high is not None and (low > 0 or high < 0):
                told.append(f"{label} {change:+.3f}" if "%" not in form else f"{label} {100 * change:+.1f}")
        lines.append(f"  {name} changed beyond chance: {', '.join(told) or 'nothing'}")
    compared = [score for score, *_ in (*SCORES, *exams_of(metrics))]
    return lines if any(f"{name}.{score}.change" in metrics for name in scored for score in compared) else []


def _by_luck(share: float, chance: float | None, n: int) -> bool:
    """Whether a share of ``n`` is within 1.96 standard errors of what guessing gives; never without n and chance."""
    if not chance or not n:
        return False
    return share - chance <= 1.96 * math.sqrt(chance * (1 - chance) / n)
