"""A GGUF file for llama.cpp and its family: weights, shape, tokenizer and chat template in one file.

Needs the ``gguf`` package (llama.cpp's own writer). Dense Qwen3 and Llama layouts and Qwen3-MoE are written; norms and
the routers of experts stay fp32 in every file. The tokenizer is written only when llama.cpp knows how it splits texts
by name; otherwise it would tokenise differently without saying so, and the export is refused instead.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from model.tokens.chat import ChatTokenizer
from model.tokens.template import CHAT_TEMPLATE, plain_template
from model.tokens.theirs import template_of
from pipeline.release.weights import HfConfig
from pipeline.tokens.patterns import GPT2_PATTERN, PRETOKEN_PATTERN, split_pattern

_ARCHITECTURE = {"qwen3": "qwen3", "llama": "llama", "qwen3_moe": "qwen3moe"}
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS, _REST = r"[^\r\n\p{L}\p{N}]?\p{L}+", r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PRE = {
    PRETOKEN_PATTERN: "qwen2",
    f"{_CONTRACTIONS}|{_LETTERS}|\\p{{N}}|{_REST}": "qwen2",
    GPT2_PATTERN: "gpt-2",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt-2",
    f"{_CONTRACTIONS}|{_LETTERS}|\\p{{N}}{{1,3}}|{_REST}": "llama-bpe",
}
"""llama.cpp's names of split patterns, as the tokenizers of Qwen 2 and 3, GPT-2 and Llama 3 write them."""
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate": "ffn_gate_inp",
}
_EXPERTS = {"gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps"}
_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.weight$")
_EXPERT = re.compile(r"mlp\.experts\.(\d+)\.(\w+)$")


