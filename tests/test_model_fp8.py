"""fp8 products on the CPU, whose kernel has the same arguments as the GPU's: close to exact, in both passes and
compiled."""

from __future__ import annotations

import pytest
import torch

from model.network.fp8 import E4M3, check_fp8, quantize, use_fp8
from model.network.transformer import Linear, Transformer, initialize
from model.specs.shape import ModelConfig


def test_products_and_gradients_are_within_the_rounding_of_fp8() -> None:
    torch.manual_seed(0)
    holder = torch.nn.Module()
    holder.model = torch.nn.Module()
    holder.model.layers = torch.nn.ModuleList([Linear(128, 32), Linear(100, 32)])
    assert use_fp8(holder) == 1  # 100 is no multiple of 16
    layer = holder.model.layers[0]
    x, grad = torch.randn(4, 16, 128, dtype=torch.bfloat16), torch.randn(4, 16, 32, dtype=torch.bfloat16)
    for forward in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        layer.zero_grad()
        mine = x.clone().requires_grad_()
        out = forward(mine)
        out.backward(grad)
        exact = {
            "out": x.float() @ layer.weight.t(),
            "x": grad.float() @ layer.weight,
            "weight": torch.einsum("bto,bti->oi", grad.float(), x.float()),
        }
        for name, got in (("out", out), ("x", mine.grad), ("weight", layer.weight.grad)):
            assert (got.float() - exact[name]).norm() < 0.08 * exact[name].norm(), name
    values, scale = quantize(torch.tensor([[-3.0, 1e-3], [0.0, 12.0]]), E4M3)
    assert values.float().max() == torch.finfo(E4M3).max and (values.float() * scale)[1, 1] == pytest.approx(12.0)


def test_a_model_computes_about_the_same_and_a_device_without_fp8_is_refused() -> None:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=64, dim=64, layers=2, heads=4, kv_heads=2, ffn=96))
    initialize(model, 0)
    for p in model.parameters():
        p.data += 0.02 * torch.randn_like(p)
    model.compute_dtype = torch.bfloat16
    ids = torch.randint(0, 64, (2, 16))
    exact = model(ids)
    assert use_fp8(model) == 14 and set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    inexact = model(ids)
    assert 0 < (inexact - exact).norm() < 0.2 * exact.norm()  # 14 products in a row
    with pytest.raises(ValueError, match=r"resources\.fp8 needs an NVIDIA GPU"):
        check_fp8(torch.device("cpu"))
