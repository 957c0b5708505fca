"""What the report says of the gate: whether the last model may become the champion, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.pages.parts.forms import Badge, Cell, Table
from storage.champions import Condition


@dataclass(frozen=True)
class Gated:
    """The gate's conditions on the last model, and the champion that it was compared to (nothing: there was none)."""

    conditions: Sequence[Condition]
    champion: str = ""

    @property
    def held(self) -> bool:
        return all(condition["held"] for condition in self.conditions)

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        against = f", compared to {self.champion}" if self.champion else ""
        return f"The last model {'may' if self.held else 'does not'} become the champion{against}."

    @property
    def table(self) -> Table:
        """A row per condition."""
        rows = [
            [
                Cell(condition["text"], code=True),
                Cell(badge=Badge("holds", "good") if condition["held"] else Badge("does not hold", "bad")),
                condition["why"],
            ]
            for condition in self.conditions
        ]
        return Table(["condition", "", "by what"], rows)
