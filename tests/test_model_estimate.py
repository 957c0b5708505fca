"""The calculator against what torch counts: saved activations, FLOPs, the engine's own tensors, and published speeds."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flows import cli
from model.config import ModelConfig, OptimConfig, TrainSpec
from model.engine import Replicas
from model.estimate import ENGINES, GPUS, Plan, activation_bytes, compare, estimate, matrices, memory, references
from model.objective import NextToken
from model.transformer import Transformer, initialize

SHAPES = [ModelConfig(vocab_size=64, dim=64, layers=6, heads=4, kv_heads=4, ffn=176),
          ModelConfig(vocab_size=64, dim=96, layers=6, heads=6, kv_heads=2, ffn=320),
          ModelConfig(vocab_size=64, dim=64, layers=6, heads=4, kv_heads=2, ffn=176, qk_norm=False)]


def plan(model: ModelConfig = SHAPES[0], **fields) -> Plan:
    return Plan(**{"model": model, "optim": OptimConfig(), "seq_len": 1024, "batch_tokens": 1 << 19, "tokens": 1e9} | fields)


@pytest.mark.parametrize("config", SHAPES)
def test_activations_are_what_autograd_keeps(config: ModelConfig) -> None:
    model, kept = Transformer(config), {}
    initialize(model, 0)
    model.compute_dtype = torch.bfloat16
    ids = torch.zeros(2, 128, dtype=torch.long)

    def pack(tensor):
        if 256 in (tensor.shape[0], tensor.shape[:2].numel()) or 128 in tensor.shape[1:3]:  # by slots: weights' casts are not activations
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        h = model.hidden(ids)
    ends = 256 * (8 + 4 * 2 * config.dim)  # ids, and the last norm
    assert (sum(kept.values()) - ends) / 256 / config.layers == pytest.approx(activation_bytes(config, compiled=False), rel=0.05), h.shape
    assert activation_bytes(config) < activation_bytes(config, compiled=False)


def test_flops_are_torchs() -> None:
    config = SHAPES[1]
    model = Transformer(config)
    model.attention = "manual"
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 128, dtype=torch.long)).sum().backward()
    full = config.flops_per_token(128) + 6.0 * config.layers * config.heads * config.head_size * 128  # the plain form computes the masked half too
    assert counter.get_total_flops() == pytest.approx(128 * full, rel=0.02)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_weights_gradients_and_optimizer_are_the_engines(name: str) -> None:
    config, optim = SHAPES[0], OptimConfig(name=name)
    model = Transformer(config)
    spec = TrainSpec("pretrain", "d", "t", "o", model=config, optim=optim)
    engine = Replicas(NextToken(model, spec), spec, torch.device("cpu"), 0, 1)
    engine.step(1.0)
    state = sum(v.nbytes for s in engine.optimizer.state.values() for v in s.values() if v.numel() > 1)
    need = memory(plan(config, optim=optim), "ddp", 1)
    assert (need["weights"], need["gradients"], need["optimizer"]) == (sum(p.nbytes for p in model.parameters()), engine.grad.nbytes, state)
    assert matrices(config) == sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n)


@pytest.mark.parametrize("gpu, gpus, shape, seq_len, batch, measured", [
    ("h100", 16, (2560, 32, 20, 6912), 2048, 983040, 24142), ("h100", 64, (2048, 24, 16, 5461), 2048, 2621440, 44402),
    ("a100", 8, (2560, 32, 20, 6912), 2048, 327680, 10811), ("a100", 8, (1536, 24, 12, 4096), 2048, 786432, 32434)])
def test_published_runs_that_are_not_in_the_table_are_met(gpu, gpus, shape, seq_len, batch, measured) -> None:
    """llm-foundry's tokens a second and GPU (scripts/train/benchmarking/README.md) for MPT's shapes as SwiGLU of equal size."""
    dim, layers, heads, ffn = shape
    model = ModelConfig(vocab_size=50368, dim=dim, layers=layers, heads=heads, kv_heads=heads, ffn=ffn, max_seq_len=seq_len)
    found = estimate(plan(model, optim=OptimConfig(name="adamw"), seq_len=seq_len, batch_tokens=batch, gpus=gpus, gpu=gpu), "fsdp2")
    assert found["fits"] and found["tokens_per_second"] / gpus == pytest.approx(measured, rel=0.2)


def test_sharding_divides_and_more_gpus_are_faster() -> None:
    big = plan(ModelConfig(vocab_size=50304, dim=2048, layers=20, heads=16, kv_heads=16, ffn=5632))
    rows = {row["engine"]: row for row in compare(big)}
    assert set(rows) == set(ENGINES)
    held = {name: row["memory"]["optimizer"] for name, row in rows.items()}
    assert held["ddp"] == held["zero0"] == 8 * held["zero1"] == 8 * held["fsdp2"] == 8 * held["zero3"]
    assert memory(replace(big, offload=True), "zero1", 1)["optimizer"] == 0
    assert memory(replace(big, checkpointing=True), "ddp", 8)["activations"] < memory(big, "ddp", 8)["activations"] / 4
    assert estimate(replace(big, gpus=64), "ddp")["step"]["total"] < rows["ddp"]["step"]["total"]
    assert estimate(replace(big, gpus=64), "ddp")["mfu"] < rows["ddp"]["mfu"] < rows["ddp"]["mfu_table"]


def test_seven_billion_need_sharding_and_fit_then() -> None:
    rows = {(row["shape"], row["gpus"]): row for row in references("h100", OptimConfig())}
    assert all(row["fits"] for row in rows.values()) and rows["7B", 8]["engine"] not in ("ddp", "zero0")
    assert rows["7B", 8]["memory"]["total"] < GPUS["h100"].memory
    assert 60 < rows["7B", 64]["hours"] < 120  # 140B tokens at Llama-3's 10,000 tokens/s a GPU would take 60


def test_the_command_prints_a_table_and_json(capsys) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(["estimate", "gpt2-124m", "--gpus", "8", "--gpu", "h200", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert done.value.code == 0 and {row["engine"] for row in found["engines"]} == set(ENGINES)
    assert found["engines"][0]["parameters"] == pytest.approx(124e6, rel=0.08) and found["engines"][0]["steps"] == 4768
    with pytest.raises(SystemExit) as done:
        cli.main(["estimate", "tiny", "pretrain.steps=10"])
    assert done.value.code == 0 and "zero3" in (text := capsys.readouterr().out) and "7B x64" in text
    with pytest.raises(SystemExit) as done:
        cli.main(["estimate", "tiny", "pretrain.stpes=10"])
    assert done.value.code == 2 and "did you mean steps" in capsys.readouterr().err
