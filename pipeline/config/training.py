"""Config of the pretrain and sft stages, and what all training stages share. The shape and the recipe are the worker's
own dataclasses, nested as they are."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from model.network.hf_config import check_weights
from model.specs.shape import ModelConfig
from model.specs.train import OptimConfig
from pipeline.config.base import Section, where
from pipeline.sources.state import state_of


class TrainSection(Section):
    """What every training stage reads."""

    seq_len: int = Field(default=256, ge=8, description="slots in one packed row; longer sequences are cut")
    batch_tokens: int = Field(
        default=8192, ge=8, description="global batch: slots in one update, whatever the number of ranks"
    )
    steps: int = Field(default=0, ge=0, description="updates; 0 derives them from epochs")
    epochs: float = Field(default=1.0, gt=0, description="passes over the training split, when steps is 0")
    seed: int = Field(default=0, ge=0, description="fixes initial weights and data order")
    eval_every: int = where(
        0,
        ge=0,
        description=(
            "steps between validations on the way; 0 validates at the end only (sft, dpo: also before the first)"
        ),
    )
    eval_tokens: int = Field(
        default=0, ge=0, description="most slots of the validation split a validation reads; 0 reads all"
    )


DEPTH_HELP = (
    "one dial for a compute-optimal model: N layers of width 64 N (from 1,024 on in heads of 128), feed-forward 8/3 of"
    " it, one key head for two query heads, 20 tokens a matrix parameter, batch and learning rate to suit; derives"
    " model.dim, layers, heads, kv_heads, ffn, optim.lr, batch_tokens and steps, which must not be given beside it; 0"
    " is off"
)


LORA_HELP = (
    "train adapters of this rank instead of all weights (0: off); the model comes out merged, the adapter beside it for"
    " peft"
)


DROPPED_HELP = "share of the records that may be unusable (too long for seq_len, no answer) before the stage fails"


class PretrainSection(TrainSection):
    """Base model: next-token prediction over packed documents."""

    epochs: float = Field(
        default=1.0,
        ge=0,
        description="passes over the training split, when steps is 0; 0 with init takes those weights as they are",
    )
    model: ModelConfig = Field(default_factory=ModelConfig, description="shape of the decoder")
    optim: OptimConfig = Field(default_factory=OptimConfig, description="optimizer, rates and schedule")
    depth: int = where(0, ge=0, le=128, description=DEPTH_HELP)  # not in the key: what it derives is
    tokens_per_parameter: float = where(
        20.0, gt=0, description="with depth: training tokens for each parameter of the matrices inside blocks"
    )

    init: str = where(
        "",
        description=(
            "weights to go on from instead of fresh ones: a model directory (Llama, Qwen3, Qwen3-MoE) or a MiniMind"
            " .pth; its shape then counts and not pretrain.model, and tokenizer.existing must name its tokenizer"
        ),
    )

    @field_validator("init")
    @classmethod
    def _is_there(cls, value: str) -> str:
        if value:
            check_model(value)
        return value

    @model_validator(mode="after")
    def _one_start(self) -> PretrainSection:
        if self.init and self.depth:
            raise ValueError("init brings its own shape and depth derives one; give one of them")
        if not (self.init or self.epochs or self.steps):
            raise ValueError(
                "steps and epochs are both 0: nothing would be learnt; only with init are weights taken as they are"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """The fields; with ``init`` the content of those weights in place of the shape: where they lie does not
        matter."""
        own = super().identity()
        if self.init:
            del own["model"]
            own["init"] = content_digest(Path(self.init).expanduser())
        return own

    @model_validator(mode="before")
    @classmethod
    def _turn_the_dial(cls, values: Any) -> Any:
        """Fill in what ``depth`` derives. Raises ValueError naming fields that were given other values."""
        if not isinstance(values, dict) or not isinstance(values.get("depth", 0), int) or values.get("depth", 0) < 1:
            return values
        derived = compute_optimal(values["depth"], float(values.get("tokens_per_parameter", 20.0)))
        filled, wrong = dict(values), []
        for name, value in derived.items():
            if not isinstance(value, dict):
                wrong += [name] if values.get(name, value) != value else []
                filled[name] = value
                continue
            given = values.get(name, {})
            if dataclasses.is_dataclass(
                given
            ):  # an object cannot say which fields were left alone: its defaults are taken for those
                default = type(given)()
                given = {
                    f.name: getattr(given, f.name)
                    for f in dataclasses.fields(given)
                    if getattr(given, f.name) != getattr(default, f.name)
                }
            wrong += [f"{name}.{key}" for key in value if given.get(key, value[key]) != value[key]]
            filled[name] = {**given, **value}
        if wrong:
            raise ValueError(
                f"depth = {values['depth']} derives {', '.join(wrong)} itself; leave that out, or set depth = 0 and"
                " choose every value"
            )
        return filled


def check_model(name: str) -> None:
    """Raises ValueError when there is no model directory and no weights file of this name, or one of a model that
    cannot be computed here."""
    path = Path(name).expanduser()
    if not path.is_file() and not (path / "config.json").is_file():
        raise ValueError(
            f"{path}: no such file, and no folder with a config.json; name a model directory or a MiniMind .pth"
        )
    check_weights(path)


def content_digest(path: Path) -> str:
    """sha256 over the weights file, or over config and weights of a model directory; read again only when a file
    changed."""
    files = [path] if path.is_file() else [path / "config.json", *sorted(path.glob("*.safetensors"))]
    beside = path.with_suffix(".json")
    files += [beside] if path.is_file() and beside.is_file() else []  # says how many experts a token goes to
    return _digest_of(tuple((str(file), state_of(file)) for file in files))


@functools.lru_cache(maxsize=8)
def _digest_of(files: tuple[tuple[str, tuple[int, ...]], ...]) -> str:
    digest = hashlib.sha256()
    for name, _ in files:
        with open(name, "rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def compute_optimal(depth: int, tokens_per_parameter: float = 20.0) -> dict[str, Any]:
    """What ``pretrain.depth`` stands for: model {dim, layers, heads, kv_heads, ffn}, optim {lr}, batch_tokens and
    steps.

    - Width 64 a layer: nanochat's depth dial (Karpathy 2025), which GPT-2 small (12 layers, 768) lies on; SwiGLU of 8/3
      the width has the parameters of a plain one of 4 (Shazeer 2020).
    - Tokens: 20 a parameter (Chinchilla, Hoffmann et al. 2022, arXiv:2203.15556), counted over the matrices inside
      blocks, whose scaling is the cleanest (nanochat finds 12 for matrices and head together, about 16 on this count).
    - Batch: 2^19 tokens at depth 12, growing with tokens^0.383 (Power Lines, arXiv:2505.13738), to the next power of
      two.
    - Rate: proportional to width^-1/2, at the demo's measured 6e-3 at width 256. An update of Muon scaled to AdamW's
      size has a spectral norm of 0.2 sqrt(width) times the rate, and maximal-update scaling wants that constant (Yang
      et al. 2023, arXiv:2310.17813).
    """
    shape = _shape(depth)
    tokens, reference = (tokens_per_parameter * _matrix_parameters(s) for s in (shape, _shape(12)))
    batch = 2 ** round(math.log2(2**19 * (tokens / reference) ** 0.383))
    rate = float(f"{6e-3 * (256 / shape['dim']) ** 0.5:.3g}")
    return {"model": shape, "optim": {"lr": rate}, "batch_tokens": batch, "steps": max(1, round(tokens / batch))}


def _shape(depth: int) -> dict[str, int]:
    head = (
        64 if depth < 16 else 128
    )  # attention kernels are fastest at 128, and a small model needs more than a few heads
    dim = math.ceil(64 * depth / head) * head
    heads = dim // head
    return {
        "dim": dim,
        "layers": depth,
        "heads": heads,
        "kv_heads": heads // 2 if heads % 2 == 0 else heads,
        "ffn": math.ceil(dim * 8 / 3 / 64) * 64,
    }


def _matrix_parameters(shape: dict[str, int]) -> int:
    attention = 2 * shape["dim"] ** 2 * (1 + shape["kv_heads"] / shape["heads"])
    return round(shape["layers"] * (attention + 3 * shape["dim"] * shape["ffn"]))
