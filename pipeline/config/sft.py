"""Config of the sft stage: chats, what is replayed beside them, and how much each token counts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from model.specs.sft import DistillConfig
from model.specs.train import OptimConfig
from model.specs.tune import LoraConfig
from pipeline.config.base import where
from pipeline.config.training import DROPPED_HELP, LORA_HELP, TrainSection, check_model, content_digest

MINIMIND_TAG_WEIGHT = 10.0
REPLAY_HELP = (
    "share of the batch's slots that is pretraining text, so that the model keeps what it knew; there are 1 / (1 -"
    " replay) times as many steps, since a pass is one over the conversations; 0 replays nothing"
)
NEFTUNE_HELP = (
    "noise on the embeddings of conversations in training (NEFTune, arXiv:2310.05914), uniform in +- alpha /"
    " sqrt(length x width); 5 is usual, 0 is off"
)
TAG_HELP = (
    "what the tokens of <think>, </think>, <answer> and </answer> in answers weigh in the loss; other tokens of answers"
    " weigh 1"
)
COMPAT_HELP = (
    "minimind: tags weigh 10 as in that project's train_reason.py, which means every token whose id occurs in the"
    " encoding of a tag, and the loss is divided by the number of targets"
)


class SftSection(TrainSection):
    """Supervised fine-tuning: next-token prediction at the assistant's tokens only, of all weights or of adapters,
    alone or with a teacher."""

    sources: list[str] = where(
        default_factory=lambda: ["teaching"], description="chat data: source names, files, globs, directories"
    )
    epochs: float = Field(default=3.0, gt=0, description="passes over the conversations, when steps is 0")
    max_dropped: float = where(0.5, ge=0, le=1, description=DROPPED_HELP)
    optim: OptimConfig = Field(
        default_factory=lambda: OptimConfig(lr=1e-3), description="optimizer, rates and schedule"
    )
    lora: LoraConfig = Field(default_factory=LoraConfig, description=LORA_HELP)
    distill: DistillConfig = Field(
        default_factory=DistillConfig,
        description="learn from another model too; tokenizer.existing must name its tokenizer",
    )

    weights: dict[str, Annotated[float, Field(ge=0, le=100)]] = Field(
        default_factory=dict,
        description=(
            "how many times a source's chats appear in training, by source name; 0.5 takes half of them, 0 none; 1"
            " where not named"
        ),
    )
    replay: float = Field(default=0.0, ge=0, le=0.95, description=REPLAY_HELP)
    replay_weight: float = Field(
        default=1.0, gt=0, le=100, description="what a token of that text weighs in the loss; one of an answer weighs 1"
    )
    neftune_alpha: float = Field(default=0.0, ge=0, le=1000, description=NEFTUNE_HELP)
    tag_weight: float = Field(default=1.0, ge=0, le=1000, description=TAG_HELP)
    compat: Literal["", "minimind"] = Field(default="", description=COMPAT_HELP)

    @model_validator(mode="after")
    def _one_tag_weight(self) -> SftSection:
        if self.compat and self.tag_weight not in (1.0, MINIMIND_TAG_WEIGHT):
            raise ValueError(
                f"compat = minimind weighs tags by {MINIMIND_TAG_WEIGHT:g}; leave tag_weight out, or compat for a"
                " weight of your own"
            )
        return self

    @field_validator("distill")
    @classmethod
    def _teacher_is_there(cls, value: DistillConfig) -> DistillConfig:
        if value.teacher:
            check_model(value.teacher)
        return value

    def identity(self) -> dict[str, Any]:
        """The fields; of a teacher the content of its weights, wherever they lie."""
        own = super().identity()
        if not self.replay:
            del own["replay_weight"]
        if self.distill.teacher:
            own["distill"]["teacher"] = content_digest(Path(self.distill.teacher).expanduser())
        return own
