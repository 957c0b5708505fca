"""Experts: equal compiled and not, and nothing missing when an expert gets no token."""

from __future__ import annotations

import torch

from model.network.moe import MoE
from model.specs.shape import ModelConfig


def test_compiled_experts_equal_plain_ones_and_an_expert_without_tokens_has_a_gradient_of_zero() -> None:
    torch.manual_seed(0)
    layer = MoE(ModelConfig(dim=32, heads=2, kv_heads=2, ffn=48, experts=4, experts_per_token=2))
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.2)
    with torch.no_grad():
        layer.gate.weight[3] = layer.gate.weight[2] - 100 * torch.sign(layer.gate.weight[2])
    x = torch.rand(2, 8, 32) * torch.sign(layer.gate.weight[2]).detach()  # expert 2 is everyone's, expert 3 nobody's
    found = []
    for forward in (layer, torch.compile(layer, backend="aot_eager")):
        layer.zero_grad()
        out = forward(x)
        (out.square().sum() + layer.balance).backward()
        found.append([out.detach(), layer.balance.detach(), *(p.grad.clone() for p in layer.parameters())])
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(plain, compiled)
    gradient = layer.experts.gate_proj.grad
    assert gradient[2].abs().max() > 0 and not gradient[3].any()
