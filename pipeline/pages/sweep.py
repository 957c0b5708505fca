"""The page of a sweep: self-contained HTML with the table, every child's number on one scale, and the curves on one
plot."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from pipeline.pages import svg
from pipeline.pages.report_style import STYLE

WIDTH, ROW = 720, 22


def page(title: str, metric: str, children: Sequence[Any]) -> str:
    """HTML of a sweep. ``children``: best first, as flows/sweep.py makes them."""
    known = [c for c in children if c.value is not None]
    swept = [path for path in (children[0].values if children else ()) if len({c.values[path] for c in children}) > 1]
    plots = [
        (f"{metric} by child", dots([(label(c, swept), c.value) for c in known], metric)),
        ("Effect of one setting", effect(known, swept, metric)),
    ]
    curves = [(label(c, swept), _curve(c.curve, metric)) for c in known[:6] if c.curve]
    drawn = svg.lines([(name, points) for name, points in curves if points], f"curves of {metric}", "step", height=260)
    if drawn:
        plots.append(
            (
                "Curves" + (" of the best six" if len(known) > 6 else ""),
                _legend([name for name, points in curves if points]) + drawn,
            )
        )
    sections = [
        f"<section><h2>{escape(name)}</h2>{body}</section>"
        for name, body in [("Children, best first", _table(metric, children)), *plots]
        if body
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>\n{STYLE}</style></head>\n'
        f"<body><main><h1>{escape(title)}</h1>\n" + "\n".join(sections) + "\n</main></body></html>\n"
    )


def label(child: Any, swept: Sequence[str]) -> str:
    """A child's values of the settings that differ, without their sections, which the table tells."""
    return ", ".join(f"{path.rpartition('.')[2]} {child.values[path]}" for path in swept)


def dots(rows: Sequence[tuple[str, float]], metric: str) -> str:
    """One dot per child on a common scale; "" for fewer than two."""
    if len(rows) < 2:
        return ""
    left, right = 260, 90
    low, high = min(v for _, v in rows), max(v for _, v in rows)
    parts = []
    for i, (name, value) in enumerate(rows):
        y, x = ROW * i + ROW / 2, left + (value - low) / ((high - low) or 1) * (WIDTH - left - right)
        parts.append(
            f'<path d="M{left} {y}H{WIDTH - right}" class="grid"/>'
            f'<text x="{left - 10}" y="{y + 4}" text-anchor="end" class="label">{escape(name[:40])}</text>'
            f'<circle cx="{x:.1f}" cy="{y}" r="5" class="series-1"><title>{escape(name)}: {value:g}</title></circle>'
            f'<text x="{WIDTH - right + 12}" y="{y + 4}" class="value">{value:.4g}</text>'
        )
    return (
        f'<svg viewBox="0 0 {WIDTH} {ROW * len(rows)}" role="img" aria-label="{escape(metric)} by'
        f' child">{"".join(parts)}</svg>'
    )


def effect(children: Sequence[Any], swept: Sequence[str], metric: str) -> str:
    """The number against the first setting that has several numeric values, a line per combination of the others."""
    for path in swept if children else ():
        numbers = {c.values[path]: _number(c.values[path]) for c in children}
        if len(numbers) < 2 or None in numbers.values():
            continue
        logarithmic = min(numbers.values()) > 0 and max(numbers.values()) / min(numbers.values()) >= 10
        groups: dict[str, list[tuple[float, float]]] = {}
        for c in children:
            rest = label(c, [other for other in swept if other != path]) or metric
            x = numbers[c.values[path]]
            groups.setdefault(rest, []).append((math.log10(x) if logarithmic else x, c.value))
        lines = [(name, sorted(points)) for name, points in sorted(groups.items())]
        return _legend([name for name, _ in lines]) + svg.lines(
            lines, f"{metric} by {path}", f"{path}, log10" if logarithmic else path, height=240
        )
    return ""


def _number(text: str) -> float | None:
    try:
        return float(text.replace("_", ""))
    except ValueError:
        return None


def _legend(names: Sequence[str]) -> str:
    return (
        '<p class="legend">'
        + "".join(
            f'<span><i style="background:var(--series-{i % 6})"></i>{escape(n)}</span>' for i, n in enumerate(names)
        )
        + "</p>"
    )


def _table(metric: str, children: Sequence[Any]) -> str:
    paths = list(children[0].values)
    head = (
        "".join(f"<th>{escape(name)}</th>" for name in paths)
        + f'<th class="number">{escape(metric)}</th><th class="number">seconds</th><th>stages</th>'
    )
    rows = []
    for c in children:
        value = f"{c.value:.4f}" if c.value is not None else escape(c.error.splitlines()[0] if c.error else c.state)
        ran = [name for name, state in c.stages.items() if state == "ran"]
        cells = "".join(f"<td>{escape(c.values[p])}</td>" for p in paths)
        rows.append(
            f'<tr>{cells}<td class="number">{value}</td><td class="number">{c.seconds:.1f}</td>'
            f"<td>{escape(', '.join(ran)) or 'all from cache'}</td></tr>"
        )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _curve(path: str, metric: str) -> list[tuple[float, float]]:
    """Step and value of a training curve: the metric's own where it was measured on the way, else the training loss."""
    try:
        records = [
            json.loads(line)
            for line in Path(path).read_text("utf-8").splitlines()
            if line.startswith("{") and line.endswith("}")
        ]
    except OSError:
        return []
    for name in (metric.rpartition(".")[2], "loss"):
        points = [
            (float(r["step"]), float(r[name])) for r in records if isinstance(r.get(name), (int, float)) and "step" in r
        ]
        if len(points) > 1:
            return points
    return []
