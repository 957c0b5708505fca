"""What the GPU stages of a plan cost: their time from earlier builds, or pretraining's by estimate, times a price."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from flows.dag import stages
from model.running.devices import GPUS, visible_gpus
from pipeline.config.tree import Config
from tasks.running.plan import Planned


@dataclass(frozen=True)
class Bill:
    """GPU hours by stage, what they cost, and the stages whose time is not known."""

    hours: dict[str, float]
    cost: float
    unknown: list[str]

    def lines(self) -> list[str]:
        """For a person: a line per stage, and the sum."""
        if not self.hours and not self.unknown:
            return ["No GPU stage would run: nothing to pay."]
        rows = [f"  {name:<14} {hours:>10.2f} GPU hours" for name, hours in self.hours.items()]
        rest = f", without {', '.join(self.unknown)}, whose time is not known yet" if self.unknown else ""
        least = "at least " if self.unknown else ""
        return [*rows, f"GPU time costs {least}{self.cost:,.2f} ({sum(self.hours.values()):,.2f} GPU hours){rest}."]


def bill(planned: Sequence[Planned], config: Config, price: float, gpu: str) -> Bill:
    """Price the stages that would run on a GPU: trainings hold all ranks, other workers one. ``price`` is of one GPU
    for one hour; ``gpu`` (a name of :data:`GPUS`) is what pretraining's time is estimated for when no build of it
    compares."""
    ranks = config.resources.nproc * config.resources.nnodes
    comparable = config.resources.device == "cuda" or visible_gpus() > 0  # else earlier builds tell a CPU's time
    working = {stage.name: stage for stage in stages() if stage.stage.workers}
    hours: dict[str, float] = {}
    unknown: list[str] = []
    for plan in planned:
        stage = working.get(plan.stage)
        if stage is None or stage.kind == "release" or plan.state == "hit":
            continue
        seconds = plan.seconds if comparable else None
        if seconds is None and plan.stage == "pretrain":
            seconds = estimated_seconds(config, gpu, ranks)
        if seconds is None:
            unknown.append(plan.stage)
        else:
            hours[plan.stage] = seconds / 3600 * (ranks if stage.kind == "model" else 1)
    return Bill(hours, sum(hours.values()) * price, unknown)


def estimated_seconds(config: Config, gpu: str, ranks: int) -> float | None:
    """Seconds of pretraining under the fastest engine that fits; None when its tokens are not known beforehand."""
    from model.running.estimate.engines import compare
    from model.running.estimate.memory import Plan

    section, on = config.pretrain, config.resources
    if not section.steps or section.init:
        return None
    model = replace(section.model, vocab_size=section.model.vocab_size or config.tokenizer.vocab_size)
    tokens = float(section.steps * section.batch_tokens)
    plan = Plan(model, section.optim, section.seq_len, section.batch_tokens, tokens, ranks, GPUS[gpu], on.micro_batch)
    fitting = [row["hours"] for row in compare(plan) if row["fits"]]
    return 3600 * min(fitting) if fitting else None
