"""What the report says of rounded forms: size, text, closeness to the original, exams and speed of each."""

from __future__ import annotations

from collections.abc import Mapping

from model.specs.costs import Cost, Share
from pipeline.pages.parts.forms import Badge, Cell, Table


def costs_table(costs: Mapping[str, Cost]) -> Table | None:
    """A row per form, the largest first, against the original; None where there is nothing beside the original."""
    if len(costs) < 2:
        return None
    own = costs["fp32"]
    exams = list(dict.fromkeys(name for cost in costs.values() for name in cost.get("exams", {})))
    head = ["form", "MB", "bits per byte", "KL to fp32 (nats)", "same token", "tokens/s", *exams]
    rows: list[list[str | Cell]] = []
    for name, cost in sorted(costs.items(), key=lambda one: (-one[1]["bytes"], one[0])):
        rows.append(
            [
                Cell(name, code=True, note=cost.get("why", "")),
                Cell(f"{cost['bytes'] / 1e6:.2f}", note="" if cost is own else f"{cost['bytes'] / own['bytes']:.0%}"),
                _bits(cost, own),
                f"{cost['kl']:.5f}" if "kl" in cost else "–",
                f"{cost['same_top']:.1%}" if "same_top" in cost else "–",
                f"{cost['tokens_per_second']:,.0f}" if "tokens_per_second" in cost else "–",
                *(_exam(cost.get("exams", {}).get(exam)) for exam in exams),
            ]
        )
    return Table(head, rows, frozenset(range(1, len(head))))


def _bits(cost: Cost, own: Cost) -> str | Cell:
    if "bits_per_byte" not in cost:
        return "–"
    text = f"{cost['bits_per_byte']:.4f}"
    if cost is own or "bits_per_byte" not in own:
        return text
    return Cell(text, note=f"{cost['bits_per_byte'] - own['bits_per_byte']:+.4f}")


def _exam(share: Share | None) -> str | Cell:
    if share is None:
        return "–"
    text = f"{100 * share['share']:.1f} %"
    if "difference" not in share or "low" not in share or "high" not in share:
        return Cell(text, note=f"n = {share['n']:,}")
    kind = "up" if share["low"] > 0 else "down" if share["high"] < 0 else "same"
    ends = (share["difference"], share["low"], share["high"])
    middle, low, high = (f"{round(100 * value, 1) + 0.0:+.1f}" for value in ends)  # nothing has no minus
    return Cell(text, change=Badge(middle, kind), note=f"{low} to {high}, n = {share['n']:,}")
