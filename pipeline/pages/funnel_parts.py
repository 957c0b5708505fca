"""The pieces of the funnel page: tables, bars, the similarity histogram, samples and pairs with their differences
marked."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from html import escape
from typing import Any

FUNNEL_STYLE = """\
main { max-width: 1120px }
h3 { font-size: 14px; margin: 20px 0 8px; color: var(--soft); font-weight: 600 } h3:first-of-type { margin-top: 4px }
.about { color: var(--soft); font-size: 13.5px } .soft { color: var(--soft) }
.bar { display: flex; height: 12px; border-radius: 3px; background: var(--page); overflow: hidden; min-width: 160px; align-self: center }
.bar i { display: block } .kept { background: var(--series-1) } .lost { background: var(--series-5) } .other { background: var(--series-2) }
td .bar { margin-top: 5px }
summary, .flat { display: grid; grid-template-columns: 200px 80px 1fr 90px 70px; gap: 12px; align-items: center; padding: 6px 8px;
  border-radius: 6px; font-size: 14px }
summary { cursor: pointer; list-style: none } summary::-webkit-details-marker { display: none } summary:hover { background: var(--page) }
summary .rule::before { content: "▸"; color: var(--soft); margin-right: 8px } details[open] summary .rule::before { content: "▾" }
.flat .rule::before { content: "▸"; visibility: hidden; margin-right: 8px }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.badge { justify-self: start } .dropped { color: var(--bad); background: var(--bad-back) } .changed { color: var(--good); background: var(--good-back) }
.masked, .reported { color: var(--warn); background: var(--warn-back) }
.case { margin: 6px 8px 14px 24px; border-left: 2px solid var(--rule); padding-left: 14px; font-size: 13.5px }
.case p { margin: 0 0 4px; overflow-wrap: anywhere } .place { color: var(--soft); font-size: 12.5px }
pre { font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, "Noto Sans Mono CJK SC", monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0;
  background: var(--page); border-radius: 6px; padding: 8px 10px; max-height: 230px; overflow-y: auto }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 10px } @media (max-width: 700px) { .sides { grid-template-columns: 1fr }
  summary, .flat { grid-template-columns: 1fr 70px 70px 60px } summary .bar, .flat .bar { display: none } }
del { background: var(--bad-back); color: var(--bad); text-decoration: none } ins { background: var(--good-back); color: var(--good); text-decoration: none }
.pair { margin: 0 0 16px } .pair p { margin: 0 0 6px; font-size: 13.5px }
svg .below { fill: var(--series-0) } svg .above { fill: var(--series-1) }
"""
_WORD = re.compile(r"[A-Za-z0-9_]+|\s+|.", re.DOTALL)


def count(n: int) -> str:
    """A whole number up to a million, then millions or billions with three digits."""
    for size, unit in ((1_000_000_000, " B"), (1_000_000, " M")):
        if n >= size:
            return f"{n / size:.3g}{unit}" if n < 1000 * size else f"{n / size:,.0f}{unit}"
    return f"{n:,}"


def share(part: int, whole: int) -> str:
    """A percentage, as HTML, that does not round a trace to nothing."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    return "&lt; 0.1 %" if 0 < percent < 0.1 else f"{percent:.1f} %"


