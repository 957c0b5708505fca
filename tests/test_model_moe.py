"""Experts: equal compiled and not, nothing missing when one gets no token, and the balance loss of the reference."""

from __future__ import annotations

import pytest
import torch

from model.network.moe import MoE, balance_loss, compile_around
from model.network.transformer import Transformer
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
    compile_around()
    for forward in (layer, torch.compile(layer, backend="aot_eager")):
        layer.zero_grad()
        out = forward(x)
        balance = balance_loss([layer.routed])
        (out.square().sum() + balance).backward()
        found.append([out.detach(), balance.detach(), *(p.grad.clone() for p in layer.parameters())])
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(plain, compiled)
    gradient = layer.experts.gate_proj.grad
    assert gradient[2].abs().max() > 0 and not gradient[3].any()


@pytest.mark.parametrize("top", [1, 2, 3])
@pytest.mark.parametrize("padded", [False, True])
def test_the_balance_loss_is_the_references_without_its_padding(top: int, padded: bool) -> None:
    from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

    torch.manual_seed(top)
    shape = {"dim": 32, "heads": 2, "kv_heads": 2, "ffn": 48, "experts": 4, "experts_per_token": top, "layers": 3}
    model = Transformer(ModelConfig(vocab_size=50, router_aux=0.25, **shape))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    ids, doc = torch.randint(0, 50, (2, 12)), torch.zeros(2, 12, dtype=torch.int64)
    if padded:
        doc[0, 7:] = doc[1, 3:] = -1
    model(ids, doc)
    logits = tuple(torch.log(block.mlp.routed[0]) for block in model.model.layers)
    wanted = load_balancing_loss_func(logits, 4, top, (doc >= 0).long() if padded else None)
    assert model.balance(doc).item() == pytest.approx(0.25 * wanted.item(), rel=1e-5)
    assert model.balance(torch.full_like(doc, -1)).item() == 0
