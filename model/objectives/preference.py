"""Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290) over pairs packed into rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model.network.transformer import Transformer
from model.objectives.base import Batch, Objective, batch
from model.specs.dpo import DpoSpec
from model.tokens.rows import Rows
from model.training import loss


@dataclass
class PairBatch(Batch):
    """``segment`` [n] is each target's sequence in this batch, 2i chosen and 2i+1 rejected (2 * pairs for a slot that
    only pads); ``sequences`` [2 * pairs] are their numbers in the dataset, ``reference`` [2 * pairs] their
    log-probabilities under the initial model."""

    segment: Tensor
    sequences: Tensor
    reference: Tensor


def pair_batch(rows: Rows, norm: float, chunk: int, reference: NDArray) -> PairBatch:
    """Rows of pairs as a micro-batch; ``reference`` [sequences] holds log-probabilities by sequence number."""
    plain = batch(rows, norm, chunk)
    sequence = rows.sequence.ravel()  # [rows * seq_len]
    sequence = sequence if plain.index is None else sequence[plain.index.numpy()]
    counts = plain.weight.numpy() > 0
    known = np.unique(sequence[counts] // 2)  # pairs in this batch
    both = np.stack([2 * known, 2 * known + 1], 1).ravel()  # [2 * pairs], chosen and rejected by turns
    # slots that only pad go to one more segment, which is thrown away
    segment = np.where(counts, np.searchsorted(both, sequence), len(both))
    return PairBatch(
        **vars(plain),
        segment=torch.from_numpy(segment.astype(np.int64)),
        sequences=torch.from_numpy(both),
        reference=torch.from_numpy(reference[both].astype(np.float32)),
    )


class Preference(Objective):
    """The margin between two answers' log-ratios, plus ``nll_weight`` times the chosen answers' cross-entropy.

    ``chosen_nll`` and ``chosen_tokens`` are the nats and the targets of a chosen answer. ``reference`` holds the
    log-probabilities of every answer under the initial model by split [sequences]; zeros until they are known.
    """

    names = ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward", "chosen_nll", "chosen_tokens", "pairs")
    nats_per_target = ("chosen_nll", "chosen_tokens")
    spec: DpoSpec

    def __init__(self, model: Transformer, spec: DpoSpec, sequences: dict[str, int]) -> None:
        super().__init__(model, spec)
        self.reference = {split: np.zeros(count) for split, count in sequences.items()}

    def batch(self, rows: Rows, norm: float, chunk: int, split: str) -> PairBatch:
        """Rows of pairs with what the initial model thinks of them."""
        return pair_batch(rows, norm, chunk, self.reference[split])

    def _by_sequence(self, batch: PairBatch, values: Tensor) -> Tensor:
        """Sums of ``values`` [n] over the targets of each sequence [2 * pairs]."""
        room = torch.zeros(len(batch.reference) + 1, device=values.device)  # the last collects what only pads
        return room.index_add(0, batch.segment, values)[:-1]

    def answers(self, batch: PairBatch) -> Tensor:
        """Log-probability of each sequence's answer [2 * pairs], nats."""
        logp = loss.log_probs(self.selected(batch), self.lm.head, batch.targets)  # [n]
        return self._by_sequence(batch, logp * (batch.weight > 0))

    def forward(self, batch: PairBatch, answers: bool = False) -> tuple[Tensor, Tensor]:
        """Loss and sums; with ``answers`` only the answers' log-probabilities, twice."""
        logp = self.answers(batch)
        return (logp, logp) if answers else self.compare(batch, logp)

    def compare(self, batch: PairBatch, answers: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and sums from the answers' log-probabilities [2 * pairs]."""
        beta, nll_weight = self.spec.beta, self.spec.nll_weight
        chosen, rejected = answers[0::2], answers[1::2]  # [pairs]
        known_chosen, known_rejected = batch.reference[0::2], batch.reference[1::2]  # [pairs]
        losses, margin = preference(chosen, rejected, known_chosen, known_rejected, beta, self.spec.label_smoothing)
        length = self._by_sequence(batch, (batch.weight > 0).float())[0::2]  # [pairs]
        if nll_weight:
            # per target, so that long answers do not count for more
            losses = losses - nll_weight * chosen / length.clamp_min(1)
        sums = (
            losses.sum(),
            (margin > 0).float().sum(),
            margin.sum(),
            beta * (chosen - known_chosen).sum(),
            beta * (rejected - known_rejected).sum(),
            -chosen.sum(),
            length.sum(),
            torch.tensor(float(len(margin)), device=margin.device),
        )
        # every target of a batch weighs one over the pairs of the whole batch
        return losses.sum() * batch.weight.max(), torch.stack(sums).detach()


def preference(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """DPO (Rafailov et al. 2023; cDPO when ``label_smoothing`` > 0): losses [pairs] and margins [pairs].

    Arguments are log-probabilities of whole answers (nats, fp32) [pairs]; the margin is ``beta`` times the difference
    of log-ratios.
    """
    margin = beta * ((chosen - reference_chosen) - (rejected - reference_rejected))
    loss = -F.logsigmoid(margin) * (1 - label_smoothing) - F.logsigmoid(-margin) * label_smoothing
    return loss, margin
