"""Bradley-Terry: the probability that one answer is preferred is the sigmoid of the difference of two scores."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model.network.reward import RewardModel
from model.objectives.base import Objective
from model.objectives.pairs import PairBatch, pair_batch
from model.specs.reward import RewardSpec
from model.tokens.rows import Rows


class BradleyTerry(Objective):
    """Minus the log-likelihood of the preferences, as TRL's RewardTrainer computes it: a pair's margin is taken from
    the difference of its scores, and ``center`` times the mean of their squared sum is added.

    ``margins`` [pairs] by split. A sequence has one target, the slot of its last token.
    """

    names = ("loss", "accuracy", "margin", "chosen_score", "rejected_score", "pairs")
    nats_per_target = ("loss", "pairs")
    lm: RewardModel
    spec: RewardSpec

    def __init__(self, model: RewardModel, spec: RewardSpec, margins: dict[str, NDArray]) -> None:
        super().__init__(model, spec)
        # taken from the chosen one's score, a margin is taken from the difference
        self.margins = {split: np.stack([own, np.zeros_like(own)], 1).ravel() for split, own in margins.items()}

    def batch(self, rows: Rows, norm: float, chunk: int, split: str) -> PairBatch:
        """Rows of pairs with their margins."""
        return pair_batch(rows, norm, chunk, self.margins[split])

    def forward(self, batch: PairBatch, answers: bool = False) -> tuple[Tensor, Tensor]:
        """Loss and sums; with ``answers`` only the scores [2 * pairs], twice."""
        scores = batch.by_sequence(self.lm.scores(self.selected(batch)) * batch.answer)
        if answers:
            return scores, scores
        chosen, rejected = scores[0::2], scores[1::2]  # [pairs]
        losses = -F.logsigmoid(chosen - rejected - batch.reference[0::2])
        if self.spec.center:
            losses = losses + self.spec.center * (chosen + rejected) ** 2
        sums = (
            losses.sum(),
            (chosen > rejected).float().sum() + 0.5 * (chosen == rejected).float().sum(),
            (chosen - rejected).sum(),
            chosen.sum(),
            rejected.sum(),
            torch.tensor(float(len(chosen)), device=scores.device),
        )
        # every target of a batch weighs one over the pairs of the whole batch
        return losses.sum() * batch.weight.max(), torch.stack(sums).detach()
