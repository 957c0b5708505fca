"""The three objectives as modules: a micro-batch in, the loss to differentiate and a few sums to report out.

``weight`` already holds one over the number of targets (or pairs) in the whole global batch, so micro-batches and
ranks are simply added and the update is the same however the batch is cut. Engines wrap the objective and not the bare
model, so that every use of a weight happens inside one forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.network.config import TrainSpec
from model.network.transformer import Transformer
from model.tokens.rows import Rows
from model.training import loss


@dataclass
class Batch:
    """A micro-batch on the device. ``index`` [n] are the slots that are targets (null: all); ``targets``, ``weight``
    [n].

    dpo: ``segment`` [n] is each target's sequence in this batch, 2i chosen and 2i+1 rejected, ``sequences`` [2 * pairs]
    their numbers in the dataset, ``reference`` [2 * pairs] their log-probabilities under the initial model.
    """

    ids: Tensor
    doc: Tensor
    index: Tensor | None
    targets: Tensor
    weight: Tensor
    segment: Tensor | None = None
    sequences: Tensor | None = None
    reference: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """This batch on ``device``, copied without waiting when that is a GPU."""
        if device.type == "cpu":
            return self
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Batch(**{k: v if v is None else v.pin_memory().to(device, non_blocking=True) for k, v in values.items()})


def batch(rows: Rows, norm: float, chunk: int, reference: NDArray | None = None) -> Batch:
    """Rows as a micro-batch whose targets weigh ``1 / norm`` each; where not all slots are targets, their list is
    padded to whole chunks.

    ``reference`` [sequences] holds log-probabilities by sequence number and makes it a batch of pairs.
    """
    flat = rows.weight.ravel() > 0
    index = None if flat.all() else np.flatnonzero(flat)
    targets, weight = rows.targets.ravel(), rows.weight.ravel() / norm
    if index is not None:
        used = len(index)
        index = np.pad(index, (0, -used % chunk if used else chunk))
        targets, weight = targets[index], weight[index]
        weight[used:] = 0.0
    tensors = {
        "ids": torch.from_numpy(rows.ids),
        "doc": torch.from_numpy(rows.doc),
        "index": index if index is None else torch.from_numpy(index),
        "targets": torch.from_numpy(np.ascontiguousarray(targets)),
        "weight": torch.from_numpy(weight.astype(np.float32)),
    }
    if reference is None:
        return Batch(**tensors)
    sequence = rows.sequence.ravel()
    sequence = sequence if index is None else sequence[index]
    known = np.unique(sequence[weight > 0] // 2)
    both = np.stack([2 * known, 2 * known + 1], 1).ravel()
    segment = (
        np.where(weight > 0, np.searchsorted(both, sequence), 0) if len(both) else np.zeros(len(sequence), np.int64)
    )
    return Batch(
        **tensors,
        segment=torch.from_numpy(segment.astype(np.int64)),
        sequences=torch.from_numpy(both),
        reference=torch.from_numpy(reference[both].astype(np.float32)),
    )


class Objective(nn.Module):
    """Base: ``forward(batch) -> (loss, sums)``; ``names`` says what the sums [len(names)] are, the last being what to
    divide by.

    ``nats_per_target`` names the two sums whose quotient is the cross-entropy of the answers that are to be likely.
    """

    names: tuple[str, ...] = ()
    nats_per_target: tuple[str, str] = ("loss", "targets")

    def __init__(self, model: Transformer, spec: TrainSpec) -> None:
        super().__init__()
        self.lm, self.spec = model, spec
        self.gradient: Callable = loss._gradient

    def selected(self, batch: Batch) -> Tensor:
        """Hidden states [n, dim] at the batch's targets."""
        with torch.set_grad_enabled(
            torch.is_grad_enabled() or self.lm.compiled
        ):  # validation too, or it would be compiled once more
            h = self.lm.hidden(batch.ids, batch.doc).reshape(-1, self.lm.config.dim)
        return h if batch.index is None else h[batch.index]


class NextToken(Objective):
    """Cross-entropy at the targets: pretraining (all tokens) and SFT (the assistant's)."""

    names = ("loss", "targets")

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        z = self.spec.optim.z_loss
        chunk = loss.WHOLE.get(batch.ids.device.type, 0) if batch.index is None else 0
        total, nll = loss.cross_entropy(
            self.selected(batch), self.lm.head, batch.targets, batch.weight, z, self.gradient, chunk
        )
        total = total + self.lm.balance(batch.doc) * batch.weight.sum()
        return total, torch.stack((nll.detach(), (batch.weight > 0).sum().float()))


class Distill(NextToken):
    """Cross-entropy at the targets and, beside it, the divergence from a frozen teacher (nats at the spec's
    temperature, times its square)."""

    names = ("loss", "divergence", "targets")

    def __init__(self, model: Transformer, spec: TrainSpec, teacher: Transformer) -> None:
        super().__init__(model, spec)
        self.teacher = (teacher,)  # in a tuple: no part of what engines shard, train and save
        self.gradient = loss.distill_gradient

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        how, teacher = self.spec.distill, self.teacher[0]
        with torch.no_grad():
            taught = teacher.hidden(batch.ids, batch.doc).reshape(-1, teacher.config.dim)
            taught = taught if batch.index is None else taught[batch.index]
        total, sums = loss.distillation(
            self.selected(batch),
            self.lm.head,
            taught,
            teacher.head,
            batch.targets,
            batch.weight,
            how.weight,
            how.temperature,
            self.gradient,
        )
        total = total + self.lm.balance(batch.doc) * batch.weight.sum()
        return total, torch.cat((sums.detach(), (batch.weight > 0).sum().float()[None]))


class Preference(Objective):
    """Direct preference optimization over packed pairs, plus ``nll_weight`` times the chosen answers' cross-entropy.

    ``chosen_nll`` and ``chosen_tokens`` are the nats and the targets of a chosen answer.
    """

    names = ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward", "chosen_nll", "chosen_tokens", "pairs")
    nats_per_target = ("chosen_nll", "chosen_tokens")

    def answers(self, batch: Batch) -> Tensor:
        """Log-probability of each sequence's answer [2 * pairs], nats."""
        logp = loss.log_probs(self.selected(batch), self.lm.head, batch.targets)
        logp = logp * (batch.weight > 0)
        return torch.zeros(len(batch.reference), device=logp.device).index_add(0, batch.segment, logp)

    def forward(self, batch: Batch, answers: bool = False) -> tuple[Tensor, Tensor]:
        """Loss and sums; with ``answers`` only the answers' log-probabilities, twice."""
        found = self.answers(batch)
        return (found, found) if answers else self.compare(batch, found)

    def compare(self, batch: Batch, answers: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and sums from the answers' log-probabilities."""
        spec = self.spec
        chosen, rejected = answers[0::2], answers[1::2]
        reference = batch.reference.view(-1, 2)
        losses, margin = loss.preference(
            chosen, rejected, reference[:, 0], reference[:, 1], spec.beta, spec.label_smoothing
        )
        length = torch.zeros_like(answers).index_add(0, batch.segment, (batch.weight > 0).float())[0::2]
        if spec.nll_weight:
            losses = losses - spec.nll_weight * chosen / length.clamp_min(1)
        sums = torch.stack(
            (
                losses.sum(),
                (margin > 0).float().sum(),
                margin.sum(),
                spec.beta * (chosen - reference[:, 0]).sum(),
                spec.beta * (rejected - reference[:, 1]).sum(),
                -chosen.sum(),
                length.sum(),
                torch.tensor(float(len(margin)), device=margin.device),
            )
        )
        return losses.sum() * batch.weight.max(), sums.detach()
