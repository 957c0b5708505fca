"""Matrices of int8 and int4 weights that take part in a :class:`Transformer` where a ``Linear`` would.

On a CPU they multiply as integers, on other devices with weights that are turned back at each use. What one row of the
input gives does not depend on its neighbours: int8 sums are exact, and each row has a scale of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.quantized.scheme import Scheme


class Int8Linear(nn.Module):
    """W8A8: ``codes`` int8 [outputs, inputs] times ``scale`` fp32 [outputs, 1]; the input is rounded to int8 row by
    row, with the scale that its largest magnitude needs."""

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes.contiguous())
        self.register_buffer("scale", scale.float().view(-1, 1))
        self.codes: Tensor
        self.scale: Tensor

    @property
    def weight(self) -> Tensor:
        """The matrix in fp32 [outputs, inputs]."""
        return self.codes.float() * self.scale

    def forward(self, input: Tensor) -> Tensor:
        if not (input.is_cpu and exact_products()):
            return F.linear(input, self.weight.to(input.dtype))
        rows = input.reshape(-1, input.shape[-1]).float()
        scale = rows.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
        codes = (rows / scale).round().to(torch.int8)
        sums = torch.ops.aten._int_mm(codes, self.codes.t())  # [rows, outputs] int32
        return (sums.float() * scale * self.scale.t()).to(input.dtype).view(*input.shape[:-1], -1)


class Int4Linear(nn.Module):
    """W4A16: ``codes`` uint8 0 to 15 [outputs, inputs] stand for ``(code - 8) * scale``, ``scale`` bf16 [outputs,
    inputs / group]. Here the input is rounded to bf16 and the output comes from fp32 sums rounded to bf16."""

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.outputs, self.inputs = codes.shape
        self.group = self.inputs // scale.shape[1]
        self.register_buffer("packed", pack(codes))
        self.register_buffer("scale", scale.bfloat16())
        self.packed: Tensor
        self.scale: Tensor
        self._tiles: tuple[Tensor, Tensor] | None = None

    @property
    def codes(self) -> Tensor:
        """uint8 [outputs, inputs]."""
        return unpack(self.packed, (self.outputs, self.inputs))

    @property
    def weight(self) -> Tensor:
        """The matrix in fp32 [outputs, inputs]."""
        groups = self.codes.view(self.outputs, -1, self.group).float() - 8
        return (groups * self.scale.float()[..., None]).view(self.outputs, self.inputs)

    def forward(self, input: Tensor) -> Tensor:
        if not input.is_cpu:
            return F.linear(input, self.weight.to(input.dtype))
        self._tiles = self._tiles or self._tile()
        rows = input.reshape(-1, input.shape[-1]).bfloat16()
        product = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self._tiles[0], self.group, self._tiles[1])
        return product[:, : self.outputs].to(input.dtype).reshape(*input.shape[:-1], -1)

    def _tile(self) -> tuple[Tensor, Tensor]:
        """Codes and scales as torch's product wants them, which takes outputs by sixteen."""
        more = -self.outputs % 16
        codes = F.pad(self.codes.int(), (0, 0, 0, more), value=8)
        scale = F.pad(self.scale, (0, 0, 0, more)).t()
        pairs = torch.stack([scale, torch.zeros_like(scale)], -1).contiguous()  # [groups, outputs, 2]: scale, 0
        return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1), pairs


class QuantizedExperts(nn.Module):
    """The experts of a layer, each of three rounded matrices, in place of :class:`model.network.moe.Experts`."""

    def __init__(self, experts: Sequence[dict[str, nn.Module]]) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.ModuleDict(expert) for expert in experts)

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """Rows ``x`` [n, dim], sorted by expert, ``counts`` [experts] of them each, to [n, dim]."""
        parts = x.split(counts.tolist())
        return torch.cat([self._one(e, part) for e, part in enumerate(parts) if len(part)] or [x])

    def _one(self, expert: int, rows: Tensor) -> Tensor:
        own = self.experts[expert]
        gate, up = own["gate_proj"](rows), own["up_proj"](rows)  # pyright: ignore[reportIndexIssue] - a ModuleDict
        return own["down_proj"](F.silu(gate) * up)  # pyright: ignore[reportIndexIssue]


@functools.cache
def exact_products() -> bool:
    """Whether this CPU's int8 products are exact: those without VNNI may add pairs in 16 bits, which overflow."""
    rows = torch.full((2, 256), 127, dtype=torch.int8)
    return bool((torch.ops.aten._int_mm(rows, rows.t()) == 127 * 127 * 256).all())


def linear_of(scheme: Scheme, tensors: dict[str, Tensor]) -> nn.Module:
    """The module of what a file holds of one matrix: ``weight`` and ``weight_scale``, or ``weight_packed``,
    ``weight_scale`` and ``weight_shape``."""
    if scheme.bits == 8:
        return Int8Linear(tensors["weight"], tensors["weight_scale"])
    return Int4Linear(unpack(tensors["weight_packed"], tensors["weight_shape"].tolist()), tensors["weight_scale"])


def pack(codes: Tensor) -> Tensor:
    """Codes 0 to 15 [outputs, inputs] as int32 [outputs, inputs / 8], the first input in the lowest bits."""
    eight = codes.to(torch.int32).view(codes.shape[0], -1, 8)
    return (eight << (4 * torch.arange(8, dtype=torch.int32))).sum(-1, dtype=torch.int32)


def unpack(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The codes (uint8) of :func:`pack`."""
    codes = (packed[..., None] >> (4 * torch.arange(8, dtype=torch.int32, device=packed.device))) & 15
    return codes.to(torch.uint8).view(*shape)
