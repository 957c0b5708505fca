"""What defines a model and a training run, as plain frozen dataclasses: no torch, no pydantic, readable from JSON.

Workers read a :class:`TrainSpec` from ``spec.json``; config sections nest :class:`ModelConfig` and
:class:`OptimConfig` directly (``__pydantic_config__`` makes them refuse unknown keys there too). Every value is checked
when an object is made; the ValueError names the field and the knob.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a Llama/Qwen3-style decoder, dense or mixture of experts. Sizes are counts, lengths are tokens.

    ``qk_norm`` makes it Qwen3 (off: Llama); ``experts`` > 0 makes every feed-forward a Qwen3-MoE block. RoPE is scaled
    (YaRN: Peng et al. 2023, arXiv:2309.00071) when ``rope_factor`` > 1: positions up to ``rope_factor *
    rope_original_len``.
    """

    __pydantic_config__ = {
        "extra": "forbid",
        "use_attribute_docstrings": True,
    }

    vocab_size: int = 0
    """0 takes the tokenizer's."""
    dim: int = 256
    """Width of the residual stream."""
    layers: int = 4
    """Blocks of attention and feed-forward."""
    heads: int = 4
    """Query heads."""
    kv_heads: int = 2
    """Key and value heads; equal to ``heads``: multi-head, fewer: grouped-query attention."""
    head_dim: int = 0
    """0 is ``dim / heads``."""
    ffn: int = 704
    """Width of the SwiGLU feed-forward."""
    max_seq_len: int = 2048
    """Longest sequence the exported model claims to read."""
    rope_theta: float = 10000.0
    """Base of the rotary position frequencies."""
    rope_factor: float = 1.0
    """How many times longer than ``rope_original_len`` a text may be; 1 is off."""
    rope_original_len: int = 0
    """The length the weights were trained at."""
    rope_type: Literal["yarn", "linear", "llama3"] = "yarn"
    """How positions are stretched when ``rope_factor`` > 1."""
    rope_beta_fast: float = 32.0
    """YaRN: frequencies that turn more often than this in the original length stay."""
    rope_beta_slow: float = 1.0
    """YaRN: frequencies that turn less often than this are stretched in full."""
    rope_truncate: bool = True
    """YaRN: whole dimensions as the bounds between the two."""
    rope_attention_factor: float = 0.0
    """YaRN: what multiplies cosines and sines; 0 is ``0.1 ln(rope_factor) + 1``."""
    rope_low_freq: float = 1.0
    """llama3: as ``rope_beta_slow``."""
    rope_high_freq: float = 4.0
    """llama3: as ``rope_beta_fast``."""
    norm_eps: float = 1e-6
    """Added to the mean square in every RMSNorm."""
    qk_norm: bool = True
    """Normalise queries and keys (Qwen3); without it the model is a Llama."""
    tied: bool = True
    """The output matrix is the embedding."""
    experts: int = 0
    """Experts in every feed-forward (Qwen3-MoE); 0 is dense."""
    experts_per_token: int = 2
    """Experts that a token goes to."""
    expert_ffn: int = 0
    """Width of one expert; 0 is ``ffn / experts_per_token``."""
    router_aux: float = 0.01
    """Weight of the load-balancing loss (Switch Transformer, arXiv:2101.03961)."""

    def __post_init__(self) -> None:
        for name in ("dim", "layers", "heads", "kv_heads", "ffn", "max_seq_len", "experts_per_token"):
            _need(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("vocab_size", "head_dim", "rope_original_len", "experts", "expert_ffn", "router_aux"):
            _need(getattr(self, name) >= 0, f"{name} must not be negative, not {getattr(self, name)}")
        _need(self.heads % self.kv_heads == 0, f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        _need(
            self.head_dim > 0 or self.dim % self.heads == 0,
            f"dim ({self.dim}) must be a multiple of heads ({self.heads}), or set head_dim",
        )
        _need(self.head_size % 2 == 0, f"head_dim ({self.head_size}) must be even: RoPE turns pairs")
        _need(self.rope_theta > 0, f"rope_theta must be positive, not {self.rope_theta}")
        _need(self.rope_factor >= 1, f"rope_factor must be at least 1, not {self.rope_factor}")
        _need(
            self.rope_factor == 1 or self.rope_original_len > 0 or self.rope_type == "linear",
            "rope_factor > 1 needs rope_original_len, the length the model was trained at",
        )
        kinds = get_args(get_type_hints(type(self))["rope_type"])
        _need(self.rope_type in kinds, f"rope_type must be one of {', '.join(kinds)}, not {self.rope_type}")
        for slow, fast in (("rope_beta_slow", "rope_beta_fast"), ("rope_low_freq", "rope_high_freq")):
            _need(
                0 < getattr(self, slow) < getattr(self, fast),
                f"{slow} ({getattr(self, slow)}) must be positive and below {fast} ({getattr(self, fast)})",
            )
        _need(
            self.rope_attention_factor >= 0,
            f"rope_attention_factor must not be negative, not {self.rope_attention_factor}",
        )
        _need(0 < self.norm_eps < 1, f"norm_eps must lie between 0 and 1, not {self.norm_eps}")
        _need(
            not self.experts or self.experts_per_token <= self.experts,
            f"experts_per_token ({self.experts_per_token}) exceeds experts ({self.experts})",
        )
        _need(not self.experts or self.qk_norm, "experts need qk_norm = true (the Qwen3-MoE layout)")

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.dim // self.heads

    @property
    def expert_size(self) -> int:
        """Width of one expert's hidden layer."""
        return self.expert_ffn or max(1, self.ffn // self.experts_per_token)

    def parameters(self, active: bool = False) -> int:
        """Number of parameters; ``active`` counts only the experts one token uses. Needs ``vocab_size``."""
        head = self.head_size
        attention = self.dim * head * (2 * self.heads + 2 * self.kv_heads) + (2 * head if self.qk_norm else 0)
        feed = 3 * self.dim * self.ffn
        if self.experts:
            used = self.experts_per_token if active else self.experts
            feed = 3 * self.dim * self.expert_size * used + self.dim * self.experts
        return (
            self.layers * (attention + feed + 2 * self.dim)
            + self.dim
            + self.vocab_size * self.dim * (1 if self.tied else 2)
        )

    def flops_per_token(self, seq_len: int, frozen: bool = False) -> float:
        """Training FLOPs a token: 6 per matrix parameter (head included, embedding look-up not) and 6*L*d*T for causal
        attention.

        ``frozen`` matrices (LoRA) have no gradient of their own: 4 instead of 6. The usual count of model FLOPs (PaLM,
        arXiv:2204.02311 appendix B, halved for the causal mask); recomputation is not counted.
        """
        norms = self.layers * (2 * self.dim + (2 * self.head_size if self.qk_norm else 0)) + self.dim
        matrices = self.parameters(active=True) - norms - (0 if self.tied else self.vocab_size * self.dim)
        return (4.0 if frozen else 6.0) * matrices + 6.0 * self.layers * self.heads * self.head_size * seq_len


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
    """An update whose gradient norm lies so many standard deviations above the recent ones' mean is skipped; 0 never
    skips."""
    z_loss: float = 0.0
    """Weight of ``log(Z)^2`` (PaLM), which keeps logits from drifting."""
    batch_warmup: float = 0.0
    """Share of the steps in which the global batch grows from a quarter to all of ``batch_tokens``."""

    def __post_init__(self) -> None:
        _need(self.name in ("muon", "adamw"), f"name must be muon or adamw, not {self.name}")
        _need(
            self.schedule in ("wsd", "cosine", "linear", "constant"),
            f"schedule must be wsd, cosine, linear or constant, not {self.schedule}",
        )
        _need(self.lr > 0 and math.isfinite(self.lr), f"lr must be positive, not {self.lr}")
        for name in ("embed_lr", "weight_decay", "clip", "spike", "z_loss"):
            _need(getattr(self, name) >= 0, f"{name} must not be negative, not {getattr(self, name)}")
        for name in ("warmup", "decay", "final", "batch_warmup"):
            _need(0 <= getattr(self, name) <= 1, f"{name} is a share between 0 and 1, not {getattr(self, name)}")
        for name in ("beta1", "beta2", "momentum"):
            _need(0 <= getattr(self, name) < 1, f"{name} must lie in [0, 1), not {getattr(self, name)}")
        _need(self.eps > 0, f"eps must be positive, not {self.eps}")

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


@dataclass(frozen=True)
class LoraConfig:
    """Train low-rank adapters of the matrices inside blocks instead of all weights (LoRA, arXiv:2106.09685), with
    AdamW.

    The result is merged; the adapter lies beside it in the format of Hugging Face's ``peft``.
    """

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}  # noqa: RUF012

    rank: int = 0
    """Width of an adapter; 0 trains all weights."""
    alpha: float = 0.0
    """The adapter's product is multiplied by ``alpha / rank``; 0 is twice the rank."""
    targets: Literal["all", "attention"] = "all"
    """Which matrices get one: attention's four, or the feed-forward's three as well."""

    def __post_init__(self) -> None:
        _need(self.rank >= 0, f"rank must not be negative, not {self.rank}")
        _need(self.alpha >= 0, f"alpha must not be negative, not {self.alpha}")
        _need(self.targets in ("all", "attention"), f"targets must be all or attention, not {self.targets}")

    @property
    def scale(self) -> float:
        """What multiplies an adapter's product."""
        return self.alpha / self.rank if self.alpha else 2.0


@dataclass(frozen=True)
class DistillConfig:
    """Learn from a teacher's probabilities as well as from the answers (Hinton et al. 2015, arXiv:1503.02531).

    The loss is ``(1 - weight) * cross-entropy + weight * temperature^2 * KL(teacher || student)`` at the targets, both
    softened by ``temperature``.
    """

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}  # noqa: RUF012

    teacher: str = ""
    """A model directory (or a MiniMind .pth) with the student's vocabulary; empty: no distillation."""
    weight: float = 0.5
    """Share of the teacher in the loss."""
    temperature: float = 1.5
    """Divides both models' logits."""

    def __post_init__(self) -> None:
        _need(0 < self.weight <= 1, f"weight is a share above 0 and at most 1, not {self.weight}")
        _need(
            self.temperature > 0 and math.isfinite(self.temperature),
            f"temperature must be positive, not {self.temperature}",
        )


@dataclass(frozen=True)
class TrainSpec:
    """Everything one training run needs; the first block decides the weights, ``how`` fields only where and how fast.

    ``data`` is a token dataset directory, ``tokenizer`` is copied into the model directory, ``init`` a model directory
    (or a MiniMind ``.pth``) to start from (null: fresh weights of ``model``). ``steps`` wins over ``epochs`` when it is
    not 0.
    """

    objective: Literal["pretrain", "sft", "dpo"]
    data: str
    tokenizer: str
    out: str
    model: ModelConfig | None = None
    init: str | None = None
    seq_len: int = 512
    batch_tokens: int = 8192
    """Global batch: slots (tokens and padding) in one update, over all ranks."""
    steps: int = 0
    epochs: float = 1.0
    optim: OptimConfig = field(default_factory=OptimConfig)
    seed: int = 0
    beta: float = 0.1
    """dpo: strength of the pull to the reference (Rafailov et al. 2023, arXiv:2305.18290)."""
    label_smoothing: float = 0.0
    """dpo: share of pairs taken to be labelled the wrong way round (cDPO)."""
    nll_weight: float = 0.0
    """dpo: weight of the chosen answer's own cross-entropy (RPO, arXiv:2404.19733)."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    eval_every: int = 0
    """Steps between validations; 0 validates at the end only (sft and dpo: also before the first step)."""
    eval_tokens: int = 0
    """Most slots a validation reads; 0 reads all of the split."""

    micro_batch: int = 0
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    engine: Literal["plain", "ddp", "fsdp2", "deepspeed"] = "ddp"
    zero_stage: int = 1
    offload: bool = False
    fp8: bool = False
    """Multiply the matrices inside blocks in fp8 (GPU)."""
    checkpointing: bool = False
    """Recompute activations in the backward pass."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 makes one about every minute."""
    keep_checkpoints: int = 2
    threads: int = 0
    log_every: int = 1

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for name in ("objective", "dtype", "compile", "device", "engine"):
            allowed = get_args(hints[name])
            _need(
                getattr(self, name) in allowed, f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)}"
            )
        _need(
            (self.model is None) != (self.init is None),
            "give either model (fresh weights) or init (a model directory), not both or neither",
        )
        for name in ("seq_len", "batch_tokens", "keep_checkpoints", "log_every"):
            _need(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        for name in (
            "steps",
            "epochs",
            "eval_every",
            "eval_tokens",
            "micro_batch",
            "checkpoint_every",
            "threads",
            "nll_weight",
            "seed",
        ):
            _need(getattr(self, name) >= 0, f"{name} must not be negative, not {getattr(self, name)}")
        _need(
            self.steps > 0 or self.epochs > 0 or self.init is not None,
            "steps or epochs must be positive; both are 0 only with init, to keep its weights",
        )
        _need(
            self.batch_tokens >= self.seq_len,
            f"batch_tokens ({self.batch_tokens}) must hold at least one sequence of seq_len ({self.seq_len})",
        )
        _need(self.beta > 0, f"beta must be positive, not {self.beta}")
        _need(0 <= self.label_smoothing < 0.5, f"label_smoothing must lie in [0, 0.5), not {self.label_smoothing}")
        _need(not self.fp8 or self.seq_len % 16 == 0, f"fp8 needs seq_len to be a multiple of 16, not {self.seq_len}")
        _need(not self.lora.rank or self.init is not None, "lora adapts an initial model; give init")
        _need(not self.distill.teacher or self.objective != "dpo", "distill goes with pretrain and sft, not with dpo")
        _need(0 <= self.zero_stage <= 3, f"zero_stage must be 0, 1, 2 or 3, not {self.zero_stage}")

    @property
    def batch_rows(self) -> int:
        """Rows of ``seq_len`` slots in one update."""
        return max(1, self.batch_tokens // self.seq_len)

    def identity(self) -> dict[str, Any]:
        """What decides the weights, without paths (those enter as fingerprints of what they hold)."""
        skip = {
            "data",
            "tokenizer",
            "out",
            "init",
            "micro_batch",
            "dtype",
            "compile",
            "device",
            "engine",
            "zero_stage",
            "offload",
            "fp8",
            "checkpointing",
            "checkpoint_every",
            "keep_checkpoints",
            "threads",
            "log_every",
            "eval_every",
        }
        found = {name: value for name, value in dump(self).items() if name not in skip}
        found["distill"].pop("teacher")
        return found


def dump(value: Any) -> dict[str, Any]:
    """A config dataclass as plain JSON values."""
    return dataclasses.asdict(value)


def parse(kind: type, values: dict[str, Any], path: str = "") -> Any:
    """A config dataclass from JSON values; ValueError with the field's path for an unknown key, a wrong type or
    value."""
    hints = get_type_hints(kind)
    names = {f.name for f in dataclasses.fields(kind)}
    given: dict[str, Any] = {}
    for name, value in values.items():
        where = f"{path}{name}"
        _need(name in names, f"{where}: unknown key; {kind.__name__} has {', '.join(sorted(names))}")
        given[name] = _read(hints[name], value, where)
    unset = dataclasses.MISSING
    missing = [
        f.name
        for f in dataclasses.fields(kind)
        if f.name not in given and f.default is unset and f.default_factory is unset
    ]
    _need(not missing, f"{path or kind.__name__}: missing {', '.join(missing)}")
    try:
        return kind(**given)
    except ValueError as error:
        raise ValueError(f"{path}{error}") from None


def _read(hint: Any, value: Any, where: str) -> Any:
    options = get_args(hint) if type(None) in get_args(hint) else (hint,)
    if value is None and type(None) in options:
        return None
    hint = next(option for option in options if option is not type(None))
    if dataclasses.is_dataclass(hint):
        _need(isinstance(value, dict), f"{where}: must be a table, not {value!r}")
        return parse(hint, value, f"{where}.")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    kind = hint if isinstance(hint, type) else str  # a Literal of strings
    _need(
        isinstance(value, kind) and (kind is bool or not isinstance(value, bool)),
        f"{where}: must be {kind.__name__}, not {value!r}",
    )
    return value


def load_spec(path: str | Path) -> TrainSpec:
    """The TrainSpec in a JSON file. Raises ValueError naming the file and the field."""
    try:
        return parse(TrainSpec, json.loads(Path(path).read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def save_spec(spec: TrainSpec, path: str | Path) -> None:
    """Write ``spec`` as sorted JSON."""
    Path(path).write_text(json.dumps(dump(spec), indent=1, sort_keys=True) + "\n", encoding="utf-8")
