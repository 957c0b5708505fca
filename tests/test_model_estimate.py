"""The calculator against what torch counts: saved activations, FLOPs, the engine's own tensors, and published
speeds."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace

import pytest
import torch
from spec_helpers import spec as make
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from flows import cli
from model.network.transformer import Transformer, initialize
from model.objectives.base import Batch
from model.objectives.next_token import NextToken
from model.running.devices import GPUS, Device, known_gpu
from model.running.estimate.engines import REFERENCE, compare, estimate, references
from model.running.estimate.memory import ENGINES, USABLE, Plan, activation_bytes, matrices, memory
from model.running.setup import fitting_rows
from model.specs.base import dump
from model.specs.shape import ModelConfig
from model.specs.train import OptimConfig
from model.training.engine import Replicas

SHAPES = [
    ModelConfig(vocab_size=64, dim=64, layers=6, heads=4, kv_heads=4, ffn=176),
    ModelConfig(vocab_size=64, dim=96, layers=6, heads=6, kv_heads=2, ffn=320),
    ModelConfig(vocab_size=64, dim=64, layers=6, heads=4, kv_heads=2, ffn=176, qk_norm=False),
]


def plan(model: ModelConfig = SHAPES[0], **fields) -> Plan:
    return Plan(
        **{"model": model, "optim": OptimConfig(), "seq_len": 1024, "batch_tokens": 1 << 19, "tokens": 1e9} | fields
    )


CPUS = {
    torch.float32: Device("CPU", "cpu float32", 1e11, 24e9, 1e10, 1e9, 1e9, 4),
    torch.bfloat16: Device("CPU", "cpu bfloat16", 4e11, 24e9, 1e10, 1e9, 1e9, 2),
}
"""A CPU without units for bf16 and one with: tests take both forms on either."""


def kept_by_a_layer(
    config: ModelConfig, rows: int, seq_len: int, compiled: bool, dtype: torch.dtype, attention: str
) -> tuple[int, int]:
    """Bytes of activations and of the weights' casts that autograd keeps for one block; nothing is computed, so any
    shape goes."""
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with FakeTensorMode():
        model = Transformer(replace(config, layers=1, vocab_size=64))
        model.compute_dtype, model.attention = dtype, "manual" if attention == "plain" else "sdpa"
        x = torch.empty(rows, seq_len, config.dim, dtype=dtype, requires_grad=True)
        ids, doc = torch.zeros(rows, seq_len, dtype=torch.long), torch.zeros(rows, seq_len, dtype=torch.int32)
        rope, mask = model.rope(0, seq_len, x.device), model.mask(ids, None if attention == "flash" else doc, None)
        block = model.model.layers[0]
        run = torch.compile(block, backend="aot_eager_decomp_partition", dynamic=False) if compiled else block
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            out = run(x, rope, mask)
        for tensor in (*rope, *model.parameters(), *([mask[0]] if isinstance(mask, tuple) else [])):
            kept.pop(tensor.untyped_storage()._cdata, None)
    casts = {torch.Size(s) for p in block.parameters() for s in (p.shape, p.shape[::-1])}
    weights = sum(n for n, t in kept.values() if t.shape in casts)
    assert out.shape == x.shape
    return sum(n for n, _ in kept.values()) - weights, weights


@pytest.mark.parametrize("size", REFERENCE)
@pytest.mark.parametrize("compiled", [True, False])
def test_a_layer_of_one_and_of_seven_billion_keeps_the_bytes_that_are_calculated(size: str, compiled: bool) -> None:
    torch._dynamo.reset()
    config, seq_len = REFERENCE[size][:2]
    kept, casts = kept_by_a_layer(config, 2, seq_len, compiled, torch.bfloat16, "flash")
    assert kept == 2 * seq_len * activation_bytes(config, compiled)
    assert casts == pytest.approx(2 * matrices(config) / config.layers, rel=1e-3)  # and norms


@pytest.mark.parametrize("config", SHAPES)
@pytest.mark.parametrize("attention, seq_len", [("plain", 128), ("plain", 512), ("masked", 1024)])
@pytest.mark.parametrize("width", [2, 4])
def test_a_layer_on_a_cpu_keeps_the_bytes_that_are_calculated(
    config: ModelConfig, attention: str, seq_len: int, width: int
) -> None:
    dtype = {2: torch.bfloat16, 4: torch.float32}[width]
    kept, _ = kept_by_a_layer(config, 2, seq_len, False, dtype, attention)
    assert kept == pytest.approx(2 * seq_len * activation_bytes(config, False, width, attention, seq_len), rel=0.02)


class Living(TorchDispatchMode):
    """Counts the bytes of tensors that live, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.held: dict[int, int] = {}

    def hold(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.held:
            self.held[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.drop, storage._cdata)

    def drop(self, key: int) -> None:
        self.now -= self.held.pop(key)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                self.hold(tensor)
        return out


MIDDLE = ModelConfig(vocab_size=2000, dim=128, layers=4, heads=4, kv_heads=2, ffn=352)


@pytest.mark.parametrize(
    "config, rows, seq_len, fields",
    [
        (MIDDLE, 4, 128, {}),
        (MIDDLE, 4, 256, {}),
        (MIDDLE, 1, 32, {}),
        (MIDDLE, 8, 128, {"checkpointing": True}),
        (MIDDLE, 4, 128, {"optim": OptimConfig(name="adamw")}),
        (replace(MIDDLE, qk_norm=False, kv_heads=4, vocab_size=20000, tied=False), 2, 128, {}),
        (replace(MIDDLE, layers=2, experts=4, expert_ffn=176), 2, 128, {}),
    ],
)
@pytest.mark.parametrize("dtype", CPUS)
def test_the_most_bytes_that_live_in_an_update_are_calculated(
    config: ModelConfig, rows: int, seq_len: int, fields: dict, dtype: torch.dtype
) -> None:
    wanted = plan(config, seq_len=seq_len, gpus=1, device=CPUS[dtype], compiled=False, **fields)
    model = Transformer(config)
    initialize(model, 0)
    model.compute_dtype, model.attention, model.checkpointing = dtype, "manual", wanted.checkpointing
    spec = make(data="d", tokenizer="t", out="o", model=dump(config), optim=dump(wanted.optim))
    engine, slots, living = Replicas(NextToken(model, spec), spec, torch.device("cpu"), 0, 1), rows * seq_len, Living()
    for tensor in (engine.grad, *(p.detach() for group in engine.optimizer.param_groups for p in group["params"])):
        living.hold(tensor)
    ids, targets = torch.randint(0, config.vocab_size, (2, slots), generator=torch.Generator().manual_seed(0))
    batch = Batch(
        ids.view(rows, seq_len),
        torch.zeros(rows, seq_len, dtype=torch.int32),
        None,
        targets,
        torch.full((slots,), 1 / slots),
    )
    with living:
        for _ in range(2):  # the second has the optimizer's state
            loss, _ = engine(batch)
            engine.backward(loss, True)
            del loss
            engine.step(1.0)
    need = memory(wanted, "ddp", rows)
    assert need["total"] - need["checkpoint"] == pytest.approx(living.peak, rel=0.05)


def test_flops_are_torchs() -> None:
    config = SHAPES[1]
    model = Transformer(config)
    model.attention = "manual"
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 128, dtype=torch.long)).sum().backward()
    full = (
        config.flops_per_token(128) + 6.0 * config.layers * config.heads * config.head_size * 128
    )  # the plain form computes the masked half too
    assert counter.get_total_flops() == pytest.approx(128 * full, rel=0.02)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_weights_gradients_and_optimizer_are_the_engines(name: str) -> None:
    config, optim = SHAPES[0], OptimConfig(name=name)
    model = Transformer(config)
    spec = make(data="d", tokenizer="t", out="o", model=dump(config), optim=dump(optim))
    engine = Replicas(NextToken(model, spec), spec, torch.device("cpu"), 0, 1)
    engine.step(1.0)
    state = sum(v.nbytes for s in engine.optimizer.state.values() for v in s.values() if v.numel() > 1)
    need = memory(plan(config, optim=optim), "ddp", 1)
    assert (need["weights"], need["gradients"], need["optimizer"]) == (
        sum(p.nbytes for p in model.parameters()),
        engine.grad.nbytes,
        state,
    )
    assert matrices(config) == sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n)


