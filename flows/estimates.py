"""What a config would need: pretraining under every engine, and each stage after it that trains or writes answers."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from typing import TypedDict

from model.running.devices import GPUS, Device
from model.running.estimate.engines import Description, compare, describe
from model.running.estimate.memory import Plan
from model.running.estimate.table import table
from model.specs.rl import RECIPES
from pipeline.config.tree import Config

SHARDED = ("fsdp2", "zero3")
"""Engines under which rl holds a whole copy of the model besides, which writes the answers."""
SLOTS = {True: 64, False: 512}
"""Answers that are written at once on a CPU and on a GPU."""
DECODING = 0.5
"""Share of the peak that products of many sequences' single tokens reach."""


class Later(TypedDict):
    """A stage after pretraining: bytes of a rank under ``engine``, seconds of an update and of the answers written for
    it, how many updates (0: as many as the data give) and the hours of all (0: not known)."""

    stage: str
    engine: str
    memory: float
    micro_batch: int
    step: float
    writing: float
    steps: int
    hours: float


class Estimated(Description):
    """What ``pipeline estimate --json`` prints."""

    later: list[Later]


def pretraining(config: Config, args: argparse.Namespace) -> Plan:
    """The plan of pretraining on the devices of the command line. Raises ValueError for one that is none."""
    section, on = config.pretrain, config.resources
    device = _this_cpu(args.gpus, on.dtype) if args.gpu == "cpu" else GPUS[args.gpu]
    return Plan(
        replace(section.model, vocab_size=section.model.vocab_size or config.tokenizer.vocab_size),
        section.optim,
        section.seq_len,
        section.batch_tokens,
        args.tokens or float(section.steps * section.batch_tokens),
        args.gpus,
        device,
        on.micro_batch,
        on.checkpointing,
        on.offload,
        on.compile == "on" if device.cpu else on.compile != "off",
        args.utilisation,
    )


def _this_cpu(ranks: int, dtype: str) -> Device:
    """This machine's CPU, shared evenly by ``ranks``; its speed is measured, by torch."""
    from model.running.machine import cpu_device

    return cpu_device(max(1, ranks), dtype)


def estimated(config: Config, plan: Plan) -> Estimated:
    """Pretraining by ``plan``, and what comes after it on the same devices."""
    return {**describe(plan), "later": later(config, plan)}


def later(config: Config, plan: Plan) -> list[Later]:
    """Every stage after pretraining that the config asks for, in the order of the DAG."""
    found: list[Later] = []
    if config.sft.sources:
        found.append(_tuned("sft", config, plan))
    if config.reward.sources:
        found.append(_tuned("reward", config, plan))
    if config.sample.answers:
        found.append(_sampled(config, plan))
    if config.dpo.sources or config.sample.answers:
        found.append(_tuned("dpo", config, plan))
    if config.rl.wanted:
        found.append(_tuned("rl", config, plan))
    return found


def _tuned(name: str, config: Config, plan: Plan) -> Later:
    """A stage that trains, as if all weights were trained."""
    section = getattr(config, name)
    own = replace(plan, optim=section.optim, seq_len=section.seq_len, batch_tokens=section.batch_tokens)
    best = min(compare(own), key=lambda row: (not row["fits"], row["step"]["total"]))
    copy = plan.model.parameters() * plan.device.width if name == "rl" and best["engine"] in SHARDED else 0
    forward, steps, writing = best["step"]["compute"] / 3, section.steps, 0.0
    seconds = best["step"]["total"]
    if name == "dpo" and section.loss not in ("simpo", "orpo"):
        seconds += forward  # the reference model's, once for each pair
    if name == "rl":
        rl = config.rl
        updates = (rl.num_iterations or RECIPES[rl.algorithm].passes) * rl.num_mini_batches
        made = 0 if rl.sources else len(rl.tasks) * rl.problems
        steps = steps or math.ceil(made * rl.epochs / rl.prompts) * updates
        writing = _writing(plan, rl.prompts * rl.num_generations, rl.max_completion_length) / updates
        seconds += forward * (bool(rl.beta) + (updates > 1 or rl.algorithm == "ppo")) * rl.num_mini_batches / updates
    return {
        "stage": name,
        "engine": best["engine"] if best["fits"] else "",
        "memory": best["memory"]["total"] + copy,
        "micro_batch": best["micro_batch"],
        "step": seconds,
        "writing": writing,
        "steps": steps,
        "hours": steps * (seconds + writing) / 3600,
    }


def _sampled(config: Config, plan: Plan) -> Later:
    """The stage sample, whose one step is all its answers (of the prompts of chats; how many disturbed ones there are
    depends on the data)."""
    own = config.sample
    seconds = _writing(plan, own.prompts * own.answers, own.max_new_tokens)
    held = plan.model.parameters() * 4.0
    hours = 0.0 if own.disturbed else seconds / 3600
    return {
        "stage": "sample",
        "engine": "ddp",
        "memory": held,
        "micro_batch": own.batch,
        "step": 0.0,
        "writing": seconds,
        "steps": 1,
        "hours": hours,
    }


def _writing(plan: Plan, sequences: int, tokens: int) -> float:
    """Seconds for ``sequences`` answers of ``tokens`` tokens, shared by the devices: a step reads all weights, and
    multiplies them with a token of each answer."""
    n, device = plan.model.parameters(active=True), plan.device
    each, slots = math.ceil(sequences / plan.gpus), SLOTS[device.cpu]
    step = max(n * device.width / device.bandwidth, 2 * n * min(each, slots) / (DECODING * device.flops))
    return math.ceil(each / slots) * tokens * step


def written(config: Config, plan: Plan) -> str:
    """The same for people."""
    rows = later(config, plan)
    if not rows:
        return table(plan)
    lines = [
        table(plan),
        "",
        "After pretraining, under the fastest engine that fits (?: as many steps as the data give; answers of full"
        " length):",
        f"{'':<15}{'GB':>8}{'micro':>7}{'ms/step':>10}{'answers ms':>12}{'steps':>9}{'hours':>9}",
    ]
    for row in rows:
        name = f"{row['stage']} {row['engine']}" if row["engine"] else f"{row['stage']}!"
        cells = f"{row['memory'] / 1e9:>8.2f}{row['micro_batch']:>7}{row['step'] * 1e3:>10,.0f}"
        known = f"{row['steps']:>9,}{row['hours']:>9,.2f}" if row["hours"] else f"{'?':>9}{'?':>9}"
        lines.append(f"{name:<15}{cells}{row['writing'] * 1e3:>12,.0f}{known}")
    return "\n".join(lines)
