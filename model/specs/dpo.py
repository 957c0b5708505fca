"""Spec of learning from preference pairs: DPO and its relatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from model.specs.base import need
from model.specs.tune import TuneSpec

Loss = Literal["sigmoid", "ipo", "robust", "hinge", "simpo", "orpo"]
LOSSES: tuple[Loss, ...] = ("sigmoid", "ipo", "robust", "hinge", "simpo", "orpo")
REFERENCE_FREE = ("simpo", "orpo")
"""Losses that look at the trained model alone."""
SMOOTHED = ("sigmoid", "robust", "simpo")
"""Losses in which ``label_smoothing`` says something."""


@dataclass(frozen=True, kw_only=True)
class DpoSpec(TuneSpec):
    """Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290) against the initial model, or a loss of
    its family: see :mod:`model.objectives.preference`."""

    NAME: ClassVar[str] = "dpo"
    DATA: ClassVar[str] = "pairs"
    VALIDATES_FIRST: ClassVar[bool] = True

    loss: Loss
    """Which function of the margin between the two answers."""
    beta: float
    """Strength of the pull to the reference; of the odds ratio in orpo."""
    label_smoothing: float
    """Share of pairs taken to be labelled the wrong way round (cDPO; robust)."""
    length_normalize: bool
    """Divide what an answer gained by its tokens; ipo, simpo and orpo always do."""
    simpo_gamma: float
    """simpo: the margin, in nats a token times beta, that is wanted."""
    nll_weight: float
    """Weight of the chosen answer's own cross-entropy (RPO, arXiv:2404.19733); orpo has its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        need(self.loss in LOSSES, f"loss must be one of {', '.join(LOSSES)}, not {self.loss}")
        need(self.beta > 0, f"beta must be positive, not {self.beta}")
        need(0 <= self.label_smoothing < 0.5, f"label_smoothing must lie in [0, 0.5), not {self.label_smoothing}")
        need(self.simpo_gamma >= 0, f"simpo_gamma must not be negative, not {self.simpo_gamma}")
        need(self.nll_weight >= 0, f"nll_weight must not be negative, not {self.nll_weight}")

    @property
    def needs_reference(self) -> bool:
        """Whether the initial model's log-probabilities enter the loss."""
        return self.loss not in REFERENCE_FREE

    @property
    def per_token(self) -> bool:
        """Whether what an answer gained is divided by its tokens."""
        return self.length_normalize or self.loss in ("ipo", *REFERENCE_FREE)
