"""Config of the dpo stage."""

from __future__ import annotations

from pydantic import Field, model_validator

from model.specs.dpo import SMOOTHED, Loss
from model.specs.train import OptimConfig
from model.specs.tune import LoraConfig
from pipeline.config.base import where
from pipeline.config.training import DROPPED_HELP, LORA_HELP, TrainSection

LOSS_HELP = (
    "sigmoid (DPO), ipo, robust, hinge, or without a reference simpo and orpo; names and formulas are TRL's, see"
    " docs/preferences.md"
)


class DpoSection(TrainSection):
    """Direct preference optimization (Rafailov et al. 2023) against the SFT model, or a loss of its family."""

    sources: list[str] = where(
        default_factory=lambda: ["teaching"], description="preference data: source names, files, globs, directories"
    )
    loss: Loss = Field(default="sigmoid", description=LOSS_HELP)
    beta: float = Field(default=0.1, gt=0, description="strength of the pull to the SFT model; orpo: of the odds ratio")
    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=0.5,
        description="share of pairs taken to be labelled the wrong way round (sigmoid, robust, simpo)",
    )
    length_normalize: bool = Field(
        default=False,
        description="divide an answer's gain by its tokens, so that long answers do not count for more; ipo, simpo and"
        " orpo always do",
    )
    simpo_gamma: float = Field(default=0.5, ge=0, description="simpo: the margin that is wanted")
    nll_weight: float = Field(
        default=0.1,
        ge=0,
        description="weight of the chosen answer's own cross-entropy; keeps it from becoming less likely (orpo has"
        " its own, of weight 1)",
    )
    max_dropped: float = where(0.5, ge=0, le=1, description=DROPPED_HELP)
    optim: OptimConfig = Field(
        default_factory=lambda: OptimConfig(lr=1e-4), description="optimizer, rates and schedule"
    )
    lora: LoraConfig = Field(default_factory=LoraConfig, description=LORA_HELP)

    @model_validator(mode="after")
    def _every_value_counts(self) -> DpoSection:
        """Raises ValueError for a value that the chosen loss would not look at."""
        unused = []
        if self.label_smoothing and self.loss not in SMOOTHED:
            unused.append(f"label_smoothing counts for {', '.join(SMOOTHED)}")
        usual = {name: type(self).model_fields[name].default for name in ("simpo_gamma", "nll_weight")}
        if self.simpo_gamma != usual["simpo_gamma"] and self.loss != "simpo":
            unused.append("simpo_gamma counts for simpo")
        if self.nll_weight not in (0, usual["nll_weight"]) and self.loss == "orpo":
            unused.append("nll_weight counts for all but orpo, which has a cross-entropy of its own")
        if unused:
            raise ValueError(f"loss = {self.loss} does not look at it: {'; '.join(unused)}")
        return self
