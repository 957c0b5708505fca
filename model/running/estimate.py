"""What a training run will need, on paper: parameters, FLOPs, memory per GPU or process, seconds per step. No torch, no
GPU.

Memory follows what the engines of this trainer hold (fp32 masters, gradients and optimizer state; bf16 copies of the
matrices while they are used; activations), so its parts are sums of sizes and not fits: tests hold them against the
tensors that live in a real update. Speed is model FLOPs over peak FLOP/s times a utilisation from published or own runs
(:data:`MFU`), plus the communication that an engine does not hide. MFU counts causal attention once
(:meth:`ModelConfig.flops_per_token`); published figures were brought to that count from their tokens a second.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from model.specs.shape import ModelConfig
from model.specs.train import OptimConfig

Attention = Literal["flash", "masked", "plain"]
ENGINES = ("ddp", "fsdp2", "zero0", "zero1", "zero2", "zero3")
HEAD_ROWS = {2: 8192, 4: 512}
"""Rows of logits held at once by bytes of the compute type (``model.training.loss``: CHUNK on a GPU, WHOLE on a CPU)."""
QUERIES = 128
"""Rows of a block in plain attention (``model.network.transformer``)."""
AT_ONCE = 1 << 28
"""Elements of matrices that a sharded Muon makes whole together (``model.training.engine``)."""
NODE = 8
"""GPUs in a node, joined by the fast link."""


@dataclass(frozen=True)
class Device:
    """What one rank runs on: FLOP/s of matrix products, bytes of memory, bytes/s of memory, of the link in a node and
    of the network.

    ``width`` is the compute type's bytes, ``family`` the row of :data:`MFU`. GPUs by their data sheets (dense bf16, a
    whole GPU); this machine's CPU by measurement (:func:`model.running.machine.cpu_device`).
    """

    name: str
    family: str
    flops: float
    memory: float
    bandwidth: float
    link: float
    network: float
    width: int = 2

    @property
    def cpu(self) -> bool:
        """Whether ranks are processes on a CPU."""
        return self.family.startswith("cpu")


GPUS = {
    "h200": Device("H200 SXM", "hopper", 989e12, 141e9, 4.8e12, 450e9, 50e9),
    "h100": Device("H100 SXM", "hopper", 989e12, 80e9, 3.35e12, 450e9, 50e9),
    "a100": Device("A100 SXM 80 GB", "ampere", 312e12, 80e9, 2.0e12, 300e9, 25e9),
    "4090": Device("RTX 4090", "ampere", 165e12, 24e9, 1.0e12, 25e9, 12.5e9),
}


def this_cpu(ranks: int, dtype: str = "auto") -> Device:
    """This machine's CPU, shared evenly by ``ranks``; its speed is measured, by torch."""
    from model.running.machine import cpu_device

    return cpu_device(ranks, dtype)


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
    "cpu float32": [
        (3.5e6, 0.60, "3.5M shape on a core of a Zen 3, eager 0.51 to 0.56, compiled 0.73 (docs/benchmarks.md)"),
        (30e6, 0.74, "26M shape on a core of a Zen 3 (docs/benchmarks.md)"),
    ],
    "cpu bfloat16": [
        (3.5e6, 0.65, "3.5M shape on a core of a Zen 4, compiled"),
        (30e6, 0.69, "26M shape on a core of a Zen 4, compiled"),
    ],
}
"""(parameters, model FLOPs utilisation, where that comes from); between two sizes the logarithm of the size is
interpolated."""
REFERENCE = {
    "1B": (
        ModelConfig(vocab_size=50304, dim=2048, layers=20, heads=16, kv_heads=16, ffn=5632, max_seq_len=2048),
        2048,
        1 << 20,
        20e9,
    ),
    "7B": (
        ModelConfig(
            vocab_size=128256, dim=4096, layers=32, heads=32, kv_heads=8, ffn=12288, max_seq_len=4096, tied=False
        ),
        4096,
        1 << 22,
        140e9,
    ),
}
"""Well-known sizes to compare with: shape, seq_len, tokens a batch, tokens in all (about 20 a parameter)."""


