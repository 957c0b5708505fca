"""fp8 matrix products on NVIDIA GPUs from Ada and Hopper on: the matrices inside blocks, one scale a tensor, chosen
anew at every use.

Inputs and weights in e4m3, gradients in e5m2 (Micikevicius et al. 2022, arXiv:2209.05433); parameters, sums and
everything outside these products stay as they are. Worth it only for wide models and compiled: the casts are fused
then.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.network.transformer import Linear, Transformer

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def use_fp8(model: Transformer) -> int:
    """Let the matrices of a model's blocks multiply in fp8, where both sides are multiples of 16; how many they are."""
    found = [
        m
        for block in model.model.layers
        for m in block.modules()
        if type(m) is Linear and all(n % 16 == 0 for n in m.weight.shape)
    ]
    for module in found:
        module.__class__ = Fp8Linear
    return len(found)


def check_fp8(device: torch.device) -> None:
    """Raises ValueError when ``device`` has no units for fp8."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise ValueError(
            "resources.fp8 needs an NVIDIA GPU of compute capability 8.9 or newer (Ada, Hopper, Blackwell); set"
            " resources.fp8=false"
        )


class Fp8Linear(Linear):
    """A matrix without bias; [..., inputs] in bf16 to [..., outputs], with as many rows as a multiple of 16."""

    def forward(self, input: Tensor) -> Tensor:
        return _Product.apply(input.reshape(-1, input.shape[-1]), self.weight).view(*input.shape[:-1], -1)


class _Product(torch.autograd.Function):
    """x [n, in] @ weight [out, in].T; keeps its fp8 copies for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x8, x_scale = quantize(x, E4M3)
        w8, w_scale = quantize(weight, E4M3)
        ctx.save_for_backward(x8, x_scale, w8, w_scale)
        ctx.dtypes = x.dtype, weight.dtype
        return multiply(x8, x_scale, w8.t(), w_scale, x.dtype, fast=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride] - torch's is variadic
        x8, x_scale, w8, w_scale = ctx.saved_tensors
        x_dtype, w_dtype = ctx.dtypes
        g8, g_scale = quantize(grad, E5M2)
        return (
            multiply(g8, g_scale, _by_columns(w8), w_scale, x_dtype),
            multiply(g8.t().contiguous(), g_scale, _by_columns(x8), x_scale, x_dtype).to(w_dtype),
        )


def quantize(t: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """``t`` in fp8, scaled so that its largest element is the largest there is, and the fp32 factor that undoes it."""
    scale = t.abs().amax().float().clamp(min=1e-12) / torch.finfo(kind).max
    return (t.float() / scale).to(kind).contiguous(), scale


def multiply(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, dtype: torch.dtype, fast: bool = False) -> Tensor:
    """a [n, k] by rows times b [k, m] by columns, as the tensor cores want them; ``fast`` sums with less care (forward
    passes)."""
    one = F.ScalingType.TensorWise
    return F.scaled_mm(a, b, a_scale, one, b_scale, one, output_dtype=dtype, use_fast_accum=fast)


def _by_columns(t: Tensor) -> Tensor:
    return t.t().contiguous().t()
