"""Config of the evaluate, report and export stages."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.config.base import Section, where


class EvaluateSection(Section):
    """What the models are asked, and how much of it. Sets that are larger are sampled down by a hash of their items."""

    sources: list[str] = where(
        default_factory=list,
        description=(
            "evaluation sets: source names, or files of choices, questions or preferences (JSON lines, JSON, CSV, "
            "Parquet; the forms of ARC, MMLU, C-Eval, HellaSwag, GSM8K and others); "
            "none given takes the teaching set's, if the run learns from it"
        ),
    )
    exams: list[str] = where(
        default_factory=list,
        description=(
            "the exams that the field reports, asked and scored as lm-evaluation-harness does: files, folders or globs"
            " of C-Eval, CMMLU, MMLU, ARC, HellaSwag, PIQA, OpenBookQA, GSM8K or BLiMP as their authors publish them"
            " (arc:PATH where it must be said), or the name of a folder in PIPELINE_HOME/exams; what is of no such"
            " form is asked as in sources"
        ),
    )
    shots: int = Field(
        default=-1,
        ge=-1,
        description="few-shot examples before each question of exams; -1 is as many as the exam is usually shown with",
    )
    limit: int = Field(default=0, ge=0, description="questions of each subject of exams, the first ones; 0 asks all")
    training_questions: int = Field(
        default=200, ge=0, description="questions that the sft stage trained on; 0 asks none"
    )
    heldout_questions: int = Field(
        default=400, ge=0, description="paraphrases and questions that no stage saw; 0 asks none"
    )
    choices: int = Field(default=400, ge=0, description="multiple-choice questions; 0 asks none")
    preferences: int = Field(default=400, ge=0, description="preference pairs; 0 compares none")
    max_bad_records: float = Field(
        default=0.1, ge=0, le=1, description="share of the records of an exam that may be no items; more is refused"
    )
    bits_tokens: int = Field(
        default=200_000, ge=0, description="tokens of the validation split read for bits per byte; 0 reads all of them"
    )
    seq_len: int = Field(
        default=0, ge=0, description="window for bits per byte in tokens; 0 is the model's max_seq_len, at most 1024"
    )
    max_new_tokens: int = Field(default=96, ge=1, le=4096, description="longest answer in tokens")
    batch: int = Field(default=32, ge=1, le=1024, description="questions answered at once")
    seed: int = Field(default=0, ge=0, description="seed of sampling from the sets and of the bootstrap")
    judge_model: str = Field(
        default="",
        description=(
            "model behind an OpenAI-compatible endpoint that compares each model's held-out answers with those of the"
            " model before, in both orders; empty asks none (key: the variable OPENAI_API_KEY)"
        ),
    )
    judge_url: str = where(
        "", description="address of the judge's endpoint; empty takes OPENAI_BASE_URL, else OpenAI's"
    )
    judge_parallel: int = where(8, ge=1, le=256, description="requests to the judge at once")
    gate: list[str] = where(
        default_factory=list,
        description=(
            "what must hold for a run's last model to become the preset's champion, e.g. heldout >= 0.8,"
            " bits_per_byte <= champion + 0.02, not withdrawn; nothing: every run's does"
        ),
    )


class ReportSection(Section):
    """What the report about the models shows."""

    samples: int = Field(default=12, ge=0, description="answers shown in the report, model beside model; 0 shows none")


class ExportSection(Section):
    """What the published model directory holds."""

    dtype: Literal["bf16", "fp32"] = Field(default="bf16", description="precision of the published weights")
    gguf: Literal["off", "bf16", "f16", "f32"] = Field(
        default="off",
        description="also write a GGUF file of this precision (llama.cpp, Ollama); needs the gguf package",
    )
    verify: bool = Field(
        default=True,
        description="check that transformers, where installed, gives equal logits and the same greedy answer",
    )
    title: str = Field(default="", description="heading of the model card; empty names the pipeline")
    licence: str = Field(default="", description="licence of the model as its card states it; empty leaves it out")
    temperature: float = Field(
        default=0.0, ge=0, le=2, description="sampling temperature in generation_config.json; 0 is greedy"
    )
    top_p: float = Field(default=1.0, gt=0, le=1, description="nucleus size in generation_config.json")
    max_new_tokens: int = Field(default=256, ge=1, description="longest answer in generation_config.json")
