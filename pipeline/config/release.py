"""Config of what a model is released as beside its own precision."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.config.base import Section

Form = Literal[
    "int8", "int4", "gguf:f32", "gguf:f16", "gguf:bf16", "gguf:q8_0", "gguf:q6_k", "gguf:q5_k_m", "gguf:q5_k_s",
    "gguf:q5_1", "gguf:q5_0", "gguf:q4_k_m", "gguf:q4_k_s", "gguf:q4_1", "gguf:q4_0", "gguf:iq4_nl", "gguf:iq4_xs",
    "gguf:q3_k_l", "gguf:q3_k_m", "gguf:q3_k_s", "gguf:q2_k",
]  # fmt: skip
"""Forms by name; GGUF types by llama.cpp's."""


class MeasureSection(Section):
    """What a smaller form of a model is measured by, against the model itself."""

    bits_tokens: int = Field(
        default=50_000, ge=0, description="tokens of the validation split read for bits per byte; 0 reads all of them"
    )
    kl_tokens: int = Field(
        default=8_192, ge=0, description="tokens on which the form is compared with the original; 0 takes all of those"
    )
    exam_items: int = Field(
        default=400,
        ge=0,
        description="choice questions of each of evaluate.exams, spread evenly, that a form is asked too; 0 asks all",
    )
    seq_len: int = Field(
        default=0, ge=0, description="window of texts in tokens; 0 is the model's max_seq_len, at most 1024"
    )
    max_new_tokens: int = Field(default=96, ge=1, le=4096, description="longest answer to an exam's question in tokens")
    speed_tokens: int = Field(default=128, ge=1, le=4096, description="tokens generated to measure the speed")
    batch: int = Field(default=32, ge=1, le=1024, description="questions answered at once")


class QuantizeSection(MeasureSection):
    """Rounded forms of the final model, each with what it costs; none unless asked for."""

    forms: list[Form] = Field(
        default_factory=list,
        description=(
            "int8 and int4 (for this engine, transformers and vLLM), gguf:TYPE (llama.cpp, Ollama; rounded types need"
            " full-pipeline[gguf-run])"
        ),
    )
    group: Literal[32, 64, 128] = Field(default=32, description="int4: inputs that share a scale")
    method: Literal["nearest", "search", "gptq"] = Field(
        default="gptq",
        description=(
            "int4: the nearest step, the scale of least error, or GPTQ, which makes good by later columns what earlier"
            " ones lost, on texts of the training split"
        ),
    )
    calibration_tokens: int = Field(default=16_384, ge=256, description="gptq: tokens it learns from")


class PruneSection(MeasureSection):
    """What ``pipeline prune`` leaves out, and what it is measured by."""

    layers: int = Field(default=0, ge=0, description="layers that leave")
    heads: int = Field(default=0, ge=0, description="query heads of each layer that leave, with their key heads")
    channels: int = Field(default=0, ge=0, description="feed-forward channels of each layer that leave")
    calibration_tokens: int = Field(default=16_384, ge=256, description="tokens that importance is measured on")
