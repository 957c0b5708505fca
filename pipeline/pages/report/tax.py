"""What each training stage gave and took: every score of the first model and its change from stage to stage.

Neighbours are compared on the same items (paired bootstrap), so a change may be sure although the two scores' intervals
overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pipeline.pages.parts.forms import Badge, Cell, Table
from pipeline.pages.report.labels import label, place
from pipeline.pages.report.scores import Change, ModelScores

_LESS = ("bits_per_byte", "said.loops", "said.empty")
"""Scores of which less is better."""
_NEUTRAL = ("said.distinct", "said.tagged")
"""Scores of which neither more nor less is."""


@dataclass(frozen=True)
class Step:
    """The change of a score by one stage, as it is shown; ``kind``: up, down or same (not sure)."""

    text: str
    interval: str
    kind: str


@dataclass(frozen=True)
class TaxRow:
    """A score: its label, and the step to each model after the first (None: not scored there)."""

    label: str
    steps: tuple[Step | None, ...]


def tax_rows(models: Sequence[ModelScores]) -> list[TaxRow]:
    """A row per score that two neighbours have, in the order in which they are reported."""
    steps = [model.get("against_before", {}) for model in models[1:]]
    names = list(dict.fromkeys(name for step in steps for name in step))
    names.sort(key=place)
    return [TaxRow(label(name), tuple(_step(name, step) for step in steps)) for name in names]


def tax_table(rows: Sequence[TaxRow], names: Sequence[str]) -> Table | None:
    """The rows as a table; None without any."""
    if not rows:
        return None
    heads = ["", *(f"{before} → {after}" for before, after in pairwise(names))]
    cells = [[row.label, *(_cell(step) for step in row.steps)] for row in rows]
    return Table(heads, cells, frozenset(range(1, len(heads))))


def _cell(step: Step | None) -> str | Cell:
    return "–" if step is None else Cell(note=step.interval, change=Badge(step.text, step.kind))


def _step(name: str, changes: Mapping[str, Change]) -> Step | None:
    change = changes.get(name)
    if change is None:
        return None
    bits = name == "bits_per_byte"
    scale, form, unit = (1, "{:+.3f}", "") if bits else (100, "{:+.1f}", " points")
    value, low, high = (form.format(scale * change[end]) for end in ("difference", "low", "high"))
    better = change["difference"] < 0 if name in _LESS else change["difference"] > 0
    kind = ("up" if better else "down") if change["sure"] and name not in _NEUTRAL else "same"
    return Step(f"{value}{unit}", f"{low} to {high}, n = {change['n']:,}", kind)
