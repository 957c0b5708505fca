"""Chunked losses against torch's own, value and gradient; Muon against torch.optim.Muon; schedules."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from spec_helpers import spec as make

from model.objectives.preference import preference
from model.running import machine
from model.specs.train import OptimConfig
from model.training import loss
from model.training.optim import MuonAdamW, groups, orthogonalize


@pytest.mark.parametrize("gradient", [loss.eager_gradient, loss.chunk_gradient])
@pytest.mark.parametrize("z", [0.0, 1e-2])
def test_chunked_cross_entropy_is_torchs(gradient, z: float) -> None:
    g = torch.Generator().manual_seed(0)
    h, head = torch.randn(30, 16, generator=g), torch.randn(50, 16, generator=g)
    targets, weight = torch.randint(0, 50, (30,), generator=g), torch.rand(30, generator=g)
    weight[::4] = 0
    theirs = [h.clone().requires_grad_(), head.clone().requires_grad_()]
    logits = theirs[0] @ theirs[1].t()
    nll = F.cross_entropy(logits, targets, reduction="none")
    expected = ((nll + z * logits.logsumexp(-1) ** 2) * weight).sum()
    expected.backward()
    ours = [h.clone().requires_grad_(), head.clone().requires_grad_()]
    total, plain = loss.cross_entropy(*ours, targets, weight, z, gradient, chunk=13)
    total.backward()
    torch.testing.assert_close((total, plain), (expected, (nll * (weight > 0)).sum()))
    torch.testing.assert_close([p.grad for p in ours], [p.grad for p in theirs])


def test_log_probs_and_preference_are_the_formula(monkeypatch) -> None:
    monkeypatch.setitem(loss.CHUNK, "cpu", 4)
    g = torch.Generator().manual_seed(0)
    h, head, targets = torch.randn(10, 8, generator=g), torch.randn(20, 8, generator=g), torch.arange(10)
    a, b = h.clone().requires_grad_(), head.clone().requires_grad_()
    expected = F.log_softmax(a @ b.t(), -1).gather(1, targets[:, None])[:, 0]
    (expected * torch.arange(10)).sum().backward()
    c, d = h.clone().requires_grad_(), head.clone().requires_grad_()
    ours = loss.log_probs(c, d, targets)
    (ours * torch.arange(10)).sum().backward()
    torch.testing.assert_close((ours, c.grad, d.grad), (expected, a.grad, b.grad))
    own = make("dpo", data="d", tokenizer="t", out="o", init="m", beta=0.5)
    value, margin = preference(torch.tensor([-1.0 + 2.0]), torch.tensor([-3.0 + 2.5]), own)
    assert margin.item() == pytest.approx(0.75) and value.item() == pytest.approx(math.log(1 + math.exp(-0.75)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_muon_is_torchs_and_adamw_is_torchs(dtype: torch.dtype) -> None:
    config = OptimConfig(lr=0.02, weight_decay=0.1, embed_lr=0.01)
    shapes = {
        "q_proj.weight": (8, 8),
        "up_proj.weight": (24, 8),
        "down_proj.weight": (8, 24),
        "k_proj.weight": (8, 8),
        "embed_tokens.weight": (10, 8),
    }
    torch.manual_seed(0)
    values = {name: torch.randn(shape) for name, shape in shapes.items()}
    ours = {name: torch.nn.Parameter(v.clone()) for name, v in values.items()}
    theirs = {name: torch.nn.Parameter(v.clone()) for name, v in values.items()}
    mine = MuonAdamW(groups(ours.items(), config), config, lambda group, tensors: orthogonalize(tensors, dtype))
    matrices = [p for n, p in theirs.items() if "embed" not in n]
    peers = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([theirs["embed_tokens.weight"]], lr=0.01, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    for _ in range(3):
        for name, shape in shapes.items():
            grad = torch.randn(shape)
            ours[name].grad, theirs[name].grad = grad.clone(), grad.clone()
        for optimizer in (mine, *peers):
            optimizer.step()
    for name in shapes:
        torch.testing.assert_close(ours[name], theirs[name], atol=2e-3, rtol=1e-2)  # torch's Newton-Schulz runs in bf16


@pytest.mark.parametrize("flags", [{"avx2"}, {"avx2", "avx512_bf16"}, {"asimd", "bf16"}])
def test_the_compute_type_is_what_the_processor_multiplies_unless_one_is_named(flags, monkeypatch) -> None:
    monkeypatch.setattr(machine, "_cpu_flags", lambda: frozenset(flags))
    cpu = torch.device("cpu")
    native = torch.bfloat16 if len(flags) > 1 else torch.float32
    assert machine.pick_dtype("auto", cpu) == native
    assert machine.pick_dtype("fp32", cpu) == torch.float32 and machine.pick_dtype("bf16", cpu) == torch.bfloat16


@pytest.mark.parametrize("schedule", ["wsd", "cosine", "linear", "constant"])
def test_schedules_warm_up_and_end_where_they_say(schedule: str) -> None:
    config = OptimConfig(schedule=schedule, warmup=0.1, final=0.1)
    factors = [config.factor(step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == pytest.approx(1.0)
    assert all(0 < f <= 1 for f in factors)
    if schedule != "constant":
        assert factors[-1] < 0.15 and factors[60] >= factors[80]
    if schedule == "wsd":
        assert factors[60] == 1.0
