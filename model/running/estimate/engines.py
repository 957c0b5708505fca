"""A planned run under one engine, under every engine, and beside well-known sizes."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any, TypedDict

from model.running.devices import Device
from model.running.estimate.memory import ENGINES, USABLE, Plan, largest_micro_batch, memory
from model.running.estimate.speed import step_seconds, utilisation
from model.specs.shape import ModelConfig
from model.specs.train import OptimConfig

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


class Estimate(TypedDict):
    """What a run needs under one engine: bytes, seconds, tokens; ``fits`` false when no micro-batch does."""

    engine: str
    gpu: str
    gpus: int
    parameters: int
    flops_per_token: float
    fits: bool
    micro_batch: int
    checkpointing: bool
    memory: dict[str, float]
    step: dict[str, float]
    tokens_per_second: float
    mfu: float
    mfu_table: float
    mfu_source: str
    steps: int
    tokens: float
    hours: float
    total_flops: float


class Reference(Estimate):
    """The same for a well-known size, by the name of its ``shape``."""

    shape: str


class Description(TypedDict):
    """What ``pipeline estimate --json`` prints."""

    plan: dict[str, Any]
    engines: list[Estimate]
    references: list[Reference]


def estimate(plan: Plan, engine: str) -> Estimate:
    """Everything about ``plan`` under ``engine``. Raises ValueError for an engine that is none of :data:`ENGINES`."""
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


def compare(plan: Plan) -> list[Estimate]:
    """``plan`` under every engine; with activation checkpointing where only that fits or where it is faster (larger
    micro-batches)."""
    ways = (plan,) if plan.checkpointing or plan.micro_batch else (plan, replace(plan, checkpointing=True))
    estimates = [[estimate(way, engine) for way in ways] for engine in ENGINES]
    return [min(rows, key=lambda row: (not row["fits"], row["step"]["total"])) for rows in estimates]


def references(device: Device, optim: OptimConfig) -> list[Reference]:
    """1B and 7B shapes on 8 and 64 GPUs, each under the fastest engine that fits."""
    sizes: list[Reference] = []
    for name, (model, seq_len, batch, tokens) in REFERENCE.items():
        for gpus in (8, 64):
            rows = compare(Plan(model, optim, seq_len, batch, tokens, gpus, device))
            fitting = [row for row in rows if row["fits"]] or rows
            sizes.append({"shape": name, **min(fitting, key=lambda row: row["step"]["total"])})
    return sizes


def describe(plan: Plan) -> Description:
    """What ``pipeline estimate --json`` prints: the plan, every engine, and the reference sizes."""
    return {
        "plan": asdict(plan),
        "engines": compare(plan),
        "references": [] if plan.device.cpu else references(plan.device, plan.optim),
    }
