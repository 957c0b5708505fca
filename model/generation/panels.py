"""Matrices of a model as the compiled products read them: panels of bytes in the form that their weights have."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.generation.kernels.matrices import BF16, FP32, INT4, INT8, panel_bytes
from model.generation.kernels.tiles import PANEL
from model.specs.shape import ModelConfig

Parts = tuple[Tensor, ...]
"""A matrix [outputs, inputs]: its values, or its codes and their scales."""


def pad(n: int) -> int:
    """The next multiple of a panel."""
    return -(-n // PANEL) * PANEL


def parts(module: nn.Module) -> Parts:
    """The matrix that a layer multiplies by; an adapter's share included (:mod:`model.network.lora`)."""
    own: Any = module
    if hasattr(own, "codes"):  # one of model.quantized, which those who only meet exact models do not import
        return own.codes, own.scale
    if not hasattr(own, "lora_B"):
        return (own.weight,)
    return (own.weight + own.scale * (own.lora_B.weight @ own.lora_A.weight),)


def joined(*matrices: Parts) -> Parts:
    """The outputs of several matrices one after the other."""
    return tuple(torch.cat(same) for same in zip(*matrices, strict=True))


def fits_bf16(matrix: Tensor) -> bool:
    """Whether bf16 holds each of its numbers exactly."""
    # a few rows first: of a model that trains they say no
    return matrix.dtype == torch.bfloat16 or all(bool((m.bfloat16() == m).all()) for m in (matrix[:4], matrix))


def layout(c: ModelConfig, kind: int, group: int, head: int) -> tuple[np.ndarray, int, int]:
    """Where each matrix begins in bytes: int64 [layers, matrices], that of the output matrix (of the form ``head``),
    and the size of all."""

    def size(outputs: int, inputs: int, form: int = kind) -> int:
        return pad(outputs) // PANEL * panel_bytes(form, group, inputs)

    own = [size((c.heads + 2 * c.kv_heads) * c.head_size, c.dim), size(c.dim, c.heads * c.head_size)]
    width = c.expert_size if c.experts else c.ffn
    feed = [2 * size(width, c.dim), size(c.dim, width)]
    if c.experts:
        feed = [size(c.experts, c.dim, FP32), *feed * c.experts]
    sizes = np.array([own + feed] * c.layers, np.int64)
    ends = sizes.cumsum().reshape(sizes.shape)
    return ends - sizes, int(ends[-1, -1]), int(ends[-1, -1]) + size(c.vocab_size, c.dim, head)


def fill(panels: Tensor, kind: int, matrix: Parts) -> None:
    """Put a matrix into ``panels`` uint8 [outputs / PANEL, bytes]; outputs that are missing of the last are 0."""
    if kind in (FP32, BF16):
        numbers = panels.view(torch.float32 if kind == FP32 else torch.bfloat16).view(len(panels), -1, PANEL)
        if kind == BF16:  # column c beside column c + PANEL / 2
            numbers = numbers.unflatten(2, (PANEL // 2, 2)).transpose(2, 3)  # [count, inputs, 2, PANEL / 2]
        _fill_exact(numbers, matrix[0])
    elif kind == INT8:
        _fill_int8(panels, *matrix)
    else:
        _fill_int4(panels, *matrix)


def _fill_exact(panels: Tensor, matrix: Tensor) -> None:
    whole, inputs, columns = len(matrix) // PANEL, matrix.shape[1], panels.shape[2:]
    panels[:whole] = matrix[: whole * PANEL].view(whole, PANEL, inputs).mT.unflatten(2, columns)
    if whole < len(panels):
        panels[whole] = F.pad(matrix[whole * PANEL :].t(), (0, PANEL - len(matrix) % PANEL)).unflatten(1, columns)


def _fill_int8(panels: Tensor, codes: Tensor, scale: Tensor) -> None:
    count, more = len(panels), pad(len(codes)) - len(codes)
    codes = F.pad(codes, (0, -codes.shape[1] % 4, 0, more)).view(count, PANEL, -1, 4)
    sums = codes.sum((2, 3), dtype=torch.int32) * -128
    panels[:, : 4 * PANEL] = _bytes(F.pad(scale.view(-1), (0, more)).view(count, PANEL))
    panels[:, 4 * PANEL : 8 * PANEL] = _bytes(sums)
    panels[:, 8 * PANEL :] = _bytes(codes.transpose(1, 2).reshape(count, -1))


def _fill_int4(panels: Tensor, codes: Tensor, scale: Tensor) -> None:
    count, groups, more = len(panels), scale.shape[1], pad(len(codes)) - len(codes)
    own = (
        F.pad(codes, (0, 0, 0, more)).view(count, PANEL, groups, -1).permute(0, 2, 3, 1)
    )  # [count, groups, group, PANEL]
    low, high = own.split(PANEL // 2, -1)
    scales = F.pad(scale.bfloat16(), (0, 0, 0, more)).view(count, PANEL, groups).mT
    whole = panels.view(count, groups, -1)
    whole[..., : 2 * PANEL] = _bytes(scales)
    whole[..., 2 * PANEL :] = (low | high << 4).reshape(count, groups, -1)


def _bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)


def form_of(module: nn.Module) -> tuple[int, int]:
    """The form of a model's matrices and the inputs of a group, by one of them; FP32 of one that is not rounded."""
    own: Any = module
    if not hasattr(own, "codes"):
        return FP32, 0
    return (INT8, 0) if own.codes.dtype == torch.int8 else (INT4, own.group)
