"""What is trained for, as a module: a micro-batch in, the loss to differentiate and a few sums to report out.

``weight`` already holds one over the number of targets (or pairs) in the whole global batch, so micro-batches and
ranks are simply added and the update is the same however the batch is cut. Engines wrap the objective and not the bare
model, so that every use of a weight happens inside one forward pass. A micro-batch without any target is a batch like
others: its loss is zero and hangs on the weights, because ranks take part in collectives alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from model.network.transformer import Transformer
from model.specs.train import TrainSpec
from model.tokens.rows import Rows
from model.training import loss


@dataclass
class Batch:
    """A micro-batch on the device. ``ids``, ``doc`` [rows, seq_len]; ``index`` [n] are the slots that are targets
    (null: all); ``targets``, ``weight`` [n]."""

    ids: Tensor
    doc: Tensor
    index: Tensor | None
    targets: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> Self:
        """This batch on ``device``, copied without waiting when that is a GPU."""
        if device.type == "cpu":
            return self
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {
            k: v if v is None else v.pin_memory().to(device, non_blocking=True) for k, v in values.items()
        }
        return type(self)(**moved)


def batch(rows: Rows, norm: float, chunk: int) -> Batch:
    """Rows as a micro-batch whose targets weigh ``1 / norm`` each; where not all slots are targets, their list is
    padded to whole chunks."""
    flat = rows.weight.ravel() > 0  # [rows * seq_len]
    index = None if flat.all() else np.flatnonzero(flat)
    targets, weight = rows.targets.ravel(), rows.weight.ravel() / norm
    if index is not None:
        used = len(index)
        # whole chunks, and one where there is no target: every rank takes part in the head's collectives
        index = np.pad(index, (0, -used % chunk if used else chunk))
        targets, weight = targets[index], weight[index]
        weight[used:] = 0.0
    return Batch(
        ids=torch.from_numpy(rows.ids),
        doc=torch.from_numpy(rows.doc),
        index=None if index is None else torch.from_numpy(index),
        targets=torch.from_numpy(np.ascontiguousarray(targets)),
        weight=torch.from_numpy(weight.astype(np.float32)),
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
        self.gradient: Callable = loss.eager_gradient

    @property
    def compiled_gradient(self) -> Callable:
        """The gradient of a chunk of logits as pure functions, for ``torch.compile``."""
        return loss.chunk_gradient

    def selected(self, batch: Batch) -> Tensor:
        """Hidden states [n, dim] at the batch's targets."""
        with torch.set_grad_enabled(
            torch.is_grad_enabled() or self.lm.compiled
        ):  # validation too, or it would be compiled once more
            h = self.lm.hidden(batch.ids, batch.doc).reshape(-1, self.lm.config.dim)
        return h if batch.index is None else h[batch.index]

    def batch(self, rows: Rows, norm: float, chunk: int, split: str) -> Batch:
        """Rows of ``split`` as a micro-batch of this objective; see :func:`batch`."""
        return batch(rows, norm, chunk)

    def flops_per_token(self) -> float:
        """FLOPs a slot of training it."""
        frozen = not self.lm.model.embed_tokens.weight.requires_grad  # adapters alone are trained
        return self.lm.config.flops_per_token(self.spec.seq_len, frozen)
