"""Rotary positions: the angles of every position, and the scalings that stretch them to longer texts.

Frequencies are those of ``transformers`` for the same values of ``config.json``: plain RoPE (Su et al. 2021), linear
scaling (Chen et al. 2023, arXiv:2306.15595), YaRN (Peng et al. 2023, arXiv:2309.00071) and Llama 3.1's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.specs.shape import ModelConfig


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (Su et al. 2021) in the half-split form of Hugging Face: x [b, heads, T, head]."""
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def rope_tables(
    config: ModelConfig, size: int, device: torch.device | str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines [size, head], scaled as ``config.rope_type`` says when ``rope_factor`` > 1."""
    head, base = config.head_size, config.rope_theta
    exponent = torch.arange(0, head, 2, dtype=torch.float32, device=device) / head
    inverse, scale = 1.0 / base**exponent, 1.0
    if config.rope_factor > 1 and config.rope_type == "yarn":
        inverse = _yarn(inverse, config)
        scale = config.rope_attention_factor or 0.1 * math.log(config.rope_factor) + 1.0
    elif config.rope_factor > 1:
        inverse = inverse / config.rope_factor if config.rope_type == "linear" else _llama3(inverse, config)
    angle = torch.outer(torch.arange(size, dtype=torch.float32, device=device), inverse)
    angle = torch.cat((angle, angle), -1)
    return (angle.cos() * scale).to(dtype), (angle.sin() * scale).to(dtype)


def _yarn(inverse: Tensor, config: ModelConfig) -> Tensor:
    """YaRN's frequencies: those that turn more than ``beta_fast`` times in the original length stay, those under
    ``beta_slow`` are stretched."""
    head, base, length = config.head_size, config.rope_theta, config.rope_original_len

    def dimension(turns: float) -> float:
        return head * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension(config.rope_beta_fast), dimension(config.rope_beta_slow)
    if config.rope_truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head - 1)
    width = high - low if high != low else 0.001
    ramp = (torch.arange(head // 2, dtype=torch.float32, device=inverse.device) - low) / width
    stretched = ramp.clamp(0, 1)
    return inverse / config.rope_factor * stretched + inverse * (1 - stretched)


def _llama3(inverse: Tensor, config: ModelConfig) -> Tensor:
    """Llama 3.1's frequencies: by how often one turns in the original length, it stays, is stretched, or lies
    between."""
    turns = config.rope_original_len * inverse / (2 * math.pi)
    kept = ((turns - config.rope_low_freq) / (config.rope_high_freq - config.rope_low_freq)).clamp(0, 1)
    return inverse / config.rope_factor * (1 - kept) + inverse * kept
