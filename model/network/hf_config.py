"""``config.json`` of Hugging Face ``transformers`` and our :class:`ModelConfig`, both ways.

What a file says is used or refused by name. Fields that ``transformers`` itself does not read for these three
architectures cannot change what it computes; those of them that other models are computed by are refused all the same,
because whoever wrote them meant something by it.
"""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

from model.specs.shape import ModelConfig

ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen3ForCausalLM": "qwen3", "Qwen3MoeForCausalLM": "qwen3_moe"}
_MUST_BE_OFF = (
    "attention_bias", "mlp_bias", "use_sliding_window", "mlp_only_layers", "quantization_config", "auto_map",
    "final_logit_softcapping", "attn_logit_softcapping", "logit_softcapping", "logits_soft_cap", "softcap",
    "n_shared_experts", "shared_expert_intermediate_size", "no_rope_layers", "attention_sinks",
)  # fmt: skip
"""Fields that would have to be computed, and are not when they are there and not false, 0, null or empty."""
_MUST_BE_ONE = (
    "partial_rotary_factor", "rotary_pct", "embedding_multiplier", "residual_multiplier", "attention_multiplier",
    "logits_scaling", "logit_scale", "scale_emb", "scale_depth",
)  # fmt: skip
_ROPE_FIELDS = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
    "yarn": {"factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"},
}
_ROPE_COMMON = {"rope_type", "type", "rope_theta", "original_max_position_embeddings", "partial_rotary_factor"}
_ROPE_WORDS = {"rope_type", "type", "truncate", "short_factor", "long_factor"}
_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_NUMBERS = (
    *_SIZES, "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta", "num_experts",
    "num_local_experts", "num_experts_per_tok", "moe_intermediate_size", "router_aux_loss_coef",
)  # fmt: skip
_NO_SAFE_DEFAULT = {
    "llama": (),
    "qwen3": ("num_key_value_heads", "head_dim"),
    "qwen3_moe": ("num_key_value_heads", "head_dim", "num_experts_per_tok", "moe_intermediate_size"),
}
"""Fields whose defaults in ``transformers`` are those of one size of model, so that a missing one is a mistake."""


def architecture(config: ModelConfig) -> str:
    """The class of ``transformers`` that computes the same function."""
    if config.experts:
        return "Qwen3MoeForCausalLM"
    return "Qwen3ForCausalLM" if config.qk_norm else "LlamaForCausalLM"


def to_hf(config: ModelConfig, ids: dict[str, Any] | None = None) -> dict[str, Any]:
    """``config.json`` of a model; ``ids`` adds bos/eos/pad token ids."""
    name = architecture(config)
    values = {
        "architectures": [name],
        "model_type": ARCHITECTURES[name],
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope_scaling(config),
        "tie_word_embeddings": config.tied,
        "use_cache": True,
        "initializer_range": 0.02,
        "torch_dtype": "float32",
    }
    if config.experts:
        values |= {
            "num_experts": config.experts,
            "num_experts_per_tok": config.experts_per_token,
            "moe_intermediate_size": config.expert_size,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "router_aux_loss_coef": config.router_aux,
        }
    return values | (ids or {})


def _rope_scaling(config: ModelConfig) -> dict[str, Any] | None:
    """``rope_scaling`` of a config, with the fields that differ from their defaults; None without scaling."""
    if config.rope_factor <= 1:
        return None
    found: dict[str, Any] = {"rope_type": config.rope_type, "factor": config.rope_factor}
    if config.rope_type != "linear":
        found["original_max_position_embeddings"] = config.rope_original_len
    if config.rope_type == "llama3":
        found |= {"low_freq_factor": config.rope_low_freq, "high_freq_factor": config.rope_high_freq}
    if config.rope_type == "yarn":
        given = {
            "attention_factor": (config.rope_attention_factor, 0.0),
            "beta_fast": (config.rope_beta_fast, 32.0),
            "beta_slow": (config.rope_beta_slow, 1.0),
            "truncate": (config.rope_truncate, True),
        }
        found |= {name: value for name, (value, default) in given.items() if value != default}
    return found


def from_hf(values: dict[str, Any], where: str = "config.json") -> ModelConfig:
    """The ModelConfig of a ``config.json``. Raises ValueError naming what this decoder cannot compute."""
    kind = values.get("model_type") if isinstance(values, dict) else None
    if not isinstance(kind, str) or kind not in ARCHITECTURES.values():
        raise ValueError(
            f"{where}: model_type {kind!r} is not supported; supported are {', '.join(ARCHITECTURES.values())}"
        )
    _refuse(values, kind, where)
    heads, moe = values["num_attention_heads"], kind == "qwen3_moe"
    return ModelConfig(
        vocab_size=values["vocab_size"],
        dim=values["hidden_size"],
        layers=values["num_hidden_layers"],
        heads=heads,
        kv_heads=values.get("num_key_value_heads") or heads,
        head_dim=values.get("head_dim") or 0,
        ffn=values["intermediate_size"],
        max_seq_len=values.get("max_position_embeddings", 2048),
        **_rope(values, where),
        norm_eps=values.get("rms_norm_eps", 1e-6),
        qk_norm=kind != "llama",
        tied=values.get("tie_word_embeddings", False),
        experts=(values.get("num_experts") or values.get("num_local_experts") or 0) if moe else 0,
        experts_per_token=values["num_experts_per_tok"] if moe else 2,
        expert_ffn=values["moe_intermediate_size"] if moe else 0,
        router_aux=values.get("router_aux_loss_coef", 0.001) if moe else 0.01,
    )