@dataclass(frozen=True)
class Plan:
    """A run to be estimated on ``gpus`` devices (or CPU ranks). ``micro_batch`` 0 takes the largest that fits;
    ``tokens`` 0: how many is not known.

    ``utilisation`` 0 is the table's; another share is what one's own runs have shown.
    """

    model: ModelConfig
    optim: OptimConfig
    seq_len: int
    batch_tokens: int
    tokens: float
    gpus: int = 8
    device: Device = GPUS["h200"]
    micro_batch: int = 0
    checkpointing: bool = False
    offload: bool = False
    compiled: bool = True
    utilisation: float = 0.0

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise ValueError(f"gpus must be at least 1, not {self.gpus}")
        if self.model.vocab_size < 1:
            raise ValueError("vocab_size is 0: give the tokenizer's")
        if not 0 <= self.utilisation <= 1:
            raise ValueError(f"utilisation is a share between 0 and 1, not {self.utilisation}")

    def attention(self, compiled: bool) -> Attention:
        """The kind that the trainer picks (:func:`model.running.setup.choose`)."""
        if self.device.cpu:
            return "plain" if self.seq_len <= 512 else "masked"
        return "flash" if compiled else "masked"


def matrices(model: ModelConfig) -> int:
    """Parameters of the matrices inside blocks, which Muon updates: routers and norms left out."""
    return sum(rows * columns * count for rows, columns, count in shapes(model))


def shapes(model: ModelConfig) -> list[tuple[int, int, int]]:
    """(rows, columns, how many) of those matrices, equal ones together, in the order of Muon's update."""
    d, q, k = model.dim, model.heads * model.head_size, model.kv_heads * model.head_size
    width, copies = (model.expert_size, model.experts) if model.experts else (model.ffn, 1)
    found: dict[tuple[int, int], int] = {}
    for shape, count in (((q, d), 1), ((k, d), 2), ((d, q), 1), ((width, d), 2 * copies), ((d, width), copies)):
        found[shape] = found.get(shape, 0) + count * model.layers
    return [(*shape, count) for shape, count in sorted(found.items())]


def activation_bytes(
    model: ModelConfig, compiled: bool = True, width: int = 2, attention: Attention = "flash", seq_len: int = 0
) -> int:
    """Bytes that autograd keeps for a slot in one layer, computing in ``width`` bytes: equal to the saved tensors
    counted in a run.

    Residuals, norm outputs, queries, keys and values before and after their norm and rotation, the attention's output,
    and gate, up and their product. Without torch.compile norms also keep fp32 copies (on a GPU fewer), and SwiGLU one
    tensor more. ``masked`` keeps a bias of the documents' mask, ``plain`` the weights and each block of queries' own
    keys and values.
    """
    d, q, k = model.dim, model.heads * model.head_size, model.kv_heads * model.head_size
    feed = model.expert_size * model.experts_per_token if model.experts else model.ffn
    norms = q + k if model.qk_norm else 0
    statistics = 4 * (2 + (model.heads + model.kv_heads if model.qk_norm else 0))
    copies = 1.0
    if attention == "plain":
        keys = (seq_len + QUERIES) / 2 if seq_len > QUERIES else seq_len
        copies = keys / QUERIES if seq_len > QUERIES else 1.0
        statistics += int(model.heads * keys * (4 if width == 4 else 6))
    else:
        statistics += 4 * model.heads + (width * seq_len if attention == "masked" else 0)
    routed = width * 3 * model.experts_per_token * d + 4 * d + 12 * model.experts if model.experts else 0
    kept = 2 * q + int(2 * k * copies)
    if compiled:
        return width * (4 * d + norms + kept + 3 * feed) + statistics + routed
    return 4 * 4 * d + width * 2 * d + 8 * norms + width * (kept + 4 * feed) + statistics + routed


