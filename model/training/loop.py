"""The one training loop: pretraining, SFT and DPO on any engine, exact in where it goes on after it was stopped.

Position in the data is one integer and the step decides the rate, so a resumed run repeats nothing and skips nothing:
on a CPU its weights are bit-identical to those of a run that was never stopped. Nothing in a step waits for a GPU;
numbers are read when they are logged.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.objectives.base import Batch
from model.running.checkpoint import Checkpoints
from model.running.meter import Meter
from model.running.setup import Choices, Ranks
from model.specs.train import TrainSpec
from model.tokens.rows import Order, Packed, Windows, share
from model.training import loss
from model.training.engine import Engine
from model.training.spikes import SpikeGuard

SKIP_LIMIT = 10
"""Updates in a row with a loss or gradient that is not finite, after which training fails."""


class Diverged(RuntimeError):
    """Loss or gradients stayed infinite or NaN."""


@dataclass
class Data:
    """Rows to train on and to validate on."""

    train: Windows | Packed
    val: Windows | Packed


class Loop:
    """Trains until the plan's steps are done; see :meth:`run`."""

    def __init__(
        self,
        spec: TrainSpec,
        engine: Engine,
        data: Data,
        ranks: Ranks,
        choices: Choices,
        checkpoints: Checkpoints,
        meter: Meter,
    ) -> None:
        self.spec, self.objective, self.engine, self.data = spec, engine.objective, engine, data
        self.ranks, self.choices, self.checkpoints, self.meter = ranks, choices, checkpoints, meter
        self.order = Order(data.train.rows, spec.seed)
        self.plan = Plan(spec, data.train.rows)
        self.step = self.position = self.tokens = self.skipped = 0
        self.saved_step = -1
        self.best: float | None = None
        self.guard = SpikeGuard(spec.optim.spike, engine.device)
        self._saved = time.monotonic()

    def run(self) -> dict[str, Any]:
        """Go from the newest checkpoint to the last step; the final metrics. Raises Diverged, or SystemExit(143) after
        SIGTERM."""
        # from the newest checkpoint, or a first validation
        self._resume()
        report: dict[str, Any] = {}
        if self.step == 0 and self.spec.VALIDATES_FIRST and self.data.val.rows:
            self.meter.log({"step": 0, "total_steps": self.plan.steps, **self.validate()})
        self.meter.start()
        while self.step < self.plan.steps:
            self._update()
            # validation; the best weights are kept apart
            done = self.step == self.plan.steps
            if not done and self.spec.eval_every and self.step % self.spec.eval_every == 0 and self.data.val.rows:
                means = self.validate()
                self.meter.log({"step": self.step, "total_steps": self.plan.steps, **means})
                if self.best is None or means["val_loss"] < self.best:
                    self.best = means["val_loss"]
                    self.save(self.best)
            self._housekeeping(done)
        if self.data.val.rows:
            report = self.validate()
            self.meter.log({"step": self.step, "total_steps": self.plan.steps, **report})
        return {
            "steps": self.step,
            "tokens": self.tokens,
            "skipped_steps": self.skipped,
            **self.meter.summary(),
            **report,
        }

    def _update(self) -> None:
        """One optimizer step over one global batch."""
        rows, norm_by = self.draw()
        if norm_by:
            # forward and backward
            sums = self._gradient(rows, norm_by)
            limit = self.guard.limit()
            # optimizer step
            gradient = self.engine.step(self.spec.optim.factor(self.step, self.plan.steps), limit)
            self.guard.saw(gradient, limit)
        else:  # a batch of conversations that were all cut before the first answer
            sums, gradient = torch.zeros(len(self.objective.names), device=self.engine.device), torch.zeros(())
        # position, counts, log
        filled = int(self.data.train.filled[rows].sum())
        self.tokens += filled
        self.step += 1
        log = self.step % self.choices.log_every == 0 or self.step in (1, self.plan.steps)
        self.meter.step(filled, len(rows) * self.spec.seq_len, wait=log)
        self._check(gradient)
        if log:
            self._log(sums, gradient)

    def draw(self) -> tuple[NDArray, float]:
        """Numbers of the coming global batch's rows and the units that they are divided by; moves the position on."""
        rows = self.order(self.position, self.position + self.plan.rows(self.step))
        self.position += len(rows)
        return rows, float(self.data.train.units[rows].sum())

    def _gradient(self, rows: NDArray, norm_by: float) -> torch.Tensor:
        """Accumulate the gradient of a global batch's share; halves the micro-batch when memory runs out. The
        objective's sums."""
        while True:
            # the same micro-batches, whatever ran out of memory before
            parts = share(rows, self.ranks.rank, self.ranks.world, self.choices.micro_batch)
            try:
                sums = torch.zeros(len(self.objective.names), device=self.engine.device)
                # gradients add up over micro-batches; ranks meet at the last
                for i, part in enumerate(parts):
                    value, part_sums = self.engine(self.batch("train", part, norm_by))
                    self.engine.backward(value, last=i == len(parts) - 1)
                    sums += part_sums
                return sums
            except (torch.OutOfMemoryError, RuntimeError) as error:
                self._halve(error)

    def _halve(self, error: RuntimeError) -> None:
        """Go on with half the micro-batch after running out of memory; anything else, or a batch of one row, is
        raised."""
        # torch says it in three ways
        memory = (
            isinstance(error, torch.OutOfMemoryError)
            or "can't allocate memory" in str(error)
            or "not enough memory" in str(error)
        )
        if not memory:
            raise error
        size = self.choices.micro_batch
        if size == 1:
            raise RuntimeError(
                f"out of memory with one sequence of {self.spec.seq_len} slots at a time; lower seq_len, set"
                " resources.checkpointing=true, or share the model over more ranks"
            ) from error
        self.choices.micro_batch = size // 2
        self.choices.save(self.ranks, own=not self.engine.independent)
        if (
            not self.engine.independent
        ):  # the other ranks are inside a collective; the next attempt starts with the smaller size
            raise RuntimeError(
                f"out of memory with {size} sequences at a time; run again to resume with {size // 2}"
            ) from error
        # give back what the failed attempt holds, and begin the batch anew
        self.engine.clear()
        if self.engine.device.type == "cuda":
            torch.cuda.empty_cache()
        print(
            f"out of memory with {size} sequences at a time: going on with {size // 2}, global batch unchanged",
            flush=True,
        )

    def batch(self, split: str, numbers: NDArray, norm_by: float) -> Batch:
        """The rows ``numbers`` as a micro-batch on the device."""
        began = time.perf_counter()
        data, device = getattr(self.data, split), self.engine.device
        chunk = loss.CHUNK.get(device.type, 4096)
        made = self.objective.batch(data.read(numbers), norm_by, chunk, split).to(device)
        self.meter.data(time.perf_counter() - began)
        return made

    def _check(self, gradient: torch.Tensor) -> None:
        """Count and tell updates that were skipped; on a GPU only when numbers are read anyway."""
        if self.engine.device.type != "cpu" and self.step % self.choices.log_every and self.step != self.plan.steps:
            return
        infinite, spikes, in_a_row = self.guard.counts.tolist()
        if infinite + spikes > self.skipped:
            norm = f"gradient norm {float(gradient):.3g} far above the recent ones (optim.spike)"
            why = f"gradient is not finite ({in_a_row} in a row)" if in_a_row else norm
            self.ranks.say(f"step {self.step}: {why}, update skipped; {infinite + spikes} skipped so far")
        self.skipped = infinite + spikes
        if in_a_row >= SKIP_LIMIT:
            raise Diverged(
                f"the gradient was not finite {in_a_row} updates in a row (step {self.step}); lower optim.lr (now"
                f" {self.spec.optim.lr}), lengthen optim.warmup, or check the initial weights"
            )

    def _log(self, sums: torch.Tensor, gradient: torch.Tensor) -> None:
        values = self._means("", self.ranks.total(sums))
        rate = self.spec.optim.lr * self.spec.optim.factor(self.step - 1, self.plan.steps)
        shown = {"lr": rate, "grad_norm": float(gradient), "skipped_steps": self.skipped}
        shown |= {**values, **self.noted(values)}
        self.meter.log({"step": self.step, "total_steps": self.plan.steps, **shown}, speed=True)

    def noted(self, values: dict[str, float]) -> dict[str, float]:
        """What else is logged of an update beside the objective's means ``values``."""
        return {}

    def _means(self, prefix: str, sums: torch.Tensor) -> dict[str, float]:
        values, count = sums.tolist()[:-1], max(float(sums[-1]), 1.0)
        return {prefix + name: value / count for name, value in zip(self.objective.names[:-1], values, strict=True)}

    def _housekeeping(self, done: bool) -> None:
        """Stop when told to, checkpoint when due; all ranks decide alike."""
        # seconds when no number of steps is given: clocks differ, so ranks must agree
        due = done or self.due()
        stop, due = self.ranks.agree(self.ranks.stopping(), due, self.step, self.choices.log_every)
        if stop or due or done:
            self.save()
        self.meter.pause()
        if stop:
            self.checkpoints.wait()
            self.ranks.say(f"stopped at step {self.step}, checkpoint written; run again to resume")
            raise SystemExit(143)

    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        every = self.spec.how.checkpoint_every
        return self.step % every == 0 if every else time.monotonic() - self._saved > 60

    def save(self, val_loss: float | None = None) -> None:
        """Write a checkpoint of this step, unless there is one (all ranks take part); ``val_loss`` says that its
        weights were validated."""
        if self.saved_step == self.step:
            return
        self.saved_step = self.step
        self.checkpoints.save(
            self.engine.written(),
            {
                "step": self.step,
                "position": self.position,
                "tokens": self.tokens,
                "applied": self.engine.applied,
                "best_loss": self.best,
                "val_loss": val_loss,
                "guard": self.guard.state(),
                **self.state(),
            },
        )
        self._saved = time.monotonic()

    def state(self) -> dict[str, Any]:
        """What else a checkpoint keeps, as JSON values."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take what a checkpoint kept."""

    def forget(self, step: int) -> None:
        """Drop what an earlier attempt told of steps after ``step``."""
        self.meter.rewind(step)

    def _resume(self) -> None:
        state = self.checkpoints.load(self.engine.pieces())
        if state is None:
            self.forget(-1)  # it ended before its first checkpoint
            return
        # weights and optimizer are in place already; now the counters
        self.engine.loaded(state["applied"])
        self.step, self.position, self.tokens = state["step"], state["position"], state["tokens"]
        self.best = state["best_loss"]
        self.guard.load(state["guard"])
        self.skipped = int(self.guard.counts[:2].sum())
        self.restore(state)
        self.forget(self.step)
        self.ranks.say(f"resumed at step {self.step} of {self.plan.steps}")

    def validate(self) -> dict[str, float]:
        """Means over the validation split (``eval_tokens`` of it), and ``val_bits_per_byte``.

        Those are the bits of the targets (dpo: of the chosen answers') over the UTF-8 bytes of their text, which the
        dataset counts: of text by document, of conversations and pairs as a whole (a part of them, and the chosen half
        of the pairs, is taken to have its share).
        """
        total, rows = self.observed("val", self.spec.eval_tokens)
        return self._means("val_", total) | self.bits_per_byte("val_", total, self.objective.nats_per_target, rows)

    def observed(self, split: str, slots: int) -> tuple[torch.Tensor, int]:
        """The objective's sums over the first ``slots`` slots (0: all) of a split without gradient, and how many rows
        those are."""
        # a rank's share of the rows
        rows = np.arange(getattr(self.data, split).rows)
        if slots:
            rows = rows[: max(1, slots // self.spec.seq_len)]
        sums = torch.zeros(len(self.objective.names), dtype=torch.float64)
        for part in share(rows, self.ranks.rank, self.ranks.world, self.choices.micro_batch):
            sums += self._observe(split, part)
        return self.ranks.total(sums), len(rows)

    def bits_per_byte(
        self, prefix: str, sums: torch.Tensor, names: tuple[str, str], rows: int, split: str = "val"
    ) -> dict[str, float]:
        """``{prefix}bits_per_byte`` of a split's first ``rows`` rows, from the sums with these names (nats, targets);
        empty where that is not known."""
        nats, targets = (sums[self.objective.names.index(name)] for name in names)
        per_byte = getattr(self.data, split).targets_per_byte(rows)
        return (
            {f"{prefix}bits_per_byte": float(nats / targets) / math.log(2) * per_byte} if targets and per_byte else {}
        )

    def _observe(self, split: str, numbers: NDArray) -> torch.Tensor:
        self.meter.beat()
        with torch.no_grad():
            _, sums = self.engine(self.batch(split, numbers, 1.0))
        return sums.double().cpu()


class Plan:
    """How many updates there are and how many rows each reads."""

    def __init__(self, spec: TrainSpec, rows: int) -> None:
        if rows == 0:
            raise ValueError(
                f"{spec.data}: the training split holds no rows of seq_len = {spec.seq_len}; add data or lower seq_len"
            )
        self.batch, self.warmup = min(spec.batch_rows, max(rows, 1)), spec.optim.batch_warmup
        per_step = self.batch * (1 - 0.375 * self.warmup)  # the mean of a growth from a quarter to all
        self.steps = spec.steps or math.ceil(
            rows * spec.epochs / per_step
        )  # 0 epochs take the initial weights as they are

    def rows(self, step: int) -> int:
        """Rows of the global batch at ``step``."""
        end = self.warmup * self.steps
        share_now = 1.0 if step >= end else 0.25 + 0.75 * step / end
        return max(1, round(self.batch * share_now))
