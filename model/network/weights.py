"""Model directories: safetensors, config.json and tokenizer files that open in stock ``transformers``.

Our parameter names are theirs, so this is a translation of configs, plus the layout of experts (they keep one matrix
per expert in a file, we compute with all of a layer in one tensor). Files are written deterministically.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.network.minimind import read_minimind
from model.network.transformer import Transformer
from model.running.files import whole, write_json
from model.specs.shape import ModelConfig

ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen3ForCausalLM": "qwen3", "Qwen3MoeForCausalLM": "qwen3_moe"}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_EXPERT = re.compile(r"(.*\.mlp\.experts\.)(\d+)\.(\w+)\.weight$")


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
        "rope_scaling": None,
        "tie_word_embeddings": config.tied,
        "use_cache": True,
        "initializer_range": 0.02,
        "torch_dtype": "float32",
    }
    if config.rope_factor > 1:
        values["rope_scaling"] = {
            "rope_type": "yarn",
            "factor": config.rope_factor,
            "original_max_position_embeddings": config.rope_original_len,
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


def from_hf(values: dict[str, Any], where: str = "config.json") -> ModelConfig:
    """The ModelConfig of a ``config.json``. Raises ValueError naming what this decoder cannot compute."""
    kind = values.get("model_type")
    if kind not in ARCHITECTURES.values():
        raise ValueError(
            f"{where}: model_type {kind!r} is not supported; supported are {', '.join(ARCHITECTURES.values())}"
        )
    for name in ("attention_bias", "mlp_bias", "use_sliding_window", "mlp_only_layers"):
        if values.get(name):
            raise ValueError(f"{where}: {name} = {values[name]!r} is not supported")
    if kind == "qwen3_moe" and not (values.get("norm_topk_prob") and values.get("decoder_sparse_step", 1) == 1):
        raise ValueError(f"{where}: only norm_topk_prob = true and decoder_sparse_step = 1 are supported")
    if values.get("hidden_act", "silu") != "silu":
        raise ValueError(f"{where}: hidden_act {values['hidden_act']!r} is not supported, only silu")
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ("default", "yarn"):
        raise ValueError(f"{where}: RoPE scaling {rope_type!r} is not supported, only yarn")
    yarn, heads = rope_type == "yarn", values["num_attention_heads"]
    moe = kind == "qwen3_moe"
    return ModelConfig(
        vocab_size=values["vocab_size"],
        dim=values["hidden_size"],
        layers=values["num_hidden_layers"],
        heads=heads,
        kv_heads=values.get("num_key_value_heads") or heads,
        head_dim=values.get("head_dim") or 0,
        ffn=values["intermediate_size"],
        max_seq_len=values.get("max_position_embeddings", 2048),
        rope_theta=float(rope.get("rope_theta") or values.get("rope_theta") or 10000.0),
        rope_factor=float(rope["factor"]) if yarn else 1.0,
        rope_original_len=int(rope["original_max_position_embeddings"]) if yarn else 0,
        norm_eps=values.get("rms_norm_eps", 1e-6),
        qk_norm=kind != "llama",
        tied=values.get("tie_word_embeddings", False),
        experts=(values.get("num_experts") or values.get("num_local_experts") or 0) if moe else 0,
        experts_per_token=values.get("num_experts_per_tok", 2) if moe else 2,
        expert_ffn=values.get("moe_intermediate_size", 0) if moe else 0,
        router_aux=values.get("router_aux_loss_coef", 0.01) if moe else 0.01,
    )


def read_config(path: str | Path) -> ModelConfig:
    """The shape of the model in a directory or a MiniMind ``.pth``. Raises ValueError for what is neither."""
    path = Path(path)
    if path.is_file():
        return read_minimind(path)[0]
    try:
        values = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no config.json; a model directory is needed") from None
    return from_hf(values, str(path / "config.json"))


def load_model(path: str | Path) -> Transformer:
    """The model in a directory or a MiniMind ``.pth``, weights fp32 on the CPU. Raises ValueError when files are
    missing or do not fit."""
    path = Path(path)
    if path.is_file():
        config, state = read_minimind(path)
    else:
        config, state = read_config(path), {}
        shards = sorted(path.glob("model*.safetensors"))
        if not shards:
            raise ValueError(f"{path}: no model*.safetensors")
        for shard in shards:
            state |= load_file(shard)
    with torch.device("meta"):
        model = Transformer(config)
    model = model.to_empty(device="cpu")
    load_state(model, {name: value.float() for name, value in state.items()}, str(path))
    return model


def widen(model: Transformer, vocabulary: int, tokenizer: Path) -> Transformer:
    """A copy of ``model`` with embedding (and head) rows for the ids that its ``tokenizer`` has been given, up to
    ``vocabulary``.

    A token that a merge makes begins as the mean of the two it is made from, any other as the mean of all rows, where
    it is as likely as an average token (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language
    Models").
    """
    spec = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    known, vocab = model.config.vocab_size, spec["vocab"]
    pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in spec.get("merges", [])]
    made = {vocab[a + b]: (vocab[a], vocab[b]) for a, b in pairs if vocab.get(a + b, 0) >= known}
    state = model.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in state:
            rows = list(state[name])
            middle = state[name].mean(0)
            for i in range(known, vocabulary):
                rows.append((rows[made[i][0]] + rows[made[i][1]]) / 2 if i in made else middle)
            state[name] = torch.stack(rows)
    wide = Transformer(replace(model.config, vocab_size=vocabulary))
    wide.load_state_dict(state)
    return wide


def load_state(model: Transformer, state: dict[str, Tensor], where: str) -> None:
    """Put the tensors of a Hugging Face state dict into ``model``; ValueError lists what is missing, extra or
    misshapen."""
    state = _stack_experts(state)
    if model.config.tied:
        state.pop("lm_head.weight", None)
    own = dict(model.named_parameters())
    wrong = [f"missing {name}" for name in own if name not in state]
    wrong += [f"unexpected {name}" for name in state if name not in own and not name.endswith("rotary_emb.inv_freq")]
    wrong += [
        f"{name} is {list(state[name].shape)}, not {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if wrong:
        raise ValueError(
            f"{where}: weights do not fit config.json:"
            f" {'; '.join(wrong[:5])}{f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''}"
        )
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(state[name])


def save_model(
    model: Transformer, path: str | Path, tokenizer: str | Path | None = None, state: dict[str, Tensor] | None = None
) -> None:
    """Write a directory that ``transformers`` opens: weights as they are (fp32 masters), configs, and a tokenizer's
    files.

    ``state`` replaces the model's own parameters, for engines that shard them.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    ids: dict[str, Any] = {}
    if tokenizer is not None:
        for name in TOKENIZER_FILES:
            if (Path(tokenizer) / name).is_file():
                shutil.copyfile(Path(tokenizer) / name, path / name)
        ids = special_ids(Path(tokenizer))
    values = {name: p.detach().cpu().contiguous() for name, p in (state or dict(model.named_parameters())).items()}
    with whole(path / "model.safetensors") as partial:
        save_file(_split_experts(values), partial, metadata={"format": "pt"})
    shown = {k: v[0] if isinstance(v, list) else v for k, v in ids.items()}
    write_json(path / "config.json", to_hf(model.config, shown), indent=2)
    generation = {"do_sample": False, "max_length": model.config.max_seq_len} | ids
    write_json(path / "generation_config.json", generation, indent=2)


def special_ids(tokenizer: Path) -> dict[str, Any]:
    """bos, pad and the ids that end a text (the turn's end first, then the document's), read from a tokenizer's
    files."""
    try:
        config = json.loads((tokenizer / "tokenizer_config.json").read_text(encoding="utf-8"))
        added = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8")).get("added_tokens", [])
    except FileNotFoundError:
        return {}
    known = {token["content"]: token["id"] for token in added}
    text = {name: config.get(f"{name}_token") for name in ("bos", "eos", "pad")}
    text = {name: value.get("content") if isinstance(value, dict) else value for name, value in text.items()}
    found = {f"{name}_token_id": known[value] for name, value in text.items() if value in known}
    ends = list(dict.fromkeys(known[name] for name in (text["eos"], "<|endoftext|>") if name in known))
    return found | ({"eos_token_id": ends} if ends else {})


def _stack_experts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """One [experts, out, in] tensor per layer and projection from the one-matrix-per-expert names."""
    stacks: dict[str, dict[int, Tensor]] = {}
    kept: dict[str, Tensor] = {}
    for name, value in state.items():
        found = _EXPERT.match(name)
        if found:
            stacks.setdefault(found[1] + found[3], {})[int(found[2])] = value
        else:
            kept[name] = value
    return kept | {name: torch.stack([parts[i] for i in sorted(parts)]) for name, parts in stacks.items()}


def _split_experts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    split: dict[str, Tensor] = {}
    for name, value in state.items():
        head, found, projection = name.partition(".mlp.experts.")
        if found:
            split |= {f"{head}.mlp.experts.{i}.{projection}.weight": part.clone() for i, part in enumerate(value)}
        else:
            split[name] = value
    return dict(sorted(split.items()))
