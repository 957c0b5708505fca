"""The shape of a decoder as a plain frozen dataclass; config sections nest it as it is (``__pydantic_config__`` makes
them refuse unknown keys there too)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

from model.specs.base import need


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a Llama/Qwen3-style decoder, dense or mixture of experts. Sizes are counts, lengths are tokens.

    ``qk_norm`` makes it Qwen3 (off: Llama); ``experts`` > 0 makes every feed-forward a Qwen3-MoE block. RoPE is scaled
    (YaRN: Peng et al. 2023, arXiv:2309.00071) when ``rope_factor`` > 1: positions up to ``rope_factor *
    rope_original_len``.
    """

    __pydantic_config__ = {"extra": "forbid", "use_attribute_docstrings": True}  # noqa: RUF012 - read by pydantic

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
            need(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("vocab_size", "head_dim", "rope_original_len", "experts", "expert_ffn", "router_aux"):
            need(getattr(self, name) >= 0, f"{name} must not be negative, not {getattr(self, name)}")
        need(self.heads % self.kv_heads == 0, f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        need(
            self.head_dim > 0 or self.dim % self.heads == 0,
            f"dim ({self.dim}) must be a multiple of heads ({self.heads}), or set head_dim",
        )
        need(self.head_size % 2 == 0, f"head_dim ({self.head_size}) must be even: RoPE turns pairs")
        need(self.rope_theta > 0, f"rope_theta must be positive, not {self.rope_theta}")
        need(self.rope_factor >= 1, f"rope_factor must be at least 1, not {self.rope_factor}")
        need(
            self.rope_factor == 1 or self.rope_original_len > 0 or self.rope_type == "linear",
            "rope_factor > 1 needs rope_original_len, the length the model was trained at",
        )
        kinds = get_args(get_type_hints(type(self))["rope_type"])
        need(self.rope_type in kinds, f"rope_type must be one of {', '.join(kinds)}, not {self.rope_type}")
        for slow, fast in (("rope_beta_slow", "rope_beta_fast"), ("rope_low_freq", "rope_high_freq")):
            need(
                0 < getattr(self, slow) < getattr(self, fast),
                f"{slow} ({getattr(self, slow)}) must be positive and below {fast} ({getattr(self, fast)})",
            )
        need(
            self.rope_attention_factor >= 0,
            f"rope_attention_factor must not be negative, not {self.rope_attention_factor}",
        )
        need(0 < self.norm_eps < 1, f"norm_eps must lie between 0 and 1, not {self.norm_eps}")
        need(
            not self.experts or self.experts_per_token <= self.experts,
            f"experts_per_token ({self.experts_per_token}) exceeds experts ({self.experts})",
        )
        need(not self.experts or self.qk_norm, "experts need qk_norm = true (the Qwen3-MoE layout)")

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
