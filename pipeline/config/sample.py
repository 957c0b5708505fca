"""Config of the sample stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.base import Section, where

JUDGE_HELP = (
    "what scores an answer: keywords (those of the teaching set; else half of the reference's pairs of characters, as"
    " evaluate does), exact (the reference itself, or its final number), reward (the model of the reward stage), openai"
    " (a model behind an OpenAI-compatible endpoint)"
)

DISTURBED_HELP = (
    "further prompts for each answer that several questions have: what those have in common, among random words of the"
    " data; none that an exam asks"
)


class SampleSection(Section):
    """Preferences from the model itself: it answers prompts of the chats several times, and the best and the worst
    answer become a pair."""

    answers: int = Field(default=0, ge=0, le=64, description="answers to each prompt; 0 leaves the stage out")
    prompts: int = Field(default=1000, ge=0, description="prompts of the chats that are asked, chosen by their hash")
    disturbed: int = Field(default=0, ge=0, le=64, description=DISTURBED_HELP)
    temperature: float = Field(default=1.0, gt=0, le=5, description="of the answers")
    top_p: float = Field(default=1.0, gt=0, le=1, description="nucleus of the answers; 1 is off")
    top_k: int = Field(default=0, ge=0, description="likeliest tokens that are drawn from; 0 is off")
    max_new_tokens: int = Field(default=128, ge=1, le=8192, description="longest answer in tokens")
    batch: int = Field(default=64, ge=1, le=4096, description="answers written at once by a process")
    judge: Literal["keywords", "exact", "reward", "openai"] = Field(default="keywords", description=JUDGE_HELP)
    reference: bool = Field(
        default=False, description="the chat's own answer is one of the answers: it wins where the model has none"
    )
    pairs: int = Field(default=1, ge=1, le=32, description="most pairs of a prompt: best and worst, then the next ones")
    min_gap: float = Field(
        default=0.0, ge=0, description="pairs whose scores are not further apart than this are ties and left out"
    )
    judge_model: str = Field(default="", description="openai: name of the judging model")
    judge_url: str = where(
        "",
        description=(
            "openai: address of the endpoint, up to /v1; else that of the variable OPENAI_BASE_URL, else OpenAI's. The"
            " key is read from OPENAI_API_KEY"
        ),
    )
    judge_parallel: int = where(8, ge=1, le=256, description="openai: requests at once")
    seed: int = Field(default=0, ge=0, description="of the choice of prompts and of the answers")

    @model_validator(mode="after")
    def _two_to_compare(self) -> SampleSection:
        """Raises ValueError when there is nothing to compare, or nobody who does."""
        if self.answers == 1 and not self.reference:
            raise ValueError("answers = 1 leaves nothing to compare it with; take 2 or more, or reference = true")
        if self.answers and not (self.prompts or self.disturbed):
            raise ValueError("prompts and disturbed are both 0: nothing would be asked")
        if self.answers and self.judge == "openai" and not self.judge_model:
            raise ValueError("judge = openai needs judge_model, the name of the model that judges")
        return self
