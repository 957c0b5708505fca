"""Config of the reward stage."""

from __future__ import annotations

from pydantic import Field

from model.specs.train import OptimConfig
from model.specs.tune import LoraConfig
from pipeline.config.base import where
from pipeline.config.training import DROPPED_HELP, LORA_HELP, TrainSection

SOURCES_HELP = (
    "preference data that a reward model is trained on: names, files, globs, directories; none given trains none. A run"
    " has one set of preferences: with dpo.sources too, the same ones"
)


class RewardSection(TrainSection):
    """A reward model from the SFT model: Bradley-Terry on preference pairs (arXiv:2203.02155)."""

    sources: list[str] = where(default_factory=list, description=SOURCES_HELP)
    center: float = Field(
        default=0.0, ge=0, description="weight of the squared sum of a pair's scores: keeps their mean at zero"
    )
    max_dropped: float = where(0.5, ge=0, le=1, description=DROPPED_HELP)
    optim: OptimConfig = Field(
        default_factory=lambda: OptimConfig(name="adamw", lr=1e-4, schedule="linear", warmup=0.1, weight_decay=0.0),
        description="optimizer, rates and schedule; embed_lr is the head's too",
    )
    lora: LoraConfig = Field(default_factory=LoraConfig, description=LORA_HELP)
