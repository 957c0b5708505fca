"""Weights rounded to int8 and int4, with the scales that lose least.

int8 has one scale for each output. int4 has one for each group of inputs, by one of three methods:

- ``nearest``: the scale that the largest magnitude of a group needs;
- ``search``: the best of a row of smaller ones too, by squared error;
- ``gptq``: as ``search``, column after column, and what rounding one did wrong is made good by those that follow,
  weighed by how inputs go together on calibration texts (Frantar et al. 2022, arXiv:2210.17323).
"""

from __future__ import annotations

import torch
from torch import Tensor

SHRUNK = 16
"""How many scales ``search`` tries for each of the two ways to use the range."""
DAMP = 0.01
"""Added to the Hessian's diagonal, as a part of its mean: keeps its inverse well-conditioned (GPTQ's default)."""
COLUMNS = 128
"""Columns of one block of GPTQ: what lies behind is corrected once a block."""


def int8_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 [outputs, inputs] and scales fp32 [outputs, 1] of a matrix."""
    scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
    return (weight / scale).round().to(torch.int8), scale


def int4_codes(weight: Tensor, group: int, method: str, hessian: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes uint8 0 to 15 [outputs, inputs] and scales bf16 [outputs, inputs / group] of a matrix: a code stands for
    ``(code - 8) * scale``. ``hessian`` [inputs, inputs] is the mean of the inputs' outer products, for "gptq"."""
    if method == "gptq" and hessian is not None:
        return _gptq(weight.clone(), group, hessian)
    groups = weight.view(weight.shape[0], -1, group)
    scale = _scales(groups, search=method != "nearest")
    return _codes(groups, scale).view_as(weight), scale.squeeze(-1).bfloat16()


def restored(codes: Tensor, scale: Tensor) -> Tensor:
    """The fp32 matrix that codes of int8 (signed) or int4 (unsigned) stand for."""
    if codes.dtype == torch.int8:
        return codes.float() * scale
    groups = codes.view(codes.shape[0], scale.shape[1], -1)
    return ((groups.float() - 8) * scale.float()[..., None]).view(codes.shape)


def _codes(values: Tensor, scale: Tensor) -> Tensor:
    return ((values / scale).round() + 8).clamp(0, 15).to(torch.uint8)


def _scales(groups: Tensor, *, search: bool) -> Tensor:
    """Scales [outputs, groups, 1], fp32 values that bf16 holds, of [outputs, groups, group] weights."""
    largest = groups.abs().amax(-1, keepdim=True).clamp_min(1e-30)
    best = (largest / 7).bfloat16().float()
    if not search:
        return best
    # 7 keeps the largest magnitude of either sign; 8 uses the code that only a negative one has
    least = _error(groups, best)
    for steps in (7.0, 8.0):
        for part in torch.linspace(1.0, 0.7, SHRUNK).tolist():
            scale = (largest * part / steps).bfloat16().float()
            error = _error(groups, scale)
            better = error < least
            best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return best


def _error(groups: Tensor, scale: Tensor) -> Tensor:
    near = (groups / scale).round().clamp(-8, 7) * scale
    return (groups - near).square().sum(-1, keepdim=True)


def _gptq(weight: Tensor, group: int, hessian: Tensor) -> tuple[Tensor, Tensor]:
    inputs = weight.shape[1]
    hessian = hessian.double().clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    hessian.diagonal().add_(DAMP * hessian.diagonal().mean())
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True).float()
    codes = torch.empty_like(weight, dtype=torch.uint8)
    scales: list[Tensor] = []
    for begin in range(0, inputs, COLUMNS):
        end = min(begin + COLUMNS, inputs)
        errors = torch.zeros(weight.shape[0], end - begin)
        for column in range(begin, end):
            if column % group == 0:
                scales.append(_scales(weight[:, None, column : column + group], search=True)[:, 0])
            own, scale = weight[:, column : column + 1], scales[-1]
            codes[:, column : column + 1] = _codes(own, scale)
            wrong = own - (codes[:, column : column + 1].float() - 8) * scale
            error = wrong / inverse[column, column]
            weight[:, column + 1 : end] -= error * inverse[column, column + 1 : end]
            errors[:, column - begin] = error[:, 0]
        weight[:, end:] -= errors @ inverse[begin:end, end:]
    return codes, torch.cat(scales, 1).bfloat16()
