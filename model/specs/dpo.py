"""Spec of direct preference optimization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from model.specs.base import need
from model.specs.tune import TuneSpec


@dataclass(frozen=True, kw_only=True)
class DpoSpec(TuneSpec):
    """Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290) against the initial model."""

    NAME: ClassVar[str] = "dpo"
    DATA: ClassVar[str] = "pairs"
    VALIDATES_FIRST: ClassVar[bool] = True

    beta: float
    """Strength of the pull to the reference."""
    label_smoothing: float
    """Share of pairs taken to be labelled the wrong way round (cDPO)."""
    nll_weight: float
    """Weight of the chosen answer's own cross-entropy (RPO, arXiv:2404.19733)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        need(self.beta > 0, f"beta must be positive, not {self.beta}")
        need(0 <= self.label_smoothing < 0.5, f"label_smoothing must lie in [0, 0.5), not {self.label_smoothing}")
        need(self.nll_weight >= 0, f"nll_weight must not be negative, not {self.nll_weight}")