def widths(parts: Sequence[tuple[int, str]], whole: int) -> str:
    """A horizontal bar of (amount, class) parts on a track that stands for ``whole``."""
    return (
        '<span class="bar">'
        + "".join(f'<i class="{name}" style="width:{100 * n / max(whole, 1):.2f}%"></i>' for n, name in parts if n)
        + "</span>"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """An HTML table of ready cells; the columns in ``numbers`` are set to the right."""
    mark = [' class="number"' if i in numbers else "" for i in range(len(head))]
    top = "".join(f"<th{m}>{escape(h)}</th>" for h, m in zip(head, mark, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{m}>{cell}</td>" for cell, m in zip(row, mark, strict=True)) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def sample(found: dict[str, Any]) -> str:
    """One sample of a rule: where, why, and the text before (and after, with the differences marked)."""
    place = (
        f"{escape(found['source'])} · {escape(found['path'])}"
        if found["path"] != found["source"]
        else escape(found["path"])
    )
    head = f'<p>{escape(found["why"])} <span class="place">{place}, line {found["line"]:,}</span></p>'
    if found["after"]:
        left, right = marked(found["before"], found["after"])
        return f'<div class="case">{head}<div class="sides"><pre>{left}</pre><pre>{right}</pre></div></div>'
    text = f"<pre>{escape(found['before'])}</pre>" if found["before"].strip() else ""
    return f'<div class="case">{head}{text}</div>'


def pair(found: dict[str, Any]) -> str:
    """A near-duplicate pair side by side, from where the texts first differ."""
    left, right = marked(found["text_a"], found["text_b"])
    head = (
        f'<p><b>{found["similarity"]:.2f}</b> <span class="place">{escape(found["a"])} ·'
        f" {escape(found['b'])}</span></p>"
    )
    return f'<div class="pair">{head}<div class="sides"><pre>{left}</pre><pre>{right}</pre></div></div>'


def marked(before: str, after: str) -> tuple[str, str]:
    """Both texts as HTML, with what is only in one of them marked; words are compared whole, other characters one by
    one."""
    a, b = _WORD.findall(before), _WORD.findall(after)
    left, right = [], []
    for tag, i, j, k, l in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        old, new = escape("".join(a[i:j])), escape("".join(b[k:l]))
        left.append(old if tag == "equal" or not old else f"<del>{old}</del>")
        right.append(new if tag == "equal" or not new else f"<ins>{new}</ins>")
    return "".join(left), "".join(right)


def histogram(edges: Sequence[float], pairs: Sequence[int], threshold: float) -> str:
    """Pairs by similarity as inline SVG; those that reach the threshold are in the accent colour."""
    wide, high, left, foot = 720, 220, 46, 34
    top, step = max([*pairs, 1]), (wide - left - 12) / max(len(pairs), 1)
    parts = []
    for tick in sorted({round(top * k / 4) for k in range(5)}):
        y = high - foot - tick / top * (high - foot - 12)
        parts.append(
            f'<path d="M{left} {y:.1f}H{wide - 12}" class="grid"/><text x="{left - 8}" y="{y + 4:.1f}"'
            f' text-anchor="end" class="tick">{tick:,}</text>'
        )
    for i, n in enumerate(pairs):
        tall = n / top * (high - foot - 12)
        x, kind = left + i * step, "above" if edges[i] >= threshold - 1e-9 else "below"
        tip = f"{edges[i]:.2f} to {edges[i + 1]:.2f}: {n:,} pairs"
        box = f'x="{x + 2:.1f}" y="{high - foot - tall:.1f}" width="{step - 4:.1f}" height="{tall:.1f}" rx="2"'
        parts.append(f'<rect {box} class="{kind}"><title>{tip}</title></rect>')
        parts.append(
            f'<text x="{x:.1f}" y="{high - foot + 16}" text-anchor="middle" class="tick">{edges[i]:.2f}</text>'
        )
    parts.append(
        f'<text x="{wide - 12}" y="{high - foot + 16}" text-anchor="middle" class="tick">{edges[-1]:.2f}</text>'
    )
    x = left + (threshold - edges[0]) / (edges[-1] - edges[0]) * (wide - left - 12)
    parts.append(
        f'<path d="M{x:.1f} 4V{high - foot}" class="chance"/><text x="{x + 6:.1f}" y="14" class="tick">threshold'
        f" {threshold:g}</text>"
    )
    parts.append(
        f'<text x="{(left + wide) / 2:.0f}" y="{high - 4}" text-anchor="middle" class="tick">Jaccard similarity of'
        " candidate pairs</text>"
    )
    return f'<svg viewBox="0 0 {wide} {high}" role="img" aria-label="pairs by similarity">{"".join(parts)}</svg>'
