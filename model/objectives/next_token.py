"""Next-token prediction: all tokens in pretraining, the assistant's in fine-tuning."""

from __future__ import annotations

import torch
from torch import Tensor

from model.objectives.base import Batch, Objective
from model.training import loss


class NextToken(Objective):
    """Cross-entropy at the targets: pretraining (all tokens) and SFT (the assistant's)."""

    names = ("loss", "targets")

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        z = self.spec.optim.z_loss
        # with every slot a target nothing is padded, and larger chunks are faster
        chunk = loss.WHOLE.get(batch.ids.device.type, 0) if batch.index is None else 0
        total, nll = loss.cross_entropy(
            self.selected(batch), self.lm.head, batch.targets, batch.weight, z, self.gradient, chunk
        )
        total = total + self.lm.balance(batch.doc) * batch.weight.sum()
        return total, torch.stack((nll.detach(), (batch.weight > 0).sum().float()))
