"""Spec of supervised fine-tuning, alone, with a teacher, and with pretraining text beside the answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

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
    """Next-token prediction at the assistant's tokens, and at those of replayed text."""

    NAME: ClassVar[str] = "sft"
    DATA: ClassVar[str] = "chat"
    VALIDATES_FIRST: ClassVar[bool] = True

    distill: DistillConfig
    replay: float
    """Share of the rows that is pretraining text."""
    replay_weight: float
    """What a target of that text weighs; one of an answer weighs 1."""
    neftune_alpha: float
    """Size of NEFTune's noise on the embeddings; 0: none."""
    tag_weight: float
    """What a target that belongs to a tag of reasoning weighs."""
    compat: Literal["", "minimind"]
    """Whose loss is computed: minimind's divides by the number of targets, whatever they weigh."""
    replay_data: str = ""
    """The token dataset of that text, with replay."""

    def __post_init__(self) -> None:
        super().__post_init__()
        need(0 <= self.replay < 1, f"replay is a share from 0 to below 1, not {self.replay}")
        need(not self.replay or bool(self.replay_data), "replay needs replay_data, the pretraining text")
        for name in ("replay_weight", "neftune_alpha", "tag_weight"):
            need(getattr(self, name) >= 0, f"{name} must not be negative, not {getattr(self, name)}")

    def identity(self) -> dict[str, Any]:
        """As for every run; teacher and pretraining text enter as fingerprints of their contents and not by paths."""
        fields = super().identity()
        fields["distill"].pop("teacher")
        fields.pop("replay_data")
        return fields

    def graph(self) -> list[int | str]:
        """A teacher changes the compiled graph."""
        return [*super().graph(), int(bool(self.distill.teacher))]
