"""Mixture of experts: each token goes to ``experts_per_token`` of ``experts`` SwiGLU feed-forwards (the Qwen3-MoE
layout).

Token copies are sorted by expert, so that every expert is one matrix product over its tokens: with grouped products on
a GPU, one after the other on a CPU. Work and memory grow with the tokens and not with the number of experts.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.specs.shape import ModelConfig


class Experts(nn.Module):
    """The weights of all experts of a layer: ``gate_proj`` and ``up_proj`` [experts, width, dim], ``down_proj``
    [experts, dim, width]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        n, d, w = config.experts, config.dim, config.expert_size
        self.gate_proj = nn.Parameter(torch.empty(n, w, d))
        self.up_proj = nn.Parameter(torch.empty(n, w, d))
        self.down_proj = nn.Parameter(torch.empty(n, d, w))

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """Rows ``x`` [n, dim], sorted by expert, ``counts`` [experts] of them each, to [n, dim]."""
        gate, up, down = (w.to(x.dtype) for w in (self.gate_proj, self.up_proj, self.down_proj))
        if x.is_cuda and x.dtype == torch.bfloat16 and hasattr(F, "grouped_mm"):
            ends = counts.cumsum(0).int()
            hidden = F.silu(F.grouped_mm(x, gate.mT, offs=ends)) * F.grouped_mm(x, up.mT, offs=ends)
            return F.grouped_mm(hidden, down.mT, offs=ends)
        return _one_by_one(x, counts, gate, up, down)


def _one_by_one(x: Tensor, counts: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    parts = x.split(counts.tolist())
    return torch.cat([(F.silu(p @ gate[e].t()) * (p @ up[e].t())) @ down[e].t() for e, p in enumerate(parts)])


@functools.cache
def compile_around() -> None:
    """Leave the loop over experts out of compiled graphs: its sizes depend on the data. (Asked for by who compiles, and
    not at import, which would load the compiler: a second of every process.)"""
    global _one_by_one
    _one_by_one = torch.compiler.disable(_one_by_one)  # pyright: ignore[reportAssignmentType] - torch types a decorator


class MoE(nn.Module):
    """Router and experts over [batch, T, dim]. ``routed`` holds the last pass's probabilities fp32 [batch * T, experts]
    and chosen experts int64 [batch * T, top]: what :func:`balance_loss` is made of."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.dim, config.experts, bias=False)
        self.experts = Experts(config)
        self.top, self.count = config.experts_per_token, config.experts
        self.routed: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        share = torch.softmax(F.linear(flat.float(), self.gate.weight.float()), -1)
        weight, chosen = share.topk(self.top, -1)
        weight = weight / weight.sum(-1, keepdim=True)
        every = chosen.reshape(-1)
        counts = torch.zeros(self.count, dtype=torch.int64, device=x.device).scatter_add_(
            0, every, torch.ones_like(every)
        )
        self.routed = share, chosen
        order = every.argsort(stable=True)
        token = order // self.top
        out = self.experts(flat[token], counts) * weight.reshape(-1)[order, None].to(x.dtype)
        return torch.zeros_like(flat).index_add(0, token, out).view_as(x)


def balance_loss(routed: Sequence[tuple[Tensor, Tensor]], real: Tensor | None = None) -> Tensor:
    """Load-balancing loss (scalar fp32) of all layers' ``routed`` together; when even, the experts a token goes to.

    Equations 4 to 6 of Switch Transformer (arXiv:2101.03961) as transformers' mixtures of experts pool them:
    experts * sum over experts of (tokens sent to it, a token) * (its mean probability), both means over the tokens of
    all layers. ``real`` bool [batch, T] says which tokens are no padding (null: all); of none the loss is 0.
    """
    sent = probability = torch.zeros(routed[0][0].shape[-1], device=routed[0][0].device)  # both [experts]
    tokens = torch.zeros((), device=sent.device)
    for share, chosen in routed:
        weight = torch.ones_like(share[:, :1]) if real is None else real.reshape(-1, 1).float()  # [batch * T, 1]
        sent = sent.scatter_add(0, chosen.reshape(-1), weight.expand_as(chosen).reshape(-1))
        probability = probability + (share * weight).sum(0)
        tokens = tokens + weight.sum()
    tokens = tokens.clamp_min(1)
    return len(sent) * (sent / tokens * (probability / tokens)).sum()
