"""MiniMind's ``.pth`` weights: a state dict in fp16 that says nothing of the model's shape but through its tensors'
shapes.

Names and layout are those of Hugging Face (MiniMind-3 is Qwen3 and Qwen3-MoE, MiniMind2 is Llama), so only the config
has to be found. What shapes cannot tell is fixed in MiniMind's ``model_minimind.py``: RoPE theta 1e6, 32,768 positions;
for MiniMind2, which has no QK-norm to show the head's width, 8 heads and a norm epsilon of 1e-5.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.network.hf_config import experts_a_token
from model.specs.shape import ModelConfig

POSITIONS, THETA, LLAMA_HEADS = 32768, 1e6, 8
_PREFIX = re.compile(r"^(?:module\.|_orig_mod\.)+")


def read_minimind(path: str | Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Shape and fp32 tensors (Hugging Face names) of a MiniMind ``.pth``: weights, or a resume file that holds them.

    Raises ValueError naming what is missing or cannot be computed here.
    """
    state = _read(Path(path))
    try:
        config = _shape(state, Path(path))
    except KeyError as missing:
        raise ValueError(f"{path}: no tensor {missing}; these are not weights of a MiniMind model") from None
    if config.tied:
        state.pop("lm_head.weight", None)
    return config, {name: value.float() for name, value in state.items()}


def _read(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)  # tensors only: a pickle may not run code here
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except Exception as error:  # torch's unpickler fails with whatever the bytes lead it to
        first = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{path}: not a file of tensors written by torch.save ({type(error).__name__}: {first})"
        ) from None
    if isinstance(found, dict) and isinstance(found.get("model"), dict):
        found = found["model"]
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds a {type(found).__name__}, not a state dict")
    return {
        _PREFIX.sub("", name): value
        for name, value in found.items()
        if isinstance(value, Tensor) and "freqs_" not in name
    }


def _shape(state: dict[str, Tensor], where: Path) -> ModelConfig:
    first = "model.layers.0."
    if any(".shared_experts." in name for name in state):
        raise ValueError(
            f"{where}: MiniMind2's shared experts have no counterpart in Llama or Qwen3; dense MiniMind2 and all"
            " MiniMind-3 weights can be read"
        )
    vocabulary, dim = state["model.embed_tokens.weight"].shape
    query, key = state[first + "self_attn.q_proj.weight"].shape[0], state[first + "self_attn.k_proj.weight"].shape[0]
    norm = state.get(first + "self_attn.q_norm.weight")
    head = norm.shape[0] if norm is not None else query // LLAMA_HEADS
    router = state.get(first + "mlp.gate.weight")
    ffn = state[first + ("mlp." if router is None else "mlp.experts.0.") + "gate_proj.weight"].shape[0]
    output = state.get("lm_head.weight")
    layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("model.layers."))
    experts: dict[str, Any] = {}
    if router is not None:
        count = router.shape[0]
        experts = {"experts": count, "experts_per_token": experts_a_token(where, count), "expert_ffn": ffn}
    return ModelConfig(
        vocab_size=vocabulary,
        dim=dim,
        layers=layers,
        heads=query // head,
        kv_heads=key // head,
        head_dim=head,
        ffn=ffn,
        max_seq_len=POSITIONS,
        rope_theta=THETA,
        norm_eps=1e-6 if norm is not None else 1e-5,
        qk_norm=norm is not None,
        tied=output is None or torch.equal(output, state["model.embed_tokens.weight"]),
        **experts,
    )