def memory(plan: Plan, engine: str, micro_batch: int) -> dict[str, float]:
    """Bytes of each rank by what they hold, and their ``total``.

    weights, gradients, optimizer, copies (what is gathered or cast), checkpoint (the copy that a CPU's memory holds
    while it is written), and the larger of two: activations with head, or update (what Muon makes).
    """
    model, world, width = plan.model, plan.gpus, plan.device.width
    n, inner = model.parameters(), matrices(model)
    muon = plan.optim.name == "muon"
    state = (4 * inner + 8 * (n - inner)) if muon else 8 * n
    layer, root = inner / model.layers, n - inner
    cast = 2 if width == 2 else 0
    part = {"weights": 4.0 * n, "gradients": 4.0 * n, "optimizer": float(state), "copies": float(cast * inner)}
    if (
        engine == "fsdp2"
    ):  # embeddings and head stay whole between passes, with their gradient; two blocks are gathered, one reduced
        part = {
            "weights": 4 * n / world,
            "gradients": 4 * n / world,
            "optimizer": state / world,
            "copies": layer * (4 * width + 4) + root * (width + 4),
        }
    elif engine in ("zero1", "zero2"):
        part |= {"weights": 4 * n + 4 * n / world, "optimizer": state / world, "gradients": 4 * n + 4 * n / world}
        if engine == "zero2":
            part["gradients"] = 4 * n / world + 4 * min(n, 5e8)  # and DeepSpeed's bucket
    elif engine == "zero3":
        part = {
            "weights": 8 * n / world,
            "gradients": 4 * n / world + 4 * min(n, 5e8),
            "optimizer": state / world,
            "copies": (4 + cast) * min(n, 1e9),
        }
    whole = engine in ("ddp", "zero0")
    part["checkpoint"] = (4 * n + state) / (1 if whole else world) if plan.device.cpu else 0.0
    if plan.offload and engine.startswith("zero") and engine != "zero0":
        part["optimizer"] = 0.0
    part["update"] = _update_bytes(plan, 1 if whole else world) if muon else 0.0
    part |= _pass_bytes(plan, engine, micro_batch)
    return {**part, "total": sum(part.values()) - min(part["activations"] + part["head"], part["update"])}


def _pass_bytes(plan: Plan, engine: str, micro_batch: int) -> dict[str, float]:
    """What layers keep of a micro-batch, and what comes on top: the head with its loss or, where that is more, the last
    layer's backward pass."""
    model, width = plan.model, plan.device.width
    slots, d, table = micro_batch * plan.seq_len, model.dim, 4 * model.vocab_size * model.dim
    compiled = plan.compiled and not model.experts and engine != "zero3"
    each = slots * activation_bytes(model, compiled, width, plan.attention(compiled), plan.seq_len)
    ends = (
        3 * width * d + (8 if width == 2 else 4) * d
    )  # the last norm's input and fp32 copies, its output, the gradient of that
    logits = (
        2 * width if compiled else (10 if width == 2 else 8)
    )  # logits and their gradient; eager softmax makes fp32 of them in between
    loss = (
        slots * ends
        + table
        + min(slots, HEAD_ROWS[width]) * model.vocab_size * logits
        + (table / 2 if width == 2 else 0)
    )
    feed = model.expert_size * model.experts_per_token if model.experts else model.ffn
    matrix = 4 * (matrices(model) / model.layers if compiled else d * model.ffn)  # gradients before they are added
    backward = (
        slots * width * (2 * feed + 2 * d) + matrix + (table if model.tied else 0) + (each if plan.checkpointing else 0)
    )
    return {
        "activations": model.layers * (slots * width * d if plan.checkpointing else each),
        "head": max(loss, backward),
    }


def _update_bytes(plan: Plan, shared: int) -> float:
    """What Muon makes beside its state: Nesterov's fp32 momentum, and orthogonal updates, of which one shape at a time
    is worked on."""
    width, inner = plan.device.width, matrices(plan.model)
    if shared > 1:  # shards are made whole, at most AT_ONCE elements at a time: gathered, cut, stacked, orthogonal
        return 8 * inner / shared + (8 + 2 * width) * min(inner, AT_ONCE)
    most = done = 0.0
    for rows, columns, count in shapes(plan.model):
        size, gram = rows * columns * count, min(rows, columns) ** 2 * count
        alone = 2 * size + 2 * gram
        work = alone if plan.gpus == 1 else max(3 * (size + gram) / plan.gpus, size / plan.gpus + 2 * size)
        most = max(most, width * done + 4 * size + width * work)
        done += size
    return 4 * inner + max(most, 2 * width * inner)


