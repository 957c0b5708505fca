"""Spec of reinforcement learning: how answers are sampled, rewarded and learnt from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, get_args, get_type_hints

from model.specs.base import need
from model.specs.tune import TuneSpec

Algorithm = Literal["grpo", "dr_grpo", "dapo", "cispo", "gspo", "ppo"]
AUTO = "auto"


class Recipe(NamedTuple):
    """What an algorithm stands for: how tokens are averaged, at which level probabilities are compared, what rewards
    are divided by, the upper clip (0: as the lower), and passes over the answers of one rollout."""

    average: str
    level: str
    scale: str
    high: float
    passes: int


RECIPES: dict[str, Recipe] = {
    "grpo": Recipe("answers", "token", "group", 0.0, 1),
    "dr_grpo": Recipe("constant", "token", "none", 0.0, 1),
    "dapo": Recipe("tokens", "token", "group", 0.28, 1),
    "cispo": Recipe("tokens", "token", "group", 5.0, 1),
    "gspo": Recipe("answers", "sequence", "group", 0.0, 1),
    "ppo": Recipe("tokens", "token", "none", 0.0, 4),
}


@dataclass(frozen=True)
class PpoConfig:
    """What PPO has besides: a value of every token, learnt by a linear head on the model's hidden states."""

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}  # noqa: RUF012

    gamma: float = 1.0
    """Discount of a reward by each token that it comes later."""
    lam: float = 0.95
    """Decay of generalised advantages: 0 trusts the values alone, 1 the rewards alone."""
    vf_coef: float = 0.1
    """Weight of the value's squared error in the loss."""
    cliprange_value: float = 0.2
    """How far a value may move from what it was at sampling; 0 is no limit."""

    def __post_init__(self) -> None:
        for name in ("gamma", "lam"):
            need(0 <= getattr(self, name) <= 1, f"{name} must lie in [0, 1], not {getattr(self, name)}")
        for name in ("vf_coef", "cliprange_value"):
            need(getattr(self, name) >= 0, f"{name} must not be negative, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class RlSpec(TuneSpec):
    """Reinforcement learning from rewards that can be computed. ``data`` holds ``train.jsonl`` and ``val.jsonl`` of
    problems; ``reward_model`` is a model directory with a one-label head ("": none)."""

    NAME: ClassVar[str] = "rl"
    DATA: ClassVar[str] = "problems"
    VALIDATES_FIRST: ClassVar[bool] = True
    GPU_LOG_EVERY: ClassVar[int] = 1
    """Every rollout waits for its tokens anyway."""

    eval_tokens: int = 0
    algorithm: Algorithm
    prompts: int
    num_generations: int
    max_prompt_length: int
    max_completion_length: int
    temperature: float
    top_k: int
    top_p: float
    rewards: dict[str, float]
    length_limit: int
    keywords: tuple[str, ...] = ()
    num_iterations: int
    num_mini_batches: int
    epsilon: float
    epsilon_high: float
    delta: float
    beta: float
    kl_estimator: Literal["k1", "k3"]
    use_bias_correction_kl: bool
    importance_sampling_level: Literal["auto", "token", "sequence"]
    importance_sampling_clip_max: float
    scale_rewards: Literal["auto", "group", "batch", "none"]
    mask_truncated_completions: bool
    whiten_advantages: bool
    ppo: PpoConfig = field(default_factory=PpoConfig)
    filter_samples: int
    min_pass_rate: float
    max_pass_rate: float
    patience: int
    eval_problems: int
    eval_samples: int
    reward_model: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        hints = get_type_hints(type(self))
        for name in ("algorithm", "kl_estimator", "importance_sampling_level", "scale_rewards"):
            value, allowed = getattr(self, name), get_args(hints[name])
            need(value in allowed, f"{name} must be one of {', '.join(allowed)}, not {value}")
        need(self.init is not None, "rl goes on from a model; give init")
        least = {"prompts": 1, "max_prompt_length": 1, "max_completion_length": 1, "num_mini_batches": 1, "patience": 1}
        for name, low in least.items():
            need(getattr(self, name) >= low, f"{name} must be at least {low}, not {getattr(self, name)}")
        one = self.algorithm != "ppo" and self.num_generations < 2
        need(
            not one, f"num_generations must be at least 2 to compare answers of one prompt, not {self.num_generations}"
        )
        need(self.num_generations >= 1, f"num_generations must be at least 1, not {self.num_generations}")
        for name in ("epsilon", "epsilon_high", "delta", "beta", "importance_sampling_clip_max", "top_k"):
            need(getattr(self, name) >= 0, f"{name} must not be negative, not {getattr(self, name)}")
        need(self.temperature > 0, f"temperature must be positive: greedy answers are all the same; {self.temperature}")
        need(0 < self.top_p <= 1, f"top_p must lie in (0, 1], not {self.top_p}")
        need(bool(self.rewards), "rewards must name at least one reward")
        weights = all(math.isfinite(weight) for weight in self.rewards.values())
        need(weights, f"rewards have finite weights, not {self.rewards}")
        need(
            0 <= self.min_pass_rate < self.max_pass_rate <= 1,
            f"min_pass_rate ({self.min_pass_rate}) must lie below max_pass_rate ({self.max_pass_rate}), both in [0, 1]",
        )
        if self.delta:
            need(self.delta > 1 + self.epsilon, f"delta must exceed 1 + epsilon, not {self.delta}")

    @property
    def recipe(self) -> Recipe:
        """The algorithm with what the spec sets differently."""
        own = RECIPES[self.algorithm]
        return Recipe(
            own.average,
            own.level if self.importance_sampling_level == AUTO else self.importance_sampling_level,
            own.scale if self.scale_rewards == AUTO else self.scale_rewards,
            self.epsilon_high or own.high or self.epsilon,
            self.num_iterations or own.passes,
        )

    @property
    def updates(self) -> int:
        """Optimizer steps on the answers of one rollout."""
        return self.recipe.passes * self.num_mini_batches

    def identity(self) -> dict[str, Any]:
        """As for every run; the reward model enters by what it holds."""
        fields = super().identity()
        fields.pop("reward_model")
        return fields
