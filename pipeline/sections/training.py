"""Config of the three training stages. The shape and the recipe are the worker's own dataclasses, nested as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from model.config import ModelConfig, OptimConfig, TrainSpec
from pipeline.sections.base import Section, where
from pipeline.sections.resources import Resources


class TrainSection(Section):
    """What every training stage reads."""

    seq_len: int = Field(256, ge=8, description="slots in one packed row; longer sequences are cut")
    batch_tokens: int = Field(8192, ge=8, description="global batch: slots in one update, whatever the number of ranks")
    steps: int = Field(0, ge=0, description="updates; 0 derives them from epochs")
    epochs: float = Field(1.0, gt=0, description="passes over the training split, when steps is 0")
    seed: int = Field(0, ge=0, description="fixes initial weights and data order")
    eval_every: int = where(0, ge=0, description="steps between validations on the way; 0 validates at the end only (sft, dpo: also before the first)")
    eval_tokens: int = Field(0, ge=0, description="most slots of the validation split a validation reads; 0 reads all")

    def spec(self, on: Resources, *, data: Path, tokenizer: Path, out: Path, init: Path | None = None) -> TrainSpec:
        """The worker's spec for this section on these resources; ``data`` is a token directory, ``init`` a model directory.

        Raises ValueError naming the field that cannot be.
        """
        names = set(TrainSpec.__dataclass_fields__)
        own = {name: getattr(self, name) for name in type(self).model_fields if name in names}
        engine = "deepspeed" if on.launcher == "deepspeed" else on.parallel
        same = ("micro_batch", "dtype", "compile", "device", "zero_stage", "offload", "checkpointing", "checkpoint_every", "threads")
        how: dict[str, Any] = {name: getattr(on, name) for name in same} | {"engine": engine}
        paths = {"data": str(data), "tokenizer": str(tokenizer), "out": str(out), "init": str(init) if init else None}
        return TrainSpec(objective=self.objective(), **own, **how, **paths)

    def objective(self) -> Literal["pretrain", "sft", "dpo"]:
        """What the worker minimises."""
        raise NotImplementedError


class PretrainSection(TrainSection):
    """Base model: next-token prediction over packed documents."""

    model: ModelConfig = Field(default_factory=ModelConfig, description="shape of the decoder")
    optim: OptimConfig = Field(default_factory=OptimConfig, description="optimizer, rates and schedule")

    def objective(self) -> Literal["pretrain", "sft", "dpo"]:
        return "pretrain"


class SftSection(TrainSection):
    """Supervised fine-tuning: next-token prediction at the assistant's tokens only."""

    sources: list[str] = where(default_factory=lambda: ["teaching"], description="chat data: source names, files, globs, directories")
    epochs: float = Field(3.0, gt=0, description="passes over the conversations, when steps is 0")
    optim: OptimConfig = Field(default_factory=lambda: OptimConfig(lr=1e-3), description="optimizer, rates and schedule")

    def objective(self) -> Literal["pretrain", "sft", "dpo"]:
        return "sft"


class DpoSection(TrainSection):
    """Direct preference optimization (Rafailov et al. 2023) against the SFT model."""

    sources: list[str] = where(default_factory=lambda: ["teaching"], description="preference data: source names, files, globs, directories")
    beta: float = Field(0.1, gt=0, description="strength of the pull to the SFT model")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="share of pairs taken to be labelled the wrong way round")
    nll_weight: float = Field(0.1, ge=0, description="weight of the chosen answer's own cross-entropy; keeps it from becoming less likely")
    optim: OptimConfig = Field(default_factory=lambda: OptimConfig(lr=1e-4), description="optimizer, rates and schedule")

    def objective(self) -> Literal["pretrain", "sft", "dpo"]:
        return "dpo"
