"""Which problems are made, and how many."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ProblemSettings:
    """``tasks`` of the generators (or ``reasoning_gym:NAME``), their ``levels`` (1 to 3), how many ``problems`` of each
    task are trained on and ``heldout``, and the ``seed`` they follow from; of a source at most ``heldout`` records are
    held out."""

    tasks: tuple[str, ...] = ()
    levels: tuple[int, ...] = (1,)
    problems: int = 1000
    heldout: int = 200
    seed: int = 0

    def json(self) -> dict[str, Any]:
        """The values that decide which problems there are, as plain JSON."""
        return {**asdict(self), "tasks": list(self.tasks), "levels": list(self.levels)}