@pytest.mark.parametrize(
    "gpu, gpus, shape, seq_len, batch, measured",
    [
        ("h100", 16, (2560, 32, 20, 6912), 2048, 983040, 24142),
        ("h100", 64, (2048, 24, 16, 5461), 2048, 2621440, 44402),
        ("a100", 8, (2560, 32, 20, 6912), 2048, 327680, 10811),
        ("a100", 8, (1536, 24, 12, 4096), 2048, 786432, 32434),
    ],
)
def test_published_runs_that_are_not_in_the_table_are_met(gpu, gpus, shape, seq_len, batch, measured) -> None:
    """llm-foundry's tokens a second and GPU (scripts/train/benchmarking/README.md) for MPT's shapes as SwiGLU of equal
    size."""
    dim, layers, heads, ffn = shape
    model = ModelConfig(
        vocab_size=50368, dim=dim, layers=layers, heads=heads, kv_heads=heads, ffn=ffn, max_seq_len=seq_len
    )
    found = estimate(
        plan(model, optim=OptimConfig(name="adamw"), seq_len=seq_len, batch_tokens=batch, gpus=gpus, device=GPUS[gpu]),
        "fsdp2",
    )
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
    rows = {(row["shape"], row["gpus"]): row for row in references(GPUS["h100"], OptimConfig())}
    assert all(row["fits"] for row in rows.values()) and rows["7B", 8]["engine"] not in ("ddp", "zero0")
    assert rows["7B", 8]["memory"]["total"] < GPUS["h100"].memory
    assert 60 < rows["7B", 64]["hours"] < 120  # 140B tokens at Llama-3's 10,000 tokens/s a GPU would take 60


