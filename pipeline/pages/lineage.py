"""Draw what an artifact was made from: a self-contained HTML page with the DAG as SVG, and a Markdown note.

Input everywhere: lineage records in the order they were made, dicts with ``stage, key, digest, section, inputs,
metrics, state`` ("ran", "cached", "failed", "running") and, as far as known, ``seconds, built_seconds, path, kind,
run_id, model_id``; an input is ``{name, stage, key, digest}`` or, from outside, ``{name, stage: "source", digest,
sources: [{name, digest, …}]}``.

The picture is layered left to right by longest path from a source; edges that pass over a layer get a place of their
own in it, and each layer is ordered by the mean height of its neighbours (the barycentre method of Sugiyama et al.,
1981).
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterator
from typing import Any

from storage import lineage

Record = dict[str, Any]
WIDTH, HEIGHT, GAP_X, GAP_Y, EDGE = 186, 74, 32, 20, 14
ROW, FOLD_Y, MARGIN, LANE = 8, 64, 34, 6
"""More layers than ROW make two rows, FOLD_Y apart; edges between them run in lanes LANE apart, beside the rows in the
MARGIN."""
HEADLINE = ("val_bits_per_byte", "val_loss", "accuracy", "docs_out", "sequences", "vocab_size", "tokens", "steps")
"""Metrics worth a line on a node, the first that is there."""


def ancestry(records: list[Record], stage: str) -> list[Record]:
    """The records that ``stage`` descends from, and itself last, in the given order."""
    by_stage = {record["stage"]: record for record in records}
    wanted = {r["stage"] for r in lineage.ancestry(lambda place: by_stage.get(place[0]), (stage, ""))}
    return [r for r in records if r["stage"] in wanted and r["stage"] != stage] + (
        [by_stage[stage]] if stage in by_stage else []
    )


def note(
    record: Record | None, chain: list[Record], run_link: Callable[[str], str], model_link: Callable[[str], str]
) -> str:
    """Markdown for ``mlflow.note.content``: of one artifact (``record``) its inputs with links, of a run (None) its
    stages."""
    by_stage = {r["stage"]: r for r in chain}
    if record is None:
        lines = ["| stage | | artifact | what | run |", "|---|---|---|---|---|"]
        for r in chain:
            run = f"[run]({run_link(r['run_id'])})" if r.get("run_id") else ""
            lines.append(f"| {r['stage']} | {r.get('state', '')} | `{_short(r)}` | {_cell(headline(r))} | {run} |")
        return "\n".join([*lines, "", "The picture: artifact **lineage.html**."])
    lines = [f"**{record['stage']}** `{_short(record)}` {headline(record)}".rstrip(), "", "Made from:", ""]
    for given in record.get("inputs") or []:
        made = by_stage.get(given.get("stage", ""), {})
        links = [f"[run]({run_link(made['run_id'])})"] if made.get("run_id") else []
        links += [f"[model]({model_link(made['model_id'])})"] if made.get("model_id") else []
        what = (
            ", ".join(s["name"] for s in given["sources"])
            if "sources" in given
            else given.get("stage") or given["name"]
        )
        lines.append(f"- {given['name']}: {what} `{(given.get('digest') or '')[:12]}` {' '.join(links)}".rstrip())
    return "\n".join([*lines, "", "The whole chain: artifact **lineage.html**."])


def headline(record: Record) -> str:
    """The number that says most about an artifact, in words; "" when it has none."""
    metrics = record.get("metrics") or {}
    if isinstance(metrics.get("headline"), str):
        return metrics["headline"]
    for name in HEADLINE:
        value = metrics.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return f"{value:{',.4g' if isinstance(value, float) else ','}} {name.replace('_', ' ')}"
    return next(
        (
            f"{v:,} {k.replace('_', ' ')}"
            for k, v in metrics.items()
            if isinstance(v, (int, float)) and not isinstance(v, bool)
        ),
        "",
    )


def page(records: list[Record], title: str, run_link: Callable[[str], str | None]) -> str:
    """The HTML page: picture, and below it every stage with its section and inputs. Needs no network and no script."""
    nodes, edges = graph(records)
    places, size, end = layout(list(nodes), edges)
    lanes = iter(range(len(edges)))
    drawn = [_edge(places, path, end, lanes) for path in _long_edges(places, edges)]
    drawn += [_node(nodes[name], *places[name], run_link) for name in nodes]
    details = "\n".join(_details(record, run_link) for record in records)
    return PAGE.format(
        title=html.escape(title), css=CSS, width=size[0], height=size[1], drawing="\n".join(drawn), details=details
    )


def graph(records: list[Record]) -> tuple[dict[str, Record], list[tuple[str, str]]]:
    """Nodes by id (a stage's name, or ``source:name``) and edges from input to artifact."""
    nodes: dict[str, Record] = {}
    edges: list[tuple[str, str]] = []
    made = {record["stage"] for record in records}
    for record in records:
        for given in record.get("inputs") or []:
            for source in given.get("sources") or []:
                nodes.setdefault(f"source:{source['name']}", {**source, "stage": source["name"], "state": "source"})
                edges.append((f"source:{source['name']}", record["stage"]))
            if given.get("stage") in made:
                edges.append((given["stage"], record["stage"]))
            elif "sources" not in given:
                nodes.setdefault(
                    f"source:{given['name']}",
                    {"stage": given["name"], "digest": given.get("digest"), "state": "source"},
                )
                edges.append((f"source:{given['name']}", record["stage"]))
    return nodes | {record["stage"]: record for record in records}, list(dict.fromkeys(edges))


def layout(nodes: list[str], edges: list[tuple[str, str]]) -> tuple[dict[str, tuple[int, int]], tuple[int, int], int]:
    """Top left corners by node, (width, height) of the picture in pixels, and where the first row ends.

    Ids that start with "edge:" are the places at which a long edge passes a layer: ``edge:A>B:layer``. More than
    ``ROW`` layers are folded into two rows where the fewest edges cross the fold.
    """
    layer = _layers(nodes, edges)
    columns: list[list[str]] = [[] for _ in range(max(layer.values(), default=0) + 1)]
    for name in nodes:
        columns[layer[name]].append(name)
    links: list[tuple[str, str]] = []
    for a, b in edges:
        stops = [f"edge:{a}>{b}:{i}" for i in range(layer[a] + 1, layer[b])]
        for i, stop in enumerate(stops, layer[a] + 1):
            columns[i].append(stop)
        links += zip([a, *stops], [*stops, b], strict=True)
    _order(columns, links)
    fold = _fold([layer[a] for a, _ in edges], [layer[b] for _, b in edges], len(columns))
    places: dict[str, tuple[int, int]] = {}
    top = end = 0
    for row in filter(None, (columns[:fold], columns[fold:])):
        heights = [sum(_tall(n) + GAP_Y for n in column) - GAP_Y for column in row]
        for i, column in enumerate(row):
            y = top + (max(heights) - heights[i]) // 2
            for name in column:
                places[name] = (MARGIN + i * (WIDTH + GAP_X), y)
                y += _tall(name) + GAP_Y
        end = end or max(heights)
        top += max(heights) + FOLD_Y
    return places, (2 * MARGIN + max(fold, len(columns) - fold) * (WIDTH + GAP_X) - GAP_X, top - FOLD_Y), end


def _fold(starts: list[int], ends: list[int], layers: int) -> int:
    """How many layers the first row gets: all, or near the middle where the fewest edges pass."""
    if layers <= ROW:
        return layers
    middle = layers // 2
    return min(
        range(middle - 1, middle + 3),
        key=lambda cut: (sum(a < cut <= b for a, b in zip(starts, ends, strict=True)), abs(cut - middle - 0.5)),
    )


def _layers(nodes: list[str], edges: list[tuple[str, str]]) -> dict[str, int]:
    """Longest path from a source; a source stands one layer before its first reader."""
    layer = dict.fromkeys(nodes, 0)
    for _ in nodes:
        for a, b in edges:
            layer[b] = max(layer[b], layer[a] + 1)
    for name in nodes:
        readers = [layer[b] for a, b in edges if a == name]
        if name.startswith("source:") and readers:
            layer[name] = min(readers) - 1
    return layer


def _order(columns: list[list[str]], links: list[tuple[str, str]]) -> None:
    """Sort every layer by the mean position of its neighbours, a few times back and forth, so that few edges cross."""
    for sweep in range(8):
        place = {name: i - len(column) / 2 for column in columns for i, name in enumerate(column)}
        forth = sweep % 2 == 0
        for column in columns if forth else reversed(columns):
            near = {
                name: [place[a if forth else b] for a, b in links if (b if forth else a) == name] for name in column
            }
            column.sort(key=lambda name: sum(near[name]) / len(near[name]) if near[name] else place[name])
            place |= {name: i - len(column) / 2 for i, name in enumerate(column)}


def _tall(name: str) -> int:
    return EDGE if name.startswith("edge:") else HEIGHT


def _long_edges(places: dict[str, tuple[int, int]], edges: list[tuple[str, str]]) -> list[list[str]]:
    return [
        [a, *sorted((n for n in places if n.startswith(f"edge:{a}>{b}:")), key=lambda n: int(n.rpartition(":")[2])), b]
        for a, b in edges
    ]


def _edge(places: dict[str, tuple[int, int]], path: list[str], end: int, lanes: Iterator[int]) -> str:
    """An edge as curves from place to place; from the first row to the second it goes around, each in a lane of its
    own."""
    x, y = places[path[0]]
    x, y = x + WIDTH, y + HEIGHT // 2
    d = [f"M{x} {y}"]
    for stop in path[1:]:
        nx, ny = places[stop]
        ny += _tall(stop) // 2
        if nx < x:
            lane = next(lanes) * LANE
            d.append(_around(y, nx, ny, x + 12 + lane, end + 22 + lane, MARGIN - 10 - lane))
        else:
            bend = (nx - x) / 2
            d.append(f"C{x + bend:.0f} {y} {nx - bend:.0f} {ny} {nx} {ny}")
        x, y = nx, ny
        if stop.startswith("edge:"):
            x += WIDTH
            d.append(f"H{x}")
    return f'<path class="edge" d="{" ".join(d)}"/>'


def _around(y: int, nx: int, ny: int, right: int, between: int, left: int, r: int = 8) -> str:
    """Path with round corners: at height ``y`` to ``right``, down, at ``between`` to ``left``, down, at ``ny`` in to
    ``nx``."""
    return (
        f"H{right - r} Q{right} {y} {right} {y + r} V{between - r} Q{right} {between} {right - r} {between} "
        f"H{left + r} Q{left} {between} {left} {between + r} V{ny - r} Q{left} {ny} {left + r} {ny} H{nx}"
    )


def _node(record: Record, x: int, y: int, run_link: Callable[[str], str | None]) -> str:
    state = record.get("state", "")
    lines = [record["stage"], _short(record), headline(record) if state != "source" else _source_line(record)]
    texts = "".join(
        f'<text class="{c}" x="14" y="{dy}">{html.escape(_fit(t, n))}</text>'
        for t, c, dy, n in zip(lines, ("name", "digest", "what"), (24, 43, 61), (16, 24, 26), strict=True)
        if t
    )
    badge = f'<text class="badge" x="{WIDTH - 12}" y="24">{html.escape(state)}</text>'
    box = f'<rect width="{WIDTH}" height="{HEIGHT}" rx="9"/>'
    body = (
        f'<g class="node {html.escape(state)}"'
        f' transform="translate({x},{y})"><title>{html.escape(_tooltip(record))}</title>{box}{texts}{badge}</g>'
    )
    return body if state == "source" else f'<a href="#{html.escape(record["stage"])}">{body}</a>'


def _details(record: Record, run_link: Callable[[str], str | None]) -> str:
    stage = html.escape(record["stage"])
    link = run_link(record["run_id"]) if record.get("run_id") else None
    run = f"MLflow run <code>{html.escape(str(record.get('run_id') or '–'))}</code>"
    if link:
        run = (
            f'<a href="{html.escape(link)}" target="_blank" rel="noopener">MLflow run</a>'
            f" <code>{html.escape(record['run_id'])}</code>"
        )
    inputs = "".join(
        f"<tr><td>{html.escape(g['name'])}</td><td>{_origin(g)}</td><td><code>{html.escape((g.get('digest') or '')[:16])}</code></td></tr>"
        for g in record.get("inputs") or []
    )
    seconds, state = record.get("built_seconds") or record.get("seconds") or 0, html.escape(record.get("state", ""))
    key, digest = (html.escape(record.get(name) or "–") for name in ("key", "digest"))
    return f"""<details><summary><b>{stage}</b> <span class="{state}">{state}</span>
<code>{_short(record)}</code> {html.escape(headline(record))}</summary>
<p id="{stage}">{run} · built in {seconds:.1f} s · key <code>{key}</code> · digest <code>{digest}</code></p>
<table><tr><th>input</th><th>from</th><th>digest</th></tr>{inputs}</table>
<div class="two"><div><h3>section</h3><pre>{_json(record.get("section"))}</pre></div>
<div><h3>metrics</h3><pre>{_json(record.get("metrics"))}</pre></div></div></details>"""


def _origin(given: Record) -> str:
    if "sources" in given:
        return ", ".join(
            f"{html.escape(s['name'])} <code>{html.escape(s['digest'][:12])}</code>" for s in given["sources"]
        )
    return f'<a href="#{html.escape(given["stage"])}">{html.escape(given["stage"])}</a>' if given.get("stage") else ""


def _json(value: Any) -> str:
    return html.escape(json.dumps(value or {}, indent=1, ensure_ascii=False, sort_keys=True))


def _tooltip(record: Record) -> str:
    section = "\n".join(
        f"{k} = {json.dumps(v, ensure_ascii=False)[:120]}" for k, v in (record.get("section") or {}).items()
    )
    inputs = "\n".join(
        f"{g['name']}: {g.get('stage', '')} {(g.get('digest') or '')[:12]}" for g in record.get("inputs") or []
    )
    return "\n".join(
        filter(
            None,
            [
                f"{record['stage']} {record.get('digest') or ''}",
                inputs and f"\ninputs\n{inputs}",
                section and f"\nsection\n{section}",
            ],
        )
    )


def _source_line(record: Record) -> str:
    return (
        f"{record['files']:,} file{'s' * (record['files'] != 1)}, {record.get('bytes', 0) / 1e6:,.1f} MB"
        if "files" in record
        else ""
    )


def _short(record: Record) -> str:
    return (record.get("digest") or "")[:12]


def _fit(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


CSS = """
:root { color-scheme: light dark; --back: #fbfbfd; --fore: #1c2430; --soft: #5b6675; --card: #fff; --line: #ccd3dd; --ran: #2563c9; --cached: #1d8a55;
 --failed: #c62f2f; --source: #8a6d1d; --edge: #a9b3c1; }
@media (prefers-color-scheme: dark) { :root { --back: #14181f; --fore: #e6eaf0; --soft: #9aa5b5; --card: #1d232d; --line: #38424f; --ran: #79aaff;
 --cached: #5cc893; --failed: #ff8080; --source: #d9b85c; --edge: #566273; } }
body { font: 14px/1.5 system-ui, sans-serif; background: var(--back); color: var(--fore); margin: 24px; }
h1 { font-size: 18px; font-weight: 600; margin: 0 0 16px; } h3 { font-size: 12px; color: var(--soft); margin: 8px 0 2px; }
.picture { overflow-x: auto; padding: 4px 0 12px; } svg { display: block; max-width: 100%; height: auto; min-width: 900px; } a { color: var(--ran); }
.node rect { fill: var(--card); stroke: var(--line); stroke-width: 1.2; } .node:hover rect { stroke-width: 2.4; } .node text { fill: var(--fore); }
.node.ran rect { stroke: var(--ran); } .node.cached rect { stroke: var(--cached); } .node.failed rect { stroke: var(--failed); }
.node.source rect { stroke: var(--source); stroke-dasharray: 4 3; } .edge { fill: none; stroke: var(--edge); stroke-width: 1.5; }
text.name { font-weight: 600; font-size: 13px; } text.digest { font: 11px ui-monospace, monospace; fill: var(--soft); } text.what { font-size: 11.5px; }
text.badge { font-size: 11px; text-anchor: end; fill: var(--soft); } .ran .badge, span.ran { fill: var(--ran); color: var(--ran); }
.cached .badge, span.cached { fill: var(--cached); color: var(--cached); } .failed .badge, span.failed { fill: var(--failed); color: var(--failed); }
.source .badge { fill: var(--source); }
details { border: 1px solid var(--line); border-radius: 8px; background: var(--card); margin: 6px 0; padding: 6px 12px; }
details:has(:target) { border-color: var(--ran); box-shadow: 0 0 0 1px var(--ran); } summary { cursor: pointer; } table { border-collapse: collapse; }
td, th { text-align: left; padding: 2px 16px 2px 0; font-weight: normal; } th { color: var(--soft); font-size: 12px; }
pre { font: 12px/1.45 ui-monospace, monospace; margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
code { font: 12px ui-monospace, monospace; color: var(--soft); }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 20px; }
"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title><style>{css}</style></head>
<body><h1>{title}</h1>
<div class="picture"><svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="-3 -3 {width} {height}" overflow="visible">
{drawing}
</svg></div>
{details}
</body></html>
"""
