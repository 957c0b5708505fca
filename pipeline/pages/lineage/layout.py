"""Where the boxes and lines of the lineage picture go.

The picture is layered left to right by longest path from a source; edges that pass over a layer get a place of their
own in it, and each layer is ordered by the mean height of its neighbours (the barycentre method of Sugiyama et al.,
1981). Many layers are folded into two rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT, GAP_X, GAP_Y, EDGE = 186, 74, 32, 20, 14
"""Pixels of a box, between boxes, and of the place at which a long edge passes a layer."""
ROW, FOLD_Y, MARGIN, LANE = 8, 64, 34, 6
"""More layers than ROW make two rows, at least FOLD_Y apart; edges between them run in lanes LANE apart, beside the
rows in the margin and between them."""

Edge = tuple[str, str]


@dataclass(frozen=True)
class Layout:
    """Top left corners by node id, the picture's size in pixels, where the first row ends, and the margin beside the
    rows.

    Ids that start with "edge:" are the places at which a long edge passes a layer: ``edge:A>B:layer``.
    """

    places: dict[str, tuple[int, int]]
    width: int
    height: int
    end: int
    margin: int


def layout(nodes: Sequence[str], edges: Sequence[Edge]) -> Layout:
    """Places for ``nodes`` and the passing points of ``edges``; folded where the fewest edges cross the fold."""
    layer = _layers(nodes, edges)
    columns: list[list[str]] = [[] for _ in range(max(layer.values(), default=0) + 1)]
    for name in nodes:
        columns[layer[name]].append(name)
    links: list[Edge] = []
    for a, b in edges:
        stops = [f"edge:{a}>{b}:{i}" for i in range(layer[a] + 1, layer[b])]
        for i, stop in enumerate(stops, layer[a] + 1):
            columns[i].append(stop)
        links += zip([a, *stops], [*stops, b], strict=True)
    _order(columns, links)

    fold = _fold([(layer[a], layer[b]) for a, b in edges], len(columns))
    lanes = sum(layer[a] < fold <= layer[b] for a, b in edges) * LANE if fold < len(columns) else 0
    margin, gap = max(MARGIN, 20 + lanes), max(FOLD_Y, 44 + lanes)
    places: dict[str, tuple[int, int]] = {}
    top = end = 0
    for row in filter(None, (columns[:fold], columns[fold:])):
        heights = [sum(tall(name) + GAP_Y for name in column) - GAP_Y for column in row]
        for i, column in enumerate(row):
            y = top + (max(heights) - heights[i]) // 2
            for name in column:
                places[name] = (margin + i * (WIDTH + GAP_X), y)
                y += tall(name) + GAP_Y
        end = end or max(heights)
        top += max(heights) + gap
    width = 2 * margin + max(fold, len(columns) - fold) * (WIDTH + GAP_X) - GAP_X
    return Layout(places, width, max(top - gap, 0), end, margin)


def paths(plan: Layout, edges: Sequence[Edge]) -> list[str]:
    """The SVG path of every edge, through the places at which it passes layers."""
    lanes = iter(range(len(edges)))
    stops: dict[str, list[str]] = {}
    for name in plan.places:
        if name.startswith("edge:"):
            stops.setdefault(name.rpartition(":")[0], []).append(name)
    passed = {edge: sorted(names, key=lambda n: int(n.rpartition(":")[2])) for edge, names in stops.items()}
    return [_path(plan, [a, *passed.get(f"edge:{a}>{b}", []), b], lanes) for a, b in edges]


def _path(plan: Layout, stops: Sequence[str], lanes: Iterator[int]) -> str:
    """Curves from place to place; from the first row to the second an edge goes around, each in a lane of its own."""
    x, y = plan.places[stops[0]]
    x, y = x + WIDTH, y + HEIGHT // 2
    steps = [f"M{x} {y}"]
    for stop in stops[1:]:
        to_x, to_y = plan.places[stop]
        to_y += tall(stop) // 2
        if to_x < x:
            lane = next(lanes) * LANE
            steps.append(_around(y, to_x, to_y, x + 12 + lane, plan.end + 22 + lane, plan.margin - 10 - lane))
        else:
            bend = (to_x - x) / 2
            steps.append(f"C{x + bend:.0f} {y} {to_x - bend:.0f} {to_y} {to_x} {to_y}")
        x, y = to_x, to_y
        if stop.startswith("edge:"):
            x += WIDTH
            steps.append(f"H{x}")
    return " ".join(steps)


def _around(y: int, to_x: int, to_y: int, right: int, between: int, left: int, r: int = 8) -> str:
    """Path with round corners: at height ``y`` to ``right``, down, at ``between`` to ``left``, down, at ``to_y`` in to
    ``to_x``."""
    return (
        f"H{right - r} Q{right} {y} {right} {y + r} V{between - r} Q{right} {between} {right - r} {between} "
        f"H{left + r} Q{left} {between} {left} {between + r} V{to_y - r} Q{left} {to_y} {left + r} {to_y} H{to_x}"
    )


def tall(name: str) -> int:
    """Pixels that a box, or the passing point of an edge, takes in its layer."""
    return EDGE if name.startswith("edge:") else HEIGHT


def _fold(spans: Sequence[tuple[int, int]], layers: int) -> int:
    """How many layers the first row gets: all, or near the middle where the fewest edges pass."""
    if layers <= ROW:
        return layers
    middle = layers // 2
    return min(
        range(middle - 1, middle + 3),
        key=lambda cut: (sum(a < cut <= b for a, b in spans), abs(cut - middle - 0.5)),
    )


def _layers(nodes: Sequence[str], edges: Sequence[Edge]) -> dict[str, int]:
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


def _order(columns: list[list[str]], links: Sequence[Edge]) -> None:
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