@pytest.mark.parametrize("engine, world", [("ddp", 8), ("fsdp2", 8), ("deepspeed", 1)])
@pytest.mark.parametrize("compiled", [True, False])
def test_a_gpus_micro_batch_is_the_calculators(engine: str, world: int, compiled: bool) -> None:
    shape = ModelConfig(vocab_size=50304, dim=768, layers=12, heads=12, kv_heads=12, ffn=2048)
    how = {"seq_len": 1024, "batch_tokens": 1 << 19, "engine": engine, "zero_stage": 2}
    spec = make(data="d", tokenizer="t", out="o", model=dump(shape), **how)
    name = {"deepspeed": "zero2"}.get(engine, engine)
    most = -(-spec.batch_rows // world)
    for free in (12e9, 24e9, 80e9):
        rows = fitting_rows(spec, shape, world, free, 2, compiled)
        same = plan(shape, gpus=world, device=replace(GPUS["h100"], memory=free), compiled=compiled)
        assert rows == estimate(same, name)["micro_batch"] >= 1
        assert memory(same, name, rows)["total"] <= USABLE * free
        fewer_rounds = -(-most // (-(-most // rows) - 1)) if rows < most else rows + 1
        assert rows == most or memory(same, name, fewer_rounds)["total"] > USABLE * free
    assert fitting_rows(spec, shape, world, 1e6, 2, compiled) == 1


def test_a_gpu_is_known_by_the_longest_name_in_its_drivers() -> None:
    known = {"NVIDIA H100 80GB HBM3": "h100", "NVIDIA H100 NVL": "h100-nvl", "NVIDIA GeForce RTX 4090": "4090"}
    known |= {"NVIDIA L40S": "l40s", "NVIDIA GH200 480GB": "gh200", "NVIDIA A100-SXM4-80GB": "a100"}
    assert {name: known_gpu(name) for name in known} == {name: GPUS[short] for name, short in known.items()}
    assert known_gpu("Some other card") is None


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
        later = ["reward.sources=teaching", "sample.answers=4"]
        cli.main(["estimate", "tiny-rl", *later, "--gpu", "cpu", "--gpus", "2", "--utilisation", "0.5"])
    text = capsys.readouterr().out
    assert done.value.code == 0 and "2 x CPU rank" in text and "utilisation 50%: as given" in text and "7B" not in text
    after = [line.split()[0] for line in text.split("After pretraining")[1].splitlines()[2:]]
    assert after == ["sft", "reward", "sample", "dpo", "rl"]
    with pytest.raises(SystemExit) as done:
        cli.main(["estimate", "tiny", "pretrain.stpes=10"])
    assert done.value.code == 2 and "did you mean steps" in capsys.readouterr().err
