"""Four small charts as data: bars with intervals, curves, a histogram, dots on a scale; ``macros.html.j2`` draws them.

Own drawing instead of matplotlib: the bytes do not depend on versions, and a chart follows the reader's dark mode.
Across, places are percentages of whatever width there is, so that letters keep their size on a phone; down, they are
pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.pages.parts.forms import Key

COLOURS = 6
FEW = 12
"""A curve of no more points than these shows them one by one."""
Point = tuple[float, float]


@dataclass(frozen=True)
class Mark:
    """One SVG element: its name, its attributes, and the text in it or shown when the pointer rests on it."""

    shape: str
    attributes: dict[str, str]
    text: str = ""
    tip: str = ""


@dataclass(frozen=True)
class Curve:
    """A line through points of a square of 1000 by 1000, which is stretched over the chart."""

    name: str
    points: str
    colour: int


@dataclass(frozen=True)
class Chart:
    """Marks on a plot of ``height`` pixels, with ``left`` and ``right`` pixels kept free beside it for labels.

    ``curves`` are drawn between ``top`` and ``top + inner``.
    """

    title: str
    height: int
    marks: Sequence[Mark]
    left: int = 0
    right: int = 0
    keys: Sequence[Key] = ()
    curves: Sequence[Curve] = ()
    top: int = 0
    inner: int = 0


@dataclass(frozen=True)
class Interval:
    """A share with its 95 % interval, all 0..1, and how many it is of: what one bar shows."""

    value: float
    low: float
    high: float
    right: int
    asked: int


@dataclass(frozen=True)
class Group:
    """Bars that stand below one label, one per name or None; ``guess`` is the share that guessing gives, if known."""

    label: str
    cells: Sequence[Interval | None]
    guess: float | None = None


def bars(groups: Sequence[Group], names: Sequence[str], title: str) -> Chart:
    """Horizontal bars of shares (0..1), one colour per name."""
    thick, y = 14, 0
    body: list[Mark] = []
    for group in groups:
        body.append(_text("0", y + 12, group.label, "label"))
        top = y + 20
        for i, cell in enumerate(group.cells):
            if cell is not None:
                body += _bar(cell, names[i], top, thick, i % COLOURS)
                top += thick
        if group.guess is not None:
            line = _line(_percent(group.guess), _percent(group.guess), y + 16, top + 2, "guess")
            body.append(Mark("line", line, tip=f"guessing gives {group.guess:.0%}"))
        y = top + 14
    grid = [mark for share in (0, 0.25, 0.5, 0.75, 1) for mark in _upright(share, y - 4, f"{share:.0%}")]
    keys = [Key(name, f"fill-{i % COLOURS}") for i, name in enumerate(names)]
    keys += [Key("what guessing gives", "guess")] if any(g.guess is not None for g in groups) else []
    return Chart(title, y + 18, grid + body, left=4, right=104, keys=keys)


def _bar(cell: Interval, name: str, top: int, thick: int, colour: int) -> list[Mark]:
    tip = f"{name}: {cell.value:.1%} (95 % interval {cell.low:.1%} to {cell.high:.1%}, {cell.right} of {cell.asked})"
    middle = top + thick / 2
    low, high = _percent(cell.low), _percent(cell.high)
    body = {"x": "0", "y": f"{top + 1}", "width": _percent(cell.value), "height": f"{thick - 3}", "rx": "2"}
    return [
        Mark("rect", body | {"class": f"series-{colour}"}, tip=tip),
        Mark("line", _line(low, high, middle, middle, "whisker"), tip=tip),
        Mark("line", _line(low, low, middle - 3, middle + 3, "whisker")),
        Mark("line", _line(high, high, middle - 3, middle + 3, "whisker")),
        _text(
            _percent(max(cell.high, cell.value)), middle + 4, f"{cell.value:.0%}, n = {cell.asked:,}", "value", dx="7"
        ),
    ]


def lines(
    series: Sequence[tuple[str, Sequence[Point]]], title: str, x_label: str, *, height: int = 220
) -> Chart | None:
    """One curve per series (name, points), scaled to the data; a curve of few points also shows them as dots.

    Points that are not finite are left out; None when fewer than two are left.
    """
    clean = [(name, [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]) for name, points in series]
    every = [point for _, points in clean for point in points]
    if len(every) < 2:
        return None
    top, inner = 8, height - 42
    x0, x1 = min(x for x, _ in every), max(x for x, _ in every)
    steps = _ticks(min(y for _, y in every), max(y for _, y in every))
    y0, y1 = steps[0], steps[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        """How far right and how far down a point is, 0..1."""
        return (x - x0) / ((x1 - x0) or 1), (y1 - y) / (y1 - y0)

    marks = [mark for tick in steps for mark in _level(top + (y1 - tick) / (y1 - y0) * inner, f"{tick:g}")]
    marks += [
        _text("0", height - 18, f"{x0:g}", "tick"),
        _text("100%", height - 18, f"{x1:g}", "tick", "end"),
        _text("50%", height - 6, x_label, "tick", "middle"),
    ]
    curves: list[Curve] = []
    for i, (name, points) in enumerate(clean):
        places = [place(x, y) for x, y in _thin(points)]
        path = " ".join(f"{1000 * across:.1f},{1000 * down:.1f}" for across, down in places)
        curves += [Curve(name, path, (i + 1) % COLOURS)] if points else []
        for (across, down), (x, y) in zip(places, points, strict=True) if len(points) <= FEW else ():
            dot = {"cx": _percent(across), "cy": f"{top + down * inner:.1f}", "r": "4"}
            marks.append(
                Mark("circle", dot | {"class": f"dot series-{(i + 1) % COLOURS}"}, tip=f"{name}: {y:.4g} at {x:g}")
            )
    keys = [Key(curve.name, f"fill-{curve.colour}") for curve in curves] if len(series) > 1 else []
    return Chart(title, height, marks, left=46, right=10, keys=keys, curves=curves, top=top, inner=inner)


def histogram(edges: Sequence[float], counts: Sequence[int], threshold: float, title: str, unit: str) -> Chart:
    """``counts`` between neighbouring ``edges``; bins from ``threshold`` on have the accent colour."""
    height, top, inner = 220, 18, 160
    steps = sorted({math.ceil(tick) for tick in _ticks(0, max([*counts, 1]))})
    bins, most = len(counts), steps[-1]
    marks = [mark for tick in steps for mark in _level(top + (1 - tick / most) * inner, f"{tick:,}")]
    for i, n in enumerate(counts):
        tall = n / most * inner
        attributes = {
            "x": _percent((i + 0.04) / bins),
            "y": f"{top + inner - tall:.1f}",
            "width": _percent(0.92 / bins),
            "height": f"{tall:.1f}",
            "rx": "2",
            "class": "series-1" if edges[i] >= threshold - 1e-9 else "series-0",
        }
        marks.append(Mark("rect", attributes, tip=f"{edges[i]:.2f} to {edges[i + 1]:.2f}: {n:,} {unit}"))
    every = 2 if bins > 8 else 1
    marks += [
        _text(_percent(i / bins), top + inner + 15, f"{edges[i]:.2f}", "tick", "middle")
        for i in range(0, bins + 1, every)
    ]
    at = _percent((threshold - edges[0]) / (edges[-1] - edges[0]))
    marks.append(Mark("line", _line(at, at, 4, top + inner, "guess")))
    marks.append(_text(at, 12, f"threshold {threshold:g}", "tick", dx="6"))
    marks.append(_text("50%", height - 6, title, "tick", "middle"))
    return Chart(title, height, marks, left=46, right=16)


def dots(rows: Sequence[tuple[str, float]], title: str) -> Chart | None:
    """One dot per (name, value) on a common scale; None for fewer than two."""
    if len(rows) < 2:
        return None
    low, high = min(value for _, value in rows), max(value for _, value in rows)
    marks = []
    for i, (name, value) in enumerate(rows):
        y = 34 * i
        at = _percent((value - low) / ((high - low) or 1))
        marks += [
            _text("0", y + 12, name, "label"),
            Mark("line", _line("0", "100%", y + 23, y + 23, "grid")),
            Mark("circle", {"cx": at, "cy": f"{y + 23}", "r": "5", "class": "series-1"}, tip=f"{name}: {value:g}"),
            _text("100%", y + 27, f"{value:.4g}", "value", dx="14"),
        ]
    return Chart(title, 34 * len(rows), marks, left=6, right=76)


def _upright(share: float, bottom: int, label: str) -> list[Mark]:
    """A grid line from top to ``bottom`` with its label below it."""
    at = _percent(share)
    return [
        Mark("line", _line(at, at, 0, bottom, "grid")),
        _text(at, bottom + 15, label, "tick", "start" if share == 0 else "middle"),
    ]


def _level(y: float, label: str) -> list[Mark]:
    """A grid line across at height ``y`` with its label on the left."""
    return [Mark("line", _line("0", "100%", y, y, "grid")), _text("0", y + 4, label, "tick", "end", dx="-8")]


def _text(x: str, y: float, text: str, kind: str, anchor: str = "start", dx: str = "0") -> Mark:
    return Mark("text", {"x": x, "y": f"{y:g}", "dx": dx, "text-anchor": anchor, "class": kind}, text)


def _line(x1: str, x2: str, y1: float, y2: float, kind: str) -> dict[str, str]:
    return {"x1": x1, "x2": x2, "y1": f"{y1:.1f}", "y2": f"{y2:.1f}", "class": kind}


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _thin(points: Sequence[Point], most: int = 360) -> list[Point]:
    """At most ``most`` points, each the mean of its neighbourhood: a long curve stays a small file."""
    size = max(1, math.ceil(len(points) / most))
    blocks = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in block) / len(block), sum(y for _, y in block) / len(block)) for block in blocks]


def _ticks(low: float, high: float) -> list[float]:
    """Round values that span the data: steps of 1, 2 or 5 times a power of ten."""
    span = (high - low) or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]