def _refuse(values: dict[str, Any], kind: str, where: str) -> None:
    """Raises ValueError naming every field that says something which is not computed here, or is missing."""
    wrong = [f"{name} = {str(values[name])[:60]} is not supported" for name in _MUST_BE_OFF if values.get(name)]
    wrong += [
        f"{name} = {values[name]} is not supported" for name in _MUST_BE_ONE if values.get(name, 1) not in (1, None)
    ]
    if any(layer != "full_attention" for layer in values.get("layer_types") or ()):
        wrong.append("layer_types: only full_attention is supported")
    if values.get("hidden_act", "silu") not in ("silu", "swish"):
        wrong.append(f"hidden_act {values['hidden_act']!r} is not supported, only silu")
    if kind == "qwen3_moe" and not (values.get("norm_topk_prob") and values.get("decoder_sparse_step", 1) == 1):
        wrong.append("only norm_topk_prob = true and decoder_sparse_step = 1 are supported")
    needed = [*_SIZES, *_NO_SAFE_DEFAULT[kind]]
    missing = [name for name in needed if values.get(name) is None]
    if kind == "qwen3_moe" and not (values.get("num_experts") or values.get("num_local_experts")):
        missing.append("num_experts")
    wrong += [f"{', '.join(missing)} missing"] if missing else []
    wrong += [f"{name} = {values[name]!r} is not a number" for name in _NUMBERS if not _is_number(values.get(name))]
    if wrong:
        raise ValueError(f"{where}: {'; '.join(wrong)}")


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _rope(values: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields ``rope_*`` of a ModelConfig. Raises ValueError naming what is not computed here."""
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    other = values.get("rope_scaling") or rope
    if not isinstance(rope, dict) or not isinstance(other, dict):
        raise ValueError(f"{where}: RoPE scaling is not an object")
    if {**rope, "rope_theta": None} != {**other, "rope_theta": None}:
        raise ValueError(f"{where}: rope_parameters and rope_scaling say different things")
    wrong = [name for name, value in rope.items() if name not in _ROPE_WORDS and not _is_number(value)]
    if wrong:
        raise ValueError(f"{where}: RoPE scaling: {', '.join(wrong)} must be a number")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in _ROPE_FIELDS:
        raise ValueError(
            f"{where}: RoPE scaling {kind!r} is not supported; supported are {', '.join(sorted(_ROPE_FIELDS))}"
        )
    strange = sorted(
        name for name, value in rope.items() if name not in _ROPE_FIELDS[kind] | _ROPE_COMMON and value is not None
    )
    if strange or rope.get("partial_rotary_factor", 1.0) not in (1, None):
        raise ValueError(
            f"{where}: RoPE scaling {kind!r} with {', '.join(strange or ['partial_rotary_factor'])} is not supported"
        )
    found: dict[str, Any] = {"rope_theta": float(rope.get("rope_theta") or values.get("rope_theta") or 10000.0)}
    if kind == "default":
        return found
    longest = values.get("max_position_embeddings", 2048)
    original = rope.get("original_max_position_embeddings") or values.get("original_max_position_embeddings") or longest
    factor = float(rope.get("factor") or longest / original)
    if factor <= 1:
        raise ValueError(f"{where}: RoPE scaling {kind!r} with factor {factor} is not supported; it must be above 1")
    found |= {"rope_type": kind, "rope_factor": factor, "rope_original_len": int(original)}
    if kind == "llama3":
        low, high = rope.get("low_freq_factor"), rope.get("high_freq_factor")
        if low is None or high is None:
            raise ValueError(f"{where}: RoPE scaling 'llama3' needs low_freq_factor and high_freq_factor")
        found |= {"rope_low_freq": float(low), "rope_high_freq": float(high)}
    if kind == "yarn":
        found |= {
            "rope_beta_fast": float(rope.get("beta_fast") or 32.0),
            "rope_beta_slow": float(rope.get("beta_slow") or 1.0),
            "rope_truncate": bool(rope.get("truncate", True)),
            "rope_attention_factor": _attention_factor(rope, factor),
        }
    return found


def _attention_factor(rope: dict[str, Any], factor: float) -> float:
    """What YaRN multiplies cosines and sines by; 0 where it is the usual function of ``factor``."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    mscale, all_dim = rope.get("mscale"), rope.get("mscale_all_dim")
    if not (mscale and all_dim):
        return 0.0
    return (0.1 * mscale * math.log(factor) + 1.0) / (0.1 * all_dim * math.log(factor) + 1.0)


def experts_a_token(weights: Path, experts: int | None = None) -> int:
    """How many experts a token goes to in a MiniMind ``.pth``, from ``NAME.json`` beside it.

    Tensors cannot tell: a model of two experts a token has the shapes of one of one. Raises ValueError saying what to
    write where.
    """
    beside = weights.with_suffix(".json")
    try:
        values = json.loads(beside.read_text(encoding="utf-8-sig")) if beside.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{beside}: not JSON: {error}") from None
    found = values.get("num_experts_per_tok") if isinstance(values, dict) else None
    if not isinstance(found, int) or isinstance(found, bool) or found < 1 or (experts and found > experts):
        raise ValueError(
            f"{weights}: weights of a mixture of experts do not say how many experts a token goes to; write"
            f' {{"num_experts_per_tok": 1}} (or what it was trained with) into {beside}'
        )
    return found


def check_weights(path: Path) -> None:
    """Raises ValueError when a model directory's ``config.json``, or a MiniMind ``.pth`` as far as its names tell, is
    of a model that cannot be computed here. Reads no weights."""
    if path.is_dir():
        try:
            values = json.loads((path / "config.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path / 'config.json'}: not JSON: {error}") from None
        from_hf(values, str(path / "config.json"))
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("data.pkl")]
            if any(b".mlp.experts." in archive.read(name) for name in names):
                experts_a_token(path)
