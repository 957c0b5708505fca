"""Spec of supervised fine-tuning, alone or with a teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from model.specs.base import need
from model.specs.tune import TuneSpec


@dataclass(frozen=True)
class DistillConfig:
    """Learn from a teacher's probabilities as well as from the answers (Hinton et al. 2015, arXiv:1503.02531).

    The loss is ``(1 - weight) * cross-entropy + weight * temperature^2 * KL(teacher || student)`` at the targets, both
    softened by ``temperature``.
    """

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}  # noqa: RUF012

    teacher: str = ""
    """A model directory (or a MiniMind .pth) with the student's vocabulary; empty: no distillation."""
    weight: float = 0.5
    """Share of the teacher in the loss."""
    temperature: float = 1.5
    """Divides both models' logits."""

    def __post_init__(self) -> None:
        need(0 < self.weight <= 1, f"weight is a share above 0 and at most 1, not {self.weight}")
        need(
            self.temperature > 0 and math.isfinite(self.temperature),
            f"temperature must be positive, not {self.temperature}",
        )


@dataclass(frozen=True, kw_only=True)
class SftSpec(TuneSpec):
    """Next-token prediction at the assistant's tokens."""

    NAME: ClassVar[str] = "sft"
    DATA: ClassVar[str] = "chat"
    VALIDATES_FIRST: ClassVar[bool] = True

    distill: DistillConfig

    def identity(self) -> dict[str, Any]:
        """As for every run; the teacher enters as a fingerprint of its weights and not by its path."""
        fields = super().identity()
        fields["distill"].pop("teacher")
        return fields

    def graph(self) -> list[int | str]:
        """A teacher changes the compiled graph."""
        return [*super().graph(), int(bool(self.distill.teacher))]