def largest_micro_batch(plan: Plan, engine: str) -> int:
    """Most rows at once that fit, at most a GPU's share of the batch; 0 when not even one does."""
    limit = plan.device.memory * USABLE
    best, most = 0, max(1, math.ceil(plan.batch_tokens / plan.seq_len / plan.gpus))
    if plan.device.cpu:
        most = min(most, max(1, 2048 // plan.seq_len))  # what stays in cache, as the trainer picks it
    low, high = 1, most
    while low <= high:
        middle = (low + high) // 2
        if memory(plan, engine, middle)["total"] <= limit:
            best, low = middle, middle + 1
        else:
            high = middle - 1
    return -(-most // -(-most // best)) if best else 0  # equal rounds


def utilisation(plan: Plan) -> tuple[float, str]:
    """Expected share of the peak and where the nearest figure comes from."""
    table, parameters = MFU[plan.device.family], plan.model.parameters(active=True)
    if plan.utilisation:
        return plan.utilisation, "as given"
    source = min(table, key=lambda row: abs(math.log(row[0] / parameters)))[2]
    if parameters <= table[0][0] or parameters >= table[-1][0]:
        return (table[0] if parameters <= table[0][0] else table[-1])[1], source
    for (a, low, _), (b, high, _) in pairwise(table):
        if a <= parameters <= b:
            return low + (high - low) * math.log(parameters / a) / math.log(b / a), source
    raise AssertionError("the table is sorted")


def step_seconds(plan: Plan, engine: str, micro_batch: int) -> dict[str, float]:
    """Seconds of an update by part: ``compute``, ``communication`` that is waited for, ``optimizer``, and their
    ``total``."""
    gpu, model, world = plan.device, plan.model, plan.gpus
    n, inner = model.parameters(), matrices(model)
    slots = plan.batch_tokens / world
    mfu, _ = utilisation(plan)
    compute = slots * model.flops_per_token(plan.seq_len) / (mfu * gpu.flops)
    if plan.checkpointing:
        compute *= 4 / 3  # one more forward pass
    speed, ring = (gpu.network if world > NODE else gpu.link), (world - 1) / world
    rounds = max(1, math.ceil(slots / plan.seq_len / max(1, micro_batch)))
    if engine in ("ddp", "zero0", "zero1", "zero2"):
        waited = (
            2 * 4 * n * ring / speed
        )  # the gradient's reduction and the new weights, or both halves of an all-reduce, in fp32
        if engine == "zero2":
            waited += (rounds - 1) * 4 * n * ring / speed  # reduced every micro-batch
    else:
        width = 2 if engine == "fsdp2" else 4
        moved = rounds * (2 * width + 4) * n * ring / speed  # gathered twice, reduced once
        waited = max(0.0, moved - 0.8 * compute)  # hidden behind the matrix products as far as they last
    muon = plan.optim.name == "muon"
    passes = 12 * n + (
        12 * inner if muon else 0
    )  # times that an fp32 value is read or written: norm, clipping, moments, weights
    optimizer = 4 * passes / gpu.bandwidth / (1 if engine in ("ddp", "zero0") else world)
    if muon:
        optimizer += (
            _newton_schulz(model) / world / ((0.9 if gpu.cpu else 0.4) * gpu.flops) + gpu.width * inner * ring / speed
        )
    return {"compute": compute, "communication": waited, "optimizer": optimizer, "total": compute + waited + optimizer}


def _newton_schulz(model: ModelConfig) -> float:
    """FLOPs of Muon's five rounds over all matrices: 2 r^2 c + 2 r^3 + 2 r^2 c each, with r the shorter side."""
    return sum(count * 5 * (4 * min(r, c) ** 2 * max(r, c) + 2 * min(r, c) ** 3) for r, c, count in shapes(model))


def estimate(plan: Plan, engine: str) -> dict[str, Any]:
    """Everything about ``plan`` under ``engine`` as plain numbers (bytes, seconds, tokens); ``fits`` false when no
    micro-batch does."""
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} is not known; known are {', '.join(ENGINES)}")
    micro = plan.micro_batch or largest_micro_batch(plan, engine)
    need = memory(plan, engine, max(1, micro))
    seconds = step_seconds(plan, engine, max(1, micro))
    mfu, source = utilisation(plan)
    flops = plan.model.flops_per_token(plan.seq_len)
    steps = math.ceil(plan.tokens / plan.batch_tokens)
    rate = plan.batch_tokens / seconds["total"]
    return {
        "engine": engine,
        "gpu": plan.device.name,
        "gpus": plan.gpus,
        "parameters": plan.model.parameters(),
        "flops_per_token": flops,
        "fits": need["total"] <= plan.device.memory * USABLE,
        "micro_batch": micro,
        "checkpointing": plan.checkpointing,
        "memory": need,
        "step": seconds,
        "tokens_per_second": rate,
        "mfu": rate * flops / plan.gpus / plan.device.flops,
        "mfu_table": mfu,
        "mfu_source": source,
        "steps": steps,
        "tokens": plan.tokens,
        "hours": steps * seconds["total"] / 3600,
        "total_flops": plan.tokens * flops,
    }


def compare(plan: Plan) -> list[dict[str, Any]]:
    """``plan`` under every engine; with activation checkpointing where only that fits or where it is faster (larger
    micro-batches)."""
    ways = (plan,) if plan.checkpointing or plan.micro_batch else (plan, replace(plan, checkpointing=True))
    found = [[estimate(way, engine) for way in ways] for engine in ENGINES]
    return [min(rows, key=lambda row: (not row["fits"], row["step"]["total"])) for rows in found]


def references(device: Device, optim: OptimConfig) -> list[dict[str, Any]]:
    """1B and 7B shapes on 8 and 64 GPUs, each under the fastest engine that fits."""
    rows = []
    for name, (model, seq_len, batch, tokens) in REFERENCE.items():
        for gpus in (8, 64):
            found = compare(Plan(model, optim, seq_len, batch, tokens, gpus, device))
            fitting = [row for row in found if row["fits"]] or found
            rows.append({"shape": name, **min(fitting, key=lambda row: row["step"]["total"])})
    return rows


def describe(plan: Plan) -> dict[str, Any]:
    """What ``pipeline estimate --json`` prints: the plan, every engine, and the reference sizes."""
    return {
        "plan": asdict(plan),
        "engines": compare(plan),
        "references": [] if plan.device.cpu else references(plan.device, plan.optim),
    }


def table(plan: Plan) -> str:
    """The same for people."""
    found = describe(plan)
    first, device = found["engines"][0], plan.device
    type_ = "bf16" if device.width == 2 else "fp32"
    speed = (
        f"{device.memory / 1e9:.0f} GB, "
        + (f"{device.flops / 1e9:.0f} GFLOP/s" if device.cpu else f"{device.flops / 1e12:.0f} TFLOP/s")
        + f" {type_} each"
    )
    lines = [
        (
            f"{first['parameters'] / 1e6:,.1f}M parameters, {first['flops_per_token'] / 1e6:,.0f} MFLOPs a token at"
            f" {plan.seq_len} slots, {plan.batch_tokens:,} tokens a step, {plan.gpus} x {device.name} ({speed})"
        ),
        f"utilisation {first['mfu_table']:.0%}: {first['mfu_source']}",
        "",
        _header(),
    ]
    lines += [_line(row["engine"], row) for row in found["engines"]]
    if found["references"]:
        lines += ["", "Reference sizes, under the fastest engine that fits:", _header()]
        lines += [_line(f"{row['shape']} x{row['gpus']} {row['engine']}", row) for row in found["references"]]
    lines += [
        "",
        (
            "* with activation checkpointing   ! does not fit   GB per"
            f" {'rank, without the libraries' if device.cpu else 'GPU'}; MFU after communication and optimizer"
        ),
    ]
    return "\n".join(lines)


def _header() -> str:
    return f"{'':<15}{'GB':>8}{'weights':>9}{'grads':>8}{'optim':>8}{'activ.':>8}{'micro':>7}{'ms/step':>9}{'tokens/s':>12}{'MFU':>6}{'steps':>9}{'hours':>9}"


def _line(name: str, row: dict[str, Any]) -> str:
    need, mark = row["memory"], ("*" if row["checkpointing"] else "") + ("" if row["fits"] else "!")
    held = (
        need["total"],
        need["weights"] + need["copies"],
        need["gradients"],
        need["optimizer"],
        need["activations"] + need["head"],
    )
    sizes = "".join(f"{value / 1e9:>{width}.2f}" for value, width in zip(held, (8, 9, 8, 8, 8), strict=True))
    total = (f"{row['steps']:>9,}", f"{row['hours']:>9,.1f}") if row["tokens"] else (f"{'?':>9}", f"{'?':>9}")
    return (
        f"{name + mark:<15}{sizes}{row['micro_batch']:>7}{row['step']['total'] * 1e3:>9,.0f}{row['tokens_per_second']:>12,.0f}{row['mfu']:>6.0%}"
        f"{total[0]}{total[1]}"
    )
