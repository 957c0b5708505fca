"""Seconds that a training run takes for a step.

Model FLOPs over peak FLOP/s times a utilisation from published or own runs (:data:`MFU`), plus the communication that
an engine does not hide. MFU counts causal attention once (:meth:`ModelConfig.flops_per_token`); published figures were
brought to that count from their tokens a second.
"""

from __future__ import annotations

import math
from itertools import pairwise

from model.running.estimate.memory import Plan, matrices, shapes
from model.specs.shape import ModelConfig

NODE = 8
"""GPUs in a node, joined by the fast link."""

MFU = {
    "hopper": [
        (26e6, 0.33, "26M shape on an H200 (docs/benchmarks.md)"),
        (124e6, 0.43, "124M shape on an H200 (docs/benchmarks.md)"),
        (350e6, 0.46, "350M shape on an H200 (docs/benchmarks.md)"),
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
