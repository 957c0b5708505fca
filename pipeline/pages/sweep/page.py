"""The page of a sweep: self-contained HTML with the table, every child's number on one scale, and the curves on one
plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pipeline.pages.parts.charts import Chart, Point, dots, lines
from pipeline.pages.parts.curves import read_curves
from pipeline.pages.parts.forms import Table
from pipeline.pages.parts.render import html

BEST = 6
"""Curves drawn, as many as there are colours."""


class Child(Protocol):
    """One point of the grid: its overrides by path, its number (None without one), and what became of it."""

    values: dict[str, str]
    state: str
    value: float | None
    seconds: float
    stages: dict[str, str]
    error: str | None
    curve: str | None


def page(title: str, metric: str, children: Sequence[Child]) -> str:
    """HTML of a sweep. ``children``: best first, as flows/sweep.py makes them."""
    known = [child for child in children if child.value is not None]
    swept = [path for path in (children[0].values if children else ()) if len({c.values[path] for c in children}) > 1]
    curves = [(label(c, swept), _curve(c.curve, metric)) for c in known[:BEST] if c.curve]
    charts = [
        (f"{metric} by child", dots([(label(c, swept), c.value) for c in known if c.value is not None], metric)),
        ("Effect of one setting", effect(known, swept, metric)),
        (
            f"Curves of the best {BEST}" if len(known) > BEST else "Curves",
            lines([curve for curve in curves if curve[1]], f"curves of {metric}", "step", height=260),
        ),
    ]
    drawn = [(name, chart) for name, chart in charts if chart]
    return html(Path(__file__).parent, "sweep.html.j2", title=title, table=_table(metric, children), charts=drawn)


def label(child: Child, swept: Sequence[str]) -> str:
    """A child's values of the settings that differ, without their sections, which the table tells."""
    return ", ".join(f"{path.rpartition('.')[2]} {child.values[path]}" for path in swept)


def effect(children: Sequence[Child], swept: Sequence[str], metric: str) -> Chart | None:
    """The number against the first setting that has several numeric values, a line per combination of the others."""
    for path in swept if children else ():
        numbers = {text: number for c in children if (number := _number(text := c.values[path])) is not None}
        if len(numbers) < 2 or len(numbers) < len({c.values[path] for c in children}):
            continue
        logarithmic = min(numbers.values()) > 0 and max(numbers.values()) / min(numbers.values()) >= 10
        groups: dict[str, list[Point]] = {}
        for child in children:
            rest = label(child, [other for other in swept if other != path]) or metric
            x = numbers[child.values[path]]
            if child.value is not None:
                groups.setdefault(rest, []).append((math.log10(x) if logarithmic else x, child.value))
        series = [(name, sorted(points)) for name, points in sorted(groups.items())]
        return lines(series, f"{metric} by {path}", f"{path}, log10" if logarithmic else path, height=240)
    return None


def _number(text: str) -> float | None:
    try:
        number = float(text.replace("_", ""))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _table(metric: str, children: Sequence[Child]) -> Table:
    paths = list(children[0].values) if children else []
    rows = []
    for child in children:
        value = f"{child.value:.4f}" if child.value is not None else _why(child)
        ran = [name for name, state in child.stages.items() if state == "ran"]
        cells = [child.values[path] for path in paths]
        rows.append([*cells, value, f"{child.seconds:.1f}", ", ".join(ran) or "all from cache"])
    return Table([*paths, metric, "seconds", "stages that ran"], rows, frozenset((len(paths) + 1,)))


def _why(child: Child) -> str:
    """Why a child has no number."""
    return child.error.splitlines()[0] if child.error else child.state


def _curve(path: str | None, metric: str) -> list[Point]:
    """Step and value of a training curve: the metric's own where it was measured on the way, else the training loss."""
    own = metric.rpartition(".")[2]
    found = read_curves(Path(path), (own, "loss")) if path else {}
    return next((points for name in (own, "loss") if len(points := found.get(name, [])) > 1), [])
