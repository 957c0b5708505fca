"""Draw what an artifact was made from: a self-contained HTML page with the DAG as SVG, and below it every record."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.pages.lineage.layout import HEIGHT, WIDTH, Edge, layout, paths
from pipeline.pages.lineage.records import Input, Record, Source, headline, short
from pipeline.pages.parts.forms import Cell, Table
from pipeline.pages.parts.render import html

STATES = {"ran": "info", "cached": "good", "failed": "bad", "running": "warn"}
LABEL = 120
"""Characters shown of a setting when the pointer rests on a box."""


@dataclass(frozen=True)
class Node:
    """A box of the picture: an artifact, or a source (then without ``anchor``)."""

    name: str
    state: str
    digest: str
    what: str
    tip: str
    anchor: str | None


@dataclass(frozen=True)
class Details:
    """One record as it is shown below the picture."""

    stage: str
    state: str
    badge: str
    digest: str
    headline: str
    run: str
    link: str | None
    seconds: str
    key: str
    whole: str
    inputs: Table
    section: str
    metrics: str


def page(records: Sequence[Record], title: str, run_link: Callable[[str], str | None]) -> str:
    """The HTML page: picture, and below it every stage with its section and inputs. Needs no network and no script."""
    nodes, edges = graph(records)
    plan = layout(list(nodes), edges)
    return html(
        Path(__file__).parent,
        "lineage.html.j2",
        title=title,
        width=plan.width,
        height=plan.height,
        box=(WIDTH, HEIGHT),
        edges=paths(plan, edges),
        nodes=[(node, *plan.places[name]) for name, node in nodes.items()],
        records=[_details(record, run_link) for record in records],
    )


def graph(records: Sequence[Record]) -> tuple[dict[str, Node], list[Edge]]:
    """Boxes by id (a stage's name, or ``source:name``) and edges from input to artifact."""
    nodes: dict[str, Node] = {}
    edges: list[Edge] = []
    made = {record["stage"] for record in records}
    for record in records:
        for item in record.get("inputs") or []:
            outside = [(source["name"], _source(source)) for source in item.get("sources") or []]
            stage = item.get("stage")
            if stage in made:
                edges.append((stage, record["stage"]))
            elif item.get("sources") is None:  # an artifact whose record is not known
                outside.append(
                    (item["name"], Node(item["name"], "source", short(item.get("digest")), "", item["name"], None))
                )
            for name, node in outside:
                nodes.setdefault(f"source:{name}", node)
                edges.append((f"source:{name}", record["stage"]))
    boxes = {record["stage"]: _node(record) for record in records}
    return nodes | boxes, list(dict.fromkeys(edges))


def _node(record: Record) -> Node:
    inputs = [f"{i['name']}: {i.get('stage', '')} {short(i.get('digest'))}" for i in record.get("inputs") or []]
    section = [f"{k} = {_line(v)}" for k, v in (record.get("section") or {}).items()]
    tip = [f"{record['stage']} {record.get('digest') or ''}"]
    tip += ["\ninputs", *inputs] if inputs else []
    tip += ["\nsection", *section] if section else []
    name, what = _fit(record["stage"], 16), _fit(headline(record), 26)
    return Node(name, record.get("state", ""), short(record.get("digest")), what, "\n".join(tip), record["stage"])


def _source(source: Source) -> Node:
    files, what = source.get("files"), ""
    if files is not None:
        what = f"{files:,} file{'s' * (files != 1)}, {source.get('bytes', 0) / 1e6:,.2f} MB"
    tip = f"{source['name']} {source.get('digest') or ''}"
    return Node(_fit(source["name"], 16), "source", short(source.get("digest")), what, tip, None)


def _details(record: Record, run_link: Callable[[str], str | None]) -> Details:
    rows = [[i["name"], _origin(i), Cell((i.get("digest") or "")[:16], code=True)] for i in record.get("inputs") or []]
    run = record.get("run_id")
    return Details(
        stage=record["stage"],
        state=record.get("state", ""),
        badge=STATES.get(record.get("state", ""), ""),
        digest=short(record.get("digest")),
        headline=headline(record),
        run=run or "–",
        link=run_link(run) if run else None,
        seconds=f"{record.get('built_seconds') or record.get('seconds') or 0:.1f}",
        key=record.get("key") or "–",
        whole=record.get("digest") or "–",
        inputs=Table(["input", "from", "digest"], rows),
        section=_json(record.get("section")),
        metrics=_json(record.get("metrics")),
    )


def _origin(item: Input) -> str | Cell:
    """Where an input comes from: the stage with a link to its record, or the sources."""
    stage, sources = item.get("stage"), item.get("sources")
    if sources is not None:
        return ", ".join(f"{s['name']} {short(s.get('digest'))}" for s in sources)
    return Cell(stage, href=f"#{stage}") if stage else ""


def _json(value: Mapping[str, Any] | None) -> str:
    return json.dumps(value or {}, indent=1, ensure_ascii=False, sort_keys=True, default=str)


def _line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:LABEL]


def _fit(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"
