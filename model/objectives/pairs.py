"""Pairs of sequences packed into rows, as micro-batches: what preference losses and reward models share."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.objectives.base import Batch, batch
from model.tokens.rows import Rows


@dataclass
class PairBatch(Batch):
    """``segment`` [n] is each target's sequence in this batch, 2i chosen and 2i+1 rejected (2 * pairs for a slot that
    only pads); ``answer`` [n] is 1 at an answer's tokens and 0 at a prompt's; ``sequences`` [2 * pairs] are their
    numbers in the dataset, ``reference`` [2 * pairs] what is known of each and taken from its score."""

    segment: Tensor
    answer: Tensor
    sequences: Tensor
    reference: Tensor

    def by_sequence(self, values: Tensor) -> Tensor:
        """Sums of ``values`` [n] over the targets of each sequence [2 * pairs]."""
        room = torch.zeros(len(self.reference) + 1, device=values.device)  # the last collects what only pads
        return room.index_add(0, self.segment, values)[:-1]


def pair_batch(rows: Rows, norm: float, chunk: int, reference: NDArray, prompts: bool = False) -> PairBatch:
    """Rows of pairs as a micro-batch; ``reference`` [sequences] by sequence number. With ``prompts`` the tokens of the
    chosen answers' prompts are targets too."""
    learnt = rows.weight
    if prompts:
        learnt = np.where((rows.doc >= 0) & (rows.sequence % 2 == 0), np.float32(1), rows.weight)
    plain = batch(replace(rows, weight=learnt), norm, chunk)
    sequence, answer = rows.sequence.ravel(), rows.weight.ravel()  # [rows * seq_len]
    if plain.index is not None:
        sequence, answer = sequence[plain.index.numpy()], answer[plain.index.numpy()]
    counts = plain.weight.numpy() > 0
    known = np.unique(sequence[counts] // 2)  # pairs in this batch
    both = np.stack([2 * known, 2 * known + 1], 1).ravel()  # [2 * pairs], chosen and rejected by turns
    # slots that only pad go to one more segment, which is thrown away
    segment = np.where(counts, np.searchsorted(both, sequence), len(both))
    return PairBatch(
        **vars(plain),
        segment=torch.from_numpy(segment.astype(np.int64)),
        answer=torch.from_numpy(np.where(counts, answer, 0).astype(np.float32)),
        sequences=torch.from_numpy(both),
        reference=torch.from_numpy(reference[both].astype(np.float32)),
    )
