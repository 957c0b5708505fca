"""What the report says of seeds: how far a score moves between runs that differ in nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev

from pipeline.pages.parts.forms import Cell, Table
from pipeline.pages.report.labels import label, place

Scores = Mapping[str, float]
"""The flat numbers of an evaluation (model/generation/summary.py)."""


def seeds_table(scores: Sequence[Scores], names: Sequence[str]) -> Table | None:
    """A row per score, a cell per model: the mean, the range, and the standard deviation; None of fewer than two
    runs."""
    if len(scores) < 2:
        return None
    rows: list[list[str | Cell]] = []
    for score in _scores(scores, names):
        cells = [[run[f"{name}.{score}"] for run in scores if f"{name}.{score}" in run] for name in names]
        if any(len(cell) > 1 for cell in cells):
            rows.append([label(score), *(_cell(score, cell) for cell in cells)])
    return Table(["", *names], rows, frozenset(range(1, len(names) + 1))) if rows else None


def _scores(scores: Sequence[Scores], names: Sequence[str]) -> list[str]:
    """The scores themselves, without their parts: those that have a chance line, and bits per byte."""
    found = dict.fromkeys(
        key.removeprefix(f"{name}.").removesuffix(".chance")
        for name in names
        for run in scores
        for key in run
        if key.startswith(f"{name}.") and key.endswith(".chance")
    )
    return sorted(["bits_per_byte", *found], key=place)


def _cell(score: str, values: Sequence[float]) -> str | Cell:
    if len(values) < 2:
        return "–"
    scale, form, unit = (1, "{:.3f}", "") if score == "bits_per_byte" else (100, "{:.1f}", " %")
    middle, low, high, spread = (
        form.format(scale * value) for value in (mean(values), min(values), max(values), stdev(values))
    )
    return Cell(f"{middle}{unit}", note=f"{low} to {high}, ± {spread}, {len(values)} runs")
