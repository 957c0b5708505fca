"""Config of reinforcement learning: which problems, how answers are sampled and rewarded, and how they are learnt
from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from model.rewards.functions import MODEL, REWARDS, unknown
from model.specs.rl import Algorithm, PpoConfig
from model.specs.train import OptimConfig
from model.specs.tune import LoraConfig
from pipeline.config.base import Section, where
from pipeline.config.training import DROPPED_HELP, LORA_HELP
from pipeline.problems.generators import LEVELS, TASKS
from pipeline.problems.gym import PREFIX, check
from pipeline.problems.settings import ProblemSettings

ROW = 512
"""Slots up to which a prompt and all its answers share a row: behind each other they are fewer, but attention looks at
all of a row."""


class RlSection(Section):
    """Reinforcement learning from rewards that can be computed, after sft or dpo; absent without tasks and sources.

    Options have the names of TRL's GRPOConfig and PPOConfig.
    """

    # which problems (they enter the key as what the stage ``problems`` makes of them)
    tasks: tuple[str, ...] = where(
        (),
        description=(
            f"problems that are made: {', '.join(TASKS)} (in Chinese and English), and reasoning_gym:NAME with that"
            " package; none, and no sources: no rl"
        ),
    )
    sources: list[str] = where(
        default_factory=list,
        description="problem files: question and answer, GSM8K, chats without their last answer, MiniMind's RLAIF",
    )
    levels: tuple[int, ...] = where((1,), min_length=1, description="how hard made problems are: 1, 2, 3, or several")
    problems: int = where(1000, ge=1, description="made problems of each task to train on")
    heldout: int = where(
        200, ge=1, description="problems of each task, and most of each source, that are held out to measure on"
    )
    max_dropped: float = where(0.5, ge=0, le=1, description=DROPPED_HELP.replace("seq_len", "max_prompt_length"))
    # how answers are sampled
    prompts: int = Field(default=8, ge=1, description="problems in one rollout, over all ranks")
    num_generations: int = Field(default=8, ge=1, description="answers to each of them (the group)")
    max_prompt_length: int = Field(default=128, ge=1, description="longest prompt in tokens; longer ones are left out")
    max_completion_length: int = Field(default=256, ge=1, description="longest answer in tokens")
    temperature: float = Field(default=1.0, gt=0, description="of sampling; log-probabilities are at it too")
    top_k: int = Field(default=0, ge=0, description="sample from this many most likely tokens; 0 from all")
    top_p: float = Field(default=1.0, gt=0, le=1, description="sample from the most likely tokens of this much mass")
    # how they are rewarded
    rewards: dict[str, float] = Field(
        default_factory=lambda: {"exact": 1.0},
        min_length=1,
        description=f"what an answer earns, by name with its weight: {', '.join([*REWARDS, MODEL])}",
    )
    length_limit: int = Field(
        default=0, ge=0, description="reward length: tokens from which an answer is punished; 0: only when cut off"
    )
    filter_samples: int = Field(
        default=0, ge=0, description="answers to each problem that measure its pass rate before the first step; 0: none"
    )
    min_pass_rate: float = Field(default=0.0, ge=0, le=1, description="problems solved less often are left out")
    max_pass_rate: float = Field(default=1.0, ge=0, le=1, description="problems solved more often are left out")
    # how they are learnt from
    algorithm: Algorithm = Field(default="dapo", description="the loss, as TRL names and computes it")
    num_iterations: int = Field(
        default=0, ge=0, description="passes over the answers of a rollout; 0 is the algorithm's: 1, for ppo 4"
    )
    num_mini_batches: int = Field(default=1, ge=1, description="updates in one pass over the answers of a rollout")
    epsilon: float = Field(default=0.2, ge=0, description="how far below 1 a probability ratio counts (ppo: cliprange)")
    epsilon_high: float = Field(
        default=0.0, ge=0, description="how far above 1; 0 is the algorithm's: 0.28 for dapo, 5 for cispo, else epsilon"
    )
    delta: float = Field(default=0.0, ge=0, description="largest ratio in any case (two-sided clipping); 0 is none")
    beta: float = Field(default=0.0, ge=0, description="weight of the divergence from the initial model (ppo: kl_coef)")
    kl_estimator: Literal["k1", "k3"] = Field(default="k3", description="how the divergence is estimated")
    use_bias_correction_kl: bool = Field(default=True, description="the divergence times the probability ratio")
    importance_sampling_level: Literal["auto", "token", "sequence"] = Field(
        default="auto", description="what ratios are of: tokens, or whole answers (gspo's)"
    )
    importance_sampling_clip_max: float = Field(
        default=3.0, ge=0, description="limit of the correction for sampler and trainer rounding differently; 0: none"
    )
    scale_rewards: Literal["auto", "group", "batch", "none"] = Field(
        default="auto", description="what advantages are divided by: a standard deviation, or (dr_grpo's) nothing"
    )
    mask_truncated_completions: bool = Field(default=False, description="learn nothing from answers that were cut off")
    whiten_advantages: bool = Field(default=True, description="ppo: advantages to mean 0 and variance 1")
    ppo: PpoConfig = Field(default_factory=PpoConfig, description="what ppo has besides")
    # the training
    steps: int = Field(default=0, ge=0, description="optimizer updates; 0 derives them from epochs")
    epochs: float = Field(default=1.0, gt=0, description="passes over the problems, when steps is 0")
    seed: int = Field(default=0, ge=0, description="fixes problems, their order and what is sampled")
    patience: int = Field(
        default=10, ge=1, description="rollouts in which no group's rewards differ, from the start on, before rl fails"
    )
    eval_every: int = where(0, ge=0, description="updates between evaluations on held-out problems; 0: first and last")
    eval_problems: int = Field(default=0, ge=0, description="most held-out problems an evaluation asks; 0 asks all")
    eval_samples: int = Field(
        default=8, ge=1, description="answers to each held-out problem before and after, for pass@1, 4 and 8"
    )
    optim: OptimConfig = Field(
        default_factory=lambda: OptimConfig(name="adamw", lr=1e-6, weight_decay=0.0, schedule="constant", spike=0.0),
        description="optimizer, rates and schedule",
    )
    lora: LoraConfig = Field(default_factory=LoraConfig, description=LORA_HELP)

    @field_validator("tasks")
    @classmethod
    def _known_tasks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name.startswith(PREFIX):
                check(name)
            elif name not in TASKS:
                raise ValueError(f"no task {name}; tasks are {', '.join(TASKS)} and reasoning_gym:NAME")
        if len(set(value)) < len(value):
            raise ValueError("a task is named twice")
        return value

    @field_validator("levels")
    @classmethod
    def _known_levels(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not set(value) <= set(LEVELS) or len(set(value)) < len(value):
            raise ValueError(f"levels are {', '.join(map(str, LEVELS))}, each at most once")
        return value

    @field_validator("rewards")
    @classmethod
    def _known_rewards(cls, value: dict[str, float]) -> dict[str, float]:
        if strange := unknown(list(value)):
            raise ValueError(f"no reward {', '.join(strange)}; rewards are {', '.join([*REWARDS, MODEL])}")
        if not any(value.values()):
            raise ValueError("every reward weighs 0")
        return value

    @model_validator(mode="after")
    def _can_be_learnt(self) -> RlSection:
        if self.num_generations < 2 and self.algorithm != "ppo":
            raise ValueError(
                f"num_generations = {self.num_generations}: {self.algorithm} compares answers of one prompt"
            )
        if self.min_pass_rate >= self.max_pass_rate:
            raise ValueError("min_pass_rate must lie below max_pass_rate")
        if self.delta and self.delta <= 1 + self.epsilon:
            raise ValueError(f"delta = {self.delta} must exceed 1 + epsilon = {1 + self.epsilon}")
        if self.length_limit > self.max_completion_length:
            raise ValueError(f"length_limit = {self.length_limit} exceeds max_completion_length")
        if self.filter_samples == 0 and (self.min_pass_rate > 0 or self.max_pass_rate < 1):
            raise ValueError("min_pass_rate and max_pass_rate need filter_samples, which measure pass rates")
        if "gym" in self.rewards and not any(name.startswith(PREFIX) for name in self.tasks):
            raise ValueError("reward gym judges problems of reasoning-gym alone: name one in rl.tasks, or use exact")
        return self

    @property
    def wanted(self) -> bool:
        """Whether the config asks for reinforcement learning."""
        return bool(self.tasks or self.sources)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with the longest answer."""
        return self.max_prompt_length + self.max_completion_length

    @property
    def seq_len(self) -> int:
        """Slots of a packed row: a prompt with all its answers where those are short, with one at least."""
        group = self.max_prompt_length + self.num_generations * self.max_completion_length
        return max(self.longest, min(group, ROW))

    @property
    def batch_tokens(self) -> int:
        """Most slots of one update."""
        slots = self.max_prompt_length + self.num_generations * self.max_completion_length
        return max(self.seq_len, self.prompts * slots // self.num_mini_batches)

    def settings(self) -> ProblemSettings:
        """What decides which problems are made."""
        return ProblemSettings(self.tasks, self.levels, self.problems, self.heldout, self.seed)
