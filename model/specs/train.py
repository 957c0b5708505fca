"""What defines a training run: the optimizer's recipe, and the spec that a worker reads from ``spec.json``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from model.running.how import How
from model.specs.base import dump, need
from model.specs.shape import ModelConfig


@dataclass(frozen=True)
class OptimConfig:
    """How weights are updated.

    ``muon``: Muon (Jordan 2024; update scaled to AdamW's RMS as in Moonlight, arXiv:2502.16982) for the matrices inside
    blocks, AdamW with ``embed_lr`` for embeddings, head, norms and routers. ``adamw``: AdamW for all, with the same two
    rates.
    """

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}  # noqa: RUF012

    name: Literal["muon", "adamw"] = "muon"
    """muon for the matrices inside blocks with adamw for the rest, or adamw for all."""
    lr: float = 3e-3
    """Learning rate."""
    embed_lr: float = 0.0
    """Rate of embeddings, head and norms; 0 is ``lr``."""
    weight_decay: float = 0.1
    """Decoupled, matrices inside blocks only."""
    beta1: float = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: float = 0.95
    """AdamW's decay of the mean square gradient."""
    eps: float = 1e-8
    """AdamW's, added to the denominator."""
    momentum: float = 0.95
    """Muon's decay of the mean gradient."""
    schedule: Literal["wsd", "cosine", "linear", "constant"] = "wsd"
    """Of the rates after the warm-up: wsd stays and falls at the end, linear and cosine fall all the time."""
    warmup: float = 0.02
    """Share of the steps in which the rate rises from 0."""
    decay: float = 0.3
    """wsd: share of the steps in which it falls at the end."""
    final: float = 0.0
    """Rate at the end, as a share of ``lr``."""
    clip: float = 1.0
    """Largest gradient norm; 0 never clips."""
    spike: float = 6.0
    """Standard deviations above the recent mean from which an update's gradient norm is skipped; 0 never skips."""
    z_loss: float = 0.0
    """Weight of ``log(Z)^2`` (PaLM), which keeps logits from drifting."""
    batch_warmup: float = 0.0
    """Share of the steps in which the global batch grows from a quarter to all of ``batch_tokens``."""

    def __post_init__(self) -> None:
        need(self.name in ("muon", "adamw"), f"name must be muon or adamw, not {self.name}")
        need(
            self.schedule in ("wsd", "cosine", "linear", "constant"),
            f"schedule must be wsd, cosine, linear or constant, not {self.schedule}",
        )
        need(self.lr > 0 and math.isfinite(self.lr), f"lr must be positive, not {self.lr}")
        for name in ("embed_lr", "weight_decay", "clip", "spike", "z_loss"):
            need(getattr(self, name) >= 0, f"{name} must not be negative, not {getattr(self, name)}")
        for name in ("warmup", "decay", "final", "batch_warmup"):
            need(0 <= getattr(self, name) <= 1, f"{name} is a share between 0 and 1, not {getattr(self, name)}")
        for name in ("beta1", "beta2", "momentum"):
            need(0 <= getattr(self, name) < 1, f"{name} must lie in [0, 1), not {getattr(self, name)}")
        need(self.eps > 0, f"eps must be positive, not {self.eps}")

    def factor(self, step: int, steps: int) -> float:
        """What multiplies every rate at ``step`` (0-based) of ``steps``: warm-up, then the schedule."""
        warm = math.ceil(self.warmup * steps)
        if step < warm:
            return (step + 1) / warm
        if self.schedule == "constant":
            return 1.0
        share = self.decay if self.schedule == "wsd" else 1.0
        begin = max(warm, round(steps * (1 - share)))
        done = min(1.0, max(0.0, (step - begin + 1) / max(1, steps - begin + 1)))
        shape = (1 + math.cos(math.pi * done)) / 2 if self.schedule == "cosine" else 1 - done
        return self.final + (1 - self.final) * shape


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """Everything one training run needs, and all of pretraining; fine-tuning and its objectives add their fields.

    ``data`` is a token dataset directory, ``tokenizer`` is copied into the model directory ``out``, ``init`` a model
    directory (or a MiniMind ``.pth``) to start from (null: fresh weights of ``model``). ``steps`` wins over ``epochs``
    when it is not 0. Numbers have no defaults here: the config states every one. ``how`` changes no weights.
    """

    NAME: ClassVar[str] = "pretrain"
    """The stage."""
    DATA: ClassVar[str] = "text"
    """Kind of the token dataset it reads."""
    VALIDATES_FIRST: ClassVar[bool] = False
    """Whether validation before the first step says something."""
    GPU_LOG_EVERY: ClassVar[int] = 10
    """Steps of a GPU between two records, unless told: reading its numbers makes it wait."""

    data: str
    tokenizer: str
    out: str
    model: ModelConfig | None = None
    init: str | None = None
    seq_len: int
    """Slots in a row."""
    batch_tokens: int
    """Global batch: slots (tokens and padding) in one update, over all ranks."""
    steps: int
    epochs: float
    optim: OptimConfig
    seed: int
    eval_every: int
    """Steps between validations; 0 validates at the end only (and before the first step where that says something)."""
    eval_tokens: int
    """Most slots a validation reads; 0 reads all of the split."""
    how: How

    def __post_init__(self) -> None:
        need(
            (self.model is None) != (self.init is None),
            "give either model (fresh weights) or init (a model directory), not both or neither",
        )
        for name in ("seq_len", "batch_tokens"):
            need(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("steps", "epochs", "eval_every", "eval_tokens", "seed"):
            need(getattr(self, name) >= 0, f"{name} must not be negative, not {getattr(self, name)}")
        need(
            self.steps > 0 or self.epochs > 0 or self.init is not None,
            "steps or epochs must be positive; both are 0 only with init, to keep its weights",
        )
        need(
            self.batch_tokens >= self.seq_len,
            f"batch_tokens ({self.batch_tokens}) must hold at least one sequence of seq_len ({self.seq_len})",
        )
        fits = not self.how.fp8 or self.seq_len % 16 == 0
        need(fits, f"fp8 needs seq_len to be a multiple of 16, not {self.seq_len}")

    @property
    def batch_rows(self) -> int:
        """Rows of ``seq_len`` slots in one update."""
        return max(1, self.batch_tokens // self.seq_len)

    def identity(self) -> dict[str, Any]:
        """What decides the weights, without paths (those enter as fingerprints of what they hold)."""
        skip = {"data", "tokenizer", "out", "init", "how", "eval_every"}
        return {name: value for name, value in dump(self).items() if name not in skip}

    def graph(self) -> list[int | str]:
        """What decides the compiled graph besides the model's shape, the row length and the micro-batch."""
        return [self.DATA]
