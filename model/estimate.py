"""What a training run will need, on paper: parameters, FLOPs, memory per GPU, seconds per step. No torch, no GPU.

Memory follows what the engines of this trainer hold (fp32 masters, gradients and optimizer state; bf16 copies of the
matrices while they are used; activations), so its parts are sums of sizes and not fits. Speed is model FLOPs over peak
FLOP/s times a utilisation from published runs (:data:`MFU`), plus the communication that an engine does not hide. MFU
counts causal attention once (:meth:`ModelConfig.flops_per_token`); published figures were brought to that count from
their tokens a second.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from model.config import ModelConfig, OptimConfig

ENGINES = ("ddp", "fsdp2", "zero0", "zero1", "zero2", "zero3")
HEAD_ROWS = 8192
"""Rows of logits held at once on a GPU (``model.loss.CHUNK``)."""
NODE = 8
"""GPUs in a node, joined by the fast link."""


@dataclass(frozen=True)
class Gpu:
    """Data-sheet numbers: dense bf16 FLOP/s, bytes of memory, bytes/s of memory, of the link in a node and of the network, a GPU."""

    name: str
    flops: float
    memory: float
    bandwidth: float
    link: float
    network: float


GPUS = {
    "h200": Gpu("H200 SXM", 989e12, 141e9, 4.8e12, 450e9, 50e9),
    "h100": Gpu("H100 SXM", 989e12, 80e9, 3.35e12, 450e9, 50e9),
    "a100": Gpu("A100 SXM 80 GB", 312e12, 80e9, 2.0e12, 300e9, 25e9),
    "4090": Gpu("RTX 4090", 165e12, 24e9, 1.0e12, 25e9, 12.5e9),
}
USABLE = 0.92
"""Share of the memory that a run may plan with; the rest is CUDA context, fragmentation and NCCL."""

MFU = {
    "hopper": [
        (26e6, 0.28, "arithmetic intensity of a 512-wide model, not measured"),
        (124e6, 0.41, "nanochat d12 on 8 H100 (dev/LOG.md)"),
        (350e6, 0.46, "nanochat d18 on 8 H100 (dev/LOG.md)"),
        (1.3e9, 0.39, "llm-foundry 1B on 8 H100, 45,455 tokens/s a GPU (scripts/train/benchmarking)"),
        (6.7e9, 0.447, "llm-foundry 7B on 8 H100, 10,643 tokens/s a GPU (scripts/train/benchmarking)"),
    ],
    "ampere": [
        (26e6, 0.30, "arithmetic intensity of a 512-wide model, not measured"),
        (125e6, 0.396, "llm-foundry 125M on 8 A100, 142,830 tokens/s a GPU"),
        (356e6, 0.459, "llm-foundry 350M on 8 A100, 58,782 tokens/s a GPU"),
        (1.3e9, 0.559, "llm-foundry 1B on 8 A100, 20,513 tokens/s a GPU"),
        (6.7e9, 0.618, "llm-foundry 7B on 8 A100, 4,641 tokens/s a GPU"),
    ],
}
"""(parameters, model FLOPs utilisation, where that comes from); between two sizes the logarithm of the size is interpolated."""
FAMILY = {"h200": "hopper", "h100": "hopper", "a100": "ampere", "4090": "ampere"}

REFERENCE = {
    "1B": (ModelConfig(vocab_size=50304, dim=2048, layers=20, heads=16, kv_heads=16, ffn=5632, max_seq_len=2048), 2048, 1 << 20, 20e9),
    "7B": (ModelConfig(vocab_size=128256, dim=4096, layers=32, heads=32, kv_heads=8, ffn=12288, max_seq_len=4096, tied=False), 4096, 1 << 22, 140e9),
}
"""Well-known sizes to compare with: shape, seq_len, tokens a batch, tokens in all (about 20 a parameter)."""


@dataclass(frozen=True)
class Plan:
    """A run to be estimated. ``micro_batch`` 0 takes the largest that fits; ``tokens`` 0: how many is not known."""

    model: ModelConfig
    optim: OptimConfig
    seq_len: int
    batch_tokens: int
    tokens: float
    gpus: int = 8
    gpu: str = "h200"
    micro_batch: int = 0
    checkpointing: bool = False
    offload: bool = False

    def __post_init__(self) -> None:
        if self.gpu not in GPUS:
            raise ValueError(f"gpu {self.gpu!r} is not known; known are {', '.join(GPUS)}")
        if self.gpus < 1:
            raise ValueError(f"gpus must be at least 1, not {self.gpus}")
        if self.model.vocab_size < 1:
            raise ValueError("vocab_size is 0: give the tokenizer's")


def matrices(model: ModelConfig) -> int:
    """Parameters of the matrices inside blocks, which Muon updates: routers and norms left out."""
    head = model.head_size
    attention = model.dim * head * (2 * model.heads + 2 * model.kv_heads)
    feed = 3 * model.dim * (model.expert_size * model.experts if model.experts else model.ffn)
    return model.layers * (attention + feed)


def activation_bytes(model: ModelConfig, compiled: bool = True) -> int:
    """Bytes that autograd keeps for a slot in one layer, in bf16 (equal to the saved tensors counted in a run, to 5 %).

    Residuals, norm outputs, queries, keys and values before and after their norm and rotation, the attention's output, and
    gate, up and their product. Without torch.compile norms also keep fp32 copies, and SwiGLU one tensor more.
    """
    d, q, k = model.dim, model.heads * model.head_size, model.kv_heads * model.head_size
    width = model.expert_size * model.experts_per_token if model.experts else model.ffn
    statistics = 4 * (2 + model.heads + (model.heads + model.kv_heads if model.qk_norm else 0))
    if compiled:
        return 2 * (4 * d + (3 if model.qk_norm else 2) * (q + k) + 3 * width) + statistics
    norms = 8 * (q + k) if model.qk_norm else 0
    return 4 * 4 * d + 2 * 2 * d + 2 * q + norms + 2 * (q + 2 * k) + 2 * 4 * width + statistics


def memory(plan: Plan, engine: str, micro_batch: int) -> dict[str, float]:
    """Bytes on each GPU by what they hold: weights, gradients, optimizer, copies, activations, head, and their ``total``."""
    model, world = plan.model, plan.gpus
    n, inner = model.parameters(), matrices(model)
    muon = plan.optim.name == "muon"
    state = (4 * inner + 8 * (n - inner)) if muon else 8 * n
    update = 6 * inner if muon else 0  # Nesterov's fp32 momentum and the orthogonal bf16 update, while the optimizer runs
    layer = inner / model.layers
    slots = micro_batch * plan.seq_len
    compiled = not model.experts and engine != "zero3"
    each = activation_bytes(model, compiled)
    activations = slots * ((model.layers * 2 * model.dim + each) if plan.checkpointing else model.layers * each) + slots * 8 * model.dim
    head = min(slots, HEAD_ROWS) * model.vocab_size * 10 + 4 * model.vocab_size * model.dim
    part = {"weights": 4.0 * n, "gradients": 4.0 * n, "optimizer": float(state), "copies": 2.0 * inner}
    if engine == "fsdp2":
        root = 4 * (n - inner)  # embeddings and head stay whole between passes, with their gradient
        part = {"weights": 4 * n / world, "gradients": 4 * n / world, "optimizer": state / world, "copies": 2 * 2 * layer + 4 * layer + root * 1.5}
    elif engine in ("zero1", "zero2"):
        part |= {"weights": 4 * n + 4 * n / world, "optimizer": state / world}
        if engine == "zero2":
            part["gradients"] = 4 * n / world + 4 * min(n, 5e8)  # and DeepSpeed's bucket
    elif engine == "zero3":
        part = {"weights": 8 * n / world, "gradients": 4 * n / world + 4 * min(n, 5e8), "optimizer": state / world, "copies": 6 * min(n, 1e9)}
    if plan.offload and engine.startswith("zero") and engine != "zero0":
        part["optimizer"] = 0.0
    spread = 1 if engine in ("ddp", "zero0") else world
    peak = max(activations + head, update / spread)
    part |= {"activations": activations, "head": head}
    return {**part, "total": part["weights"] + part["gradients"] + part["optimizer"] + part["copies"] + peak}


def largest_micro_batch(plan: Plan, engine: str) -> int:
    """Most rows at once that fit, at most a GPU's share of the batch; 0 when not even one does."""
    limit = GPUS[plan.gpu].memory * USABLE
    best, most = 0, max(1, math.ceil(plan.batch_tokens / plan.seq_len / plan.gpus))
    low, high = 1, most
    while low <= high:
        middle = (low + high) // 2
        if memory(plan, engine, middle)["total"] <= limit:
            best, low = middle, middle + 1
        else:
            high = middle - 1
    return -(-most // -(-most // best)) if best else 0  # equal rounds


def utilisation(parameters: float, gpu: str) -> tuple[float, str]:
    """Expected share of the peak and where the nearest published figure comes from."""
    table = MFU[FAMILY[gpu]]
    source = min(table, key=lambda row: abs(math.log(row[0] / parameters)))[2]
    if parameters <= table[0][0] or parameters >= table[-1][0]:
        return (table[0] if parameters <= table[0][0] else table[-1])[1], source
    for (a, low, _), (b, high, _) in pairwise(table):
        if a <= parameters <= b:
            return low + (high - low) * math.log(parameters / a) / math.log(b / a), source
    raise AssertionError("the table is sorted")


def step_seconds(plan: Plan, engine: str, micro_batch: int) -> dict[str, float]:
    """Seconds of an update by part: ``compute``, ``communication`` that is waited for, ``optimizer``, and their ``total``."""
    gpu, model, world = GPUS[plan.gpu], plan.model, plan.gpus
    n, inner = model.parameters(), matrices(model)
    slots = plan.batch_tokens / world
    mfu, _ = utilisation(model.parameters(active=True), plan.gpu)
    compute = slots * model.flops_per_token(plan.seq_len) / (mfu * gpu.flops)
    if plan.checkpointing:
        compute *= 4 / 3  # one more forward pass
    speed, ring = (gpu.network if world > NODE else gpu.link), (world - 1) / world
    rounds = max(1, math.ceil(slots / plan.seq_len / max(1, micro_batch)))
    if engine in ("ddp", "zero0", "zero1", "zero2"):
        waited = 2 * 4 * n * ring / speed  # the gradient's reduction and the new weights, or both halves of an all-reduce, in fp32
        if engine == "zero2":
            waited += (rounds - 1) * 4 * n * ring / speed  # reduced every micro-batch
    else:
        width = 2 if engine == "fsdp2" else 4
        moved = rounds * (2 * width + 4) * n * ring / speed  # gathered twice, reduced once
        waited = max(0.0, moved - 0.8 * compute)  # hidden behind the matrix products as far as they last
    optimizer = 5 * 4 * n / gpu.bandwidth / (1 if engine in ("ddp", "zero0") else world)
    if plan.optim.name == "muon":
        optimizer += _newton_schulz(model) / world / (0.4 * gpu.flops) + 2 * inner * ring / speed
    return {"compute": compute, "communication": waited, "optimizer": optimizer, "total": compute + waited + optimizer}


def _newton_schulz(model: ModelConfig) -> float:
    """FLOPs of Muon's five rounds over all matrices: 2 r^2 c + 2 r^3 + 2 r^2 c each, with r the shorter side."""
    d, q, k = model.dim, model.heads * model.head_size, model.kv_heads * model.head_size
    width, copies = (model.expert_size, model.experts) if model.experts else (model.ffn, 1)
    shapes = [(d, q), (q, d), (d, k), (d, k)] + [(d, width)] * 3 * copies
    return model.layers * sum(5 * (4 * min(s) ** 2 * max(s) + 2 * min(s) ** 3) for s in shapes)


def estimate(plan: Plan, engine: str) -> dict[str, Any]:
    """Everything about ``plan`` under ``engine`` as plain numbers (bytes, seconds, tokens); ``fits`` false when no micro-batch does."""
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} is not known; known are {', '.join(ENGINES)}")
    micro = plan.micro_batch or largest_micro_batch(plan, engine)
    need = memory(plan, engine, max(1, micro))
    seconds = step_seconds(plan, engine, max(1, micro))
    mfu, source = utilisation(plan.model.parameters(active=True), plan.gpu)
    flops = plan.model.flops_per_token(plan.seq_len)
    steps = math.ceil(plan.tokens / plan.batch_tokens)
    rate = plan.batch_tokens / seconds["total"]
    return {
        "engine": engine, "gpu": plan.gpu, "gpus": plan.gpus, "parameters": plan.model.parameters(), "flops_per_token": flops,
        "fits": need["total"] <= GPUS[plan.gpu].memory * USABLE, "micro_batch": micro, "checkpointing": plan.checkpointing, "memory": need,
        "step": seconds, "tokens_per_second": rate, "mfu": rate * flops / plan.gpus / GPUS[plan.gpu].flops, "mfu_table": mfu, "mfu_source": source,
        "steps": steps, "tokens": plan.tokens, "hours": steps * seconds["total"] / 3600, "total_flops": plan.tokens * flops,
    }


