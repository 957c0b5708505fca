"""Spec of training a reward model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from model.specs.base import need
from model.specs.tune import TuneSpec


@dataclass(frozen=True, kw_only=True)
class RewardSpec(TuneSpec):
    """A score for whole conversations, learnt from pairs (Bradley and Terry 1952; Ouyang et al. 2022,
    arXiv:2203.02155)."""

    NAME: ClassVar[str] = "reward"
    DATA: ClassVar[str] = "ranked"
    VALIDATES_FIRST: ClassVar[bool] = True

    center: float
    """Weight of the squared sum of a pair's two scores, which keeps their mean at zero (arXiv:2312.09244)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        need(self.center >= 0, f"center must not be negative, not {self.center}")