def write_gguf(tensors: dict[str, np.ndarray], config: HfConfig, tokenizer: Path, path: Path, dtype: str) -> None:
    """Write ``tensors`` (fp32, Hugging Face names) with ``config.json``'s values and the tokenizer directory's files to
    ``path``.

    ``dtype``: "bf16", "f16" or "f32" for matrices; vectors and routers (a router in f16 costs more than the rest of the
    model together) stay f32. Raises ValueError naming what cannot be written.
    """
    try:
        import gguf
    except ModuleNotFoundError:
        raise ValueError("export.gguf needs the gguf package (pip install gguf), or set export.gguf=off") from None
    kind = _ARCHITECTURE.get(config["model_type"])
    if kind is None:
        raise ValueError(
            f"export.gguf: model_type {config['model_type']!r} has no GGUF layout here; set export.gguf=off"
        )
    writer = gguf.GGUFWriter(str(path), kind)
    _shape(writer, config, gguf, dtype)
    _tokenizer(writer, tokenizer, config["vocab_size"], gguf)
    quantization = {
        "bf16": gguf.GGMLQuantizationType.BF16,
        "f16": gguf.GGMLQuantizationType.F16,
        "f32": gguf.GGMLQuantizationType.F32,
    }[dtype]
    for name, value in (gguf_tensors(tensors, config) | _frequencies(config)).items():
        exact = value.ndim == 1 or name.endswith("ffn_gate_inp.weight")
        own = gguf.GGMLQuantizationType.F32 if exact else quantization
        writer.add_tensor(name, gguf.quants.quantize(value, own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_tensors(tensors: dict[str, np.ndarray], config: HfConfig) -> dict[str, np.ndarray]:
    """The same weights under llama.cpp's names; experts stacked; Llama's q and k in its interleaved rotary order."""
    found: dict[str, np.ndarray] = {}
    experts: dict[str, dict[int, np.ndarray]] = {}
    for name, value in tensors.items():
        layer = _LAYER.match(name)
        if layer is None:
            if name == "lm_head.weight" and config.get("tie_word_embeddings"):
                continue
            found[_TOP[name]] = value
            continue
        block, part = f"blk.{layer[1]}.", layer[2]
        if expert := _EXPERT.match(part):
            experts.setdefault(f"{block}{_EXPERTS[expert[2]]}.weight", {})[int(expert[1])] = value
            continue
        if config["model_type"] == "llama" and part in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = config["num_attention_heads" if part.endswith("q_proj") else "num_key_value_heads"]
            value = value.reshape(heads, 2, value.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(value.shape)
        found[f"{block}{_NAMES[part]}.weight"] = np.ascontiguousarray(value)
    return found | {name: np.stack([parts[i] for i in sorted(parts)]) for name, parts in experts.items()}


def _shape(writer: Any, config: HfConfig, gguf: Any, dtype: str) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(
        {
            "bf16": gguf.LlamaFileType.MOSTLY_BF16,
            "f16": gguf.LlamaFileType.MOSTLY_F16,
            "f32": gguf.LlamaFileType.ALL_F32,
        }[dtype]
    )
    if config.get("num_experts"):
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    check_scaling(config)
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") in ("yarn", "linear"):
        kind = gguf.RopeScalingType.YARN if scaling["rope_type"] == "yarn" else gguf.RopeScalingType.LINEAR
        writer.add_rope_scaling_type(kind)
        writer.add_rope_scaling_factor(scaling["factor"])
    if scaling.get("rope_type") == "yarn":
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])


def check_scaling(config: HfConfig) -> None:
    """Raises ValueError for a ``rope_scaling`` of ``config.json`` that has no GGUF form, or whose form has not been
    checked: llama.cpp stretches frequencies one by one (Llama 3.1's way) in the Llama layout alone."""
    scaling = config.get("rope_scaling") or {"rope_type": "linear"}
    kind, odd = scaling["rope_type"], scaling.keys() - {"rope_type", "factor", "original_max_position_embeddings"}
    odd -= {"low_freq_factor", "high_freq_factor"} if kind == "llama3" else set()
    if odd or kind not in ("linear", "yarn", "llama3") or (kind == "llama3" and config["model_type"] != "llama"):
        raise ValueError(
            f"export.gguf: RoPE scaling {kind} with {', '.join(sorted(odd)) or 'factor'} has no checked GGUF form here;"
            " set export.gguf=off"
        )


def _frequencies(config: HfConfig) -> dict[str, np.ndarray]:
    """What llama.cpp divides each rotary frequency by where Llama 3.1's scaling stretches them; nothing otherwise."""
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") != "llama3":
        return {}
    factor, low, high = (scaling[name] for name in ("factor", "low_freq_factor", "high_freq_factor"))
    exponent = np.arange(0, config["head_dim"], 2) / config["head_dim"]
    turns = scaling["original_max_position_embeddings"] * config["rope_theta"] ** -exponent / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return {"rope_freqs.weight": (1 / (kept + (1 - kept) / factor)).astype(np.float32)}


def check_tokenizer(spec: HfConfig) -> str:
    """llama.cpp's name for how the tokenizer of a ``tokenizer.json`` splits texts. Raises ValueError without one.

    A tokenizer that brings texts into NFC first (Qwen's) passes: llama.cpp leaves that out, see :func:`normalises`.
    """
    bare = {**spec, "normalizer": None} if normalises(spec) else spec
    pre, merges = _PRE.get(split_pattern(bare) or ""), bool(spec["model"].get("ignore_merges"))
    if pre is None or spec["model"].get("type") != "BPE" or merges != (pre == "llama-bpe"):
        raise ValueError(
            "export.gguf: llama.cpp has no name for this tokenizer's split pattern and would tokenise differently; set"
            " export.gguf=off"
        )
    return pre


def normalises(spec: HfConfig) -> bool:
    """Whether a tokenizer brings texts into NFC, which llama.cpp does not: texts that are not in it get other ids."""
    return spec.get("normalizer") == {"type": "NFC"}


def _tokenizer(writer: Any, directory: Path, vocab_size: int, gguf: Any) -> None:
    spec = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    pre = check_tokenizer(spec)
    added = {token["id"]: token for token in spec["added_tokens"]}
    names = {i: token for token, i in spec["model"]["vocab"].items()} | {
        i: token["content"] for i, token in added.items()
    }
    types = gguf.TokenType
    kinds = [
        (
            types.UNUSED
            if i not in names
            else types.NORMAL
            if i not in added
            else types.CONTROL
            if added[i]["special"]
            else types.USER_DEFINED
        )
        for i in range(vocab_size)
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([names.get(i, f"[PAD{i}]") for i in range(vocab_size)])
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in spec["model"]["merges"]])
    chat = ChatTokenizer.load(directory)
    writer.add_bos_token_id(chat.bos_id)
    writer.add_eos_token_id(chat.eos_id)
    writer.add_pad_token_id(chat.pad_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(plain_template(template_of(directory) or CHAT_TEMPLATE))
