"""Counts by reason, with a few examples of each: what became of every record must be seen, and not every record."""

from __future__ import annotations

from collections import Counter
from typing import Any

SAMPLES = 20
"""Examples that are kept of each reason."""


class Counted:
    """Counts by reason, and the first examples of each, for what is read in one order by one process."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.samples: list[dict[str, Any]] = []

    def add(self, reason: str, sample: dict[str, Any]) -> None:
        """Count one; ``sample`` is kept if few of this reason were seen before."""
        self.counts[reason] += 1
        if self.counts[reason] <= SAMPLES:
            self.samples.append(sample)