def compare(plan: Plan) -> list[dict[str, Any]]:
    """``plan`` under every engine; with activation checkpointing where only that fits or where it is faster (larger micro-batches)."""
    ways = (plan,) if plan.checkpointing or plan.micro_batch else (plan, replace(plan, checkpointing=True))
    found = [[estimate(way, engine) for way in ways] for engine in ENGINES]
    return [min(rows, key=lambda row: (not row["fits"], row["step"]["total"])) for rows in found]


def references(gpu: str, optim: OptimConfig) -> list[dict[str, Any]]:
    """1B and 7B shapes on 8 and 64 GPUs, each under the fastest engine that fits."""
    rows = []
    for name, (model, seq_len, batch, tokens) in REFERENCE.items():
        for gpus in (8, 64):
            found = compare(Plan(model, optim, seq_len, batch, tokens, gpus, gpu))
            fitting = [row for row in found if row["fits"]] or found
            rows.append({"shape": name, **min(fitting, key=lambda row: row["step"]["total"])})
    return rows


def describe(plan: Plan) -> dict[str, Any]:
    """What ``pipeline estimate --json`` prints: the plan, every engine, and the reference sizes."""
    return {"plan": asdict(plan), "engines": compare(plan), "references": references(plan.gpu, plan.optim)}


