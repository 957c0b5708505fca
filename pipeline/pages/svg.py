"""Two small plots as inline SVG: grouped bars with intervals, and lines. Colours come from the page's CSS
(``--series-0``…).

Own drawing instead of matplotlib: bytes that do not depend on versions, text that scales with the page, dark mode for
free.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

_WIDTH = 720


def bars(
    groups: Sequence[tuple[str, Sequence[tuple[float, float, float] | None], float | None]],
    names: Sequence[str],
    title: str,
) -> str:
    """Horizontal bars of shares (0..1). A group is (label, one (value, low, high) or None per name, chance level or
    None)."""
    left, right, bar, gap = 190, 64, 13, 16
    plot = _WIDTH - left - right
    y = 8
    parts = []
    for label, cells, chance in groups:
        height = bar * len(names)
        parts.append(
            f'<text x="{left - 12}" y="{y + height / 2 + 4:.1f}" text-anchor="end" class="label">{escape(label)}</text>'
        )
        for i, cell in enumerate(cells):
            if cell is None:
                continue
            value, low, high = cell
            top = y + i * bar
            middle = top + bar / 2
            tip = f"{escape(names[i])}: {value:.1%} (95 % interval {low:.1%} to {high:.1%})"
            parts.append(
                f'<g><title>{tip}</title><rect x="{left}" y="{top + 1}" width="{max(1.0, value * plot):.1f}"'
                f' height="{bar - 3}" rx="2" class="series-{i % 6}"/>'
            )
            x1, x2 = left + low * plot, left + high * plot
            parts.append(
                f'<path d="M{x1:.1f} {middle:.1f}H{x2:.1f}M{x1:.1f} {middle - 3:.1f}v6M{x2:.1f} {middle - 3:.1f}v6"'
                ' class="whisker"/>'
            )
            parts.append(
                f'<text x="{max(x2, left + value * plot) + 6:.1f}" y="{middle + 3.5:.1f}"'
                f' class="value">{value:.0%}</text></g>'
            )
        if chance is not None:
            x = left + chance * plot
            parts.append(
                f'<path d="M{x:.1f} {y - 4}V{y + height + 2}" class="chance"><title>chance: {chance:.0%}</title></path>'
            )
        y += height + gap
    grid = "".join(
        f'<path d="M{left + s * plot:.1f} 0V{y - 6}" class="grid"/><text x="{left + s * plot:.1f}" y="{y + 8}"'
        f' text-anchor="middle" class="tick">{s:.0%}</text>'
        for s in (0, 0.25, 0.5, 0.75, 1)
    )
    return _figure(grid + "".join(parts), y + 14, title)


def lines(
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    title: str,
    x_label: str,
    *,
    height: int = 220,
    first: int = 0,
) -> str:
    """One curve per series (name, points), scaled to the data, coloured from colour ``first`` on. Points that are not
    finite are left out."""
    clean = [(name, [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]) for name, points in series]
    every = [point for _, points in clean for point in points]
    if len(every) < 2:
        return ""
    left, right, top, bottom = 46, 12, 10, 34
    x0, x1 = min(x for x, _ in every), max(x for x, _ in every)
    ticks = _ticks(min(y for _, y in every), max(y for _, y in every))
    y0, y1 = ticks[0], ticks[-1]

    def place(x: float, y: float) -> str:
        across = left + (x - x0) / ((x1 - x0) or 1) * (_WIDTH - left - right)
        return f"{across:.1f},{top + (y1 - y) / (y1 - y0) * (height - top - bottom):.1f}"

    parts = []
    for tick in ticks:
        y = place(x0, tick).split(",")[1]
        parts.append(
            f'<path d="M{left} {y}H{_WIDTH - right}" class="grid"/><text x="{left - 8}" y="{float(y) + 4:.1f}"'
            f' text-anchor="end" class="tick">{tick:g}</text>'
        )
    for i, (name, points) in enumerate(clean):
        path = " ".join(place(x, y) for x, y in _thin(points))
        parts.append(
            f'<polyline points="{path}" class="line line-{(first + i) % 6}"><title>{escape(name)}</title></polyline>'
        )
    for x, anchor in ((x0, "start"), (x1, "end")):
        at = place(x, y0).split(",")[0]
        parts.append(f'<text x="{at}" y="{height - bottom + 16}" text-anchor="{anchor}" class="tick">{x:g}</text>')
    parts.append(
        f'<text x="{(left + _WIDTH - right) / 2:.0f}" y="{height - 6}" text-anchor="middle"'
        f' class="tick">{escape(x_label)}</text>'
    )
    return _figure("".join(parts), height, title)


def _figure(body: str, height: float, title: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">{body}</svg>'


def _thin(points: Sequence[tuple[float, float]], most: int = 360) -> list[tuple[float, float]]:
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
