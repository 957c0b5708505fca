"""What fine-tuning adds to a training run: adapters instead of all weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.specs.base import need
from model.specs.train import TrainSpec


@dataclass(frozen=True)
class LoraConfig:
    """Train low-rank adapters of the matrices inside blocks instead of all weights (LoRA, arXiv:2106.09685), with
    AdamW.

    The result is merged; the adapter lies beside it in the format of Hugging Face's ``peft``.
    """

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}  # noqa: RUF012

    rank: int = 0
    """Width of an adapter; 0 trains all weights."""
    alpha: float = 0.0
    """The adapter's product is multiplied by ``alpha / rank``; 0 is twice the rank."""
    targets: Literal["all", "attention"] = "all"
    """Which matrices get one: attention's four, or the feed-forward's three as well."""

    def __post_init__(self) -> None:
        need(self.rank >= 0, f"rank must not be negative, not {self.rank}")
        need(self.alpha >= 0, f"alpha must not be negative, not {self.alpha}")
        need(self.targets in ("all", "attention"), f"targets must be all or attention, not {self.targets}")

    @property
    def scale(self) -> float:
        """What multiplies an adapter's product."""
        return self.alpha / self.rank if self.alpha else 2.0


@dataclass(frozen=True, kw_only=True)
class TuneSpec(TrainSpec):
    """A run that goes on from an initial model, of all weights or of adapters."""

    lora: LoraConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        need(not self.lora.rank or self.init is not None, "lora adapts an initial model; give init")

    def graph(self) -> list[int | str]:
        """Adapters change the compiled graph."""
        return [*super().graph(), self.lora.rank]