def table(plan: Plan) -> str:
    """The same for people."""
    found = describe(plan)
    first, gpu = found["engines"][0], GPUS[plan.gpu]
    lines = [f"{first['parameters'] / 1e6:,.1f}M parameters, {first['flops_per_token'] / 1e6:,.0f} MFLOPs a token at {plan.seq_len} slots, "
             f"{plan.batch_tokens:,} tokens a step, {plan.gpus} x {gpu.name} ({gpu.memory / 1e9:.0f} GB, {gpu.flops / 1e12:.0f} TFLOP/s bf16)",
             f"utilisation {first['mfu_table']:.0%}: {first['mfu_source']}", "", _header()]
    lines += [_line(row["engine"], row) for row in found["engines"]]
    lines += ["", "Reference sizes, under the fastest engine that fits:", _header()]
    lines += [_line(f"{row['shape']} x{row['gpus']} {row['engine']}", row) for row in found["references"]]
    lines += ["", "* with activation checkpointing   ! does not fit   GB per GPU; MFU after communication and optimizer"]
    return "\n".join(lines)


def _header() -> str:
    return (f"{'':<15}{'GB':>7}{'weights':>9}{'grads':>7}{'optim':>7}{'activ.':>8}{'micro':>7}{'ms/step':>9}{'tokens/s':>12}{'MFU':>6}{'steps':>9}{'hours':>9}")


def _line(name: str, row: dict[str, Any]) -> str:
    need, mark = row["memory"], ("*" if row["checkpointing"] else "") + ("" if row["fits"] else "!")
    held = (need["total"], need["weights"] + need["copies"], need["gradients"], need["optimizer"], need["activations"] + need["head"])
    widths = (7, 9, 7, 7, 8)
    sizes = "".join(f"{value / 1e9:>{width}.1f}" for value, width in zip(held, widths, strict=True))
    total = (f"{row['steps']:>9,}", f"{row['hours']:>9,.1f}") if row["tokens"] else (f"{'?':>9}", f"{'?':>9}")
    return (f"{name + mark:<15}{sizes}{row['micro_batch']:>7}{row['step']['total'] * 1e3:>9,.0f}{row['tokens_per_second']:>12,.0f}{row['mfu']:>6.0%}"
            f"{total[0]}{total[1]}")
