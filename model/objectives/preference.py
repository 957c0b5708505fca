"""Learning from preference pairs packed into rows: direct preference optimization and the losses of its family.

An answer's score is its log-probability, less that under the initial model where the loss has a reference. Names and
formulas are those of TRL (DPOTrainer; CPOTrainer for simpo, ORPOTrainer for orpo), which the tests compare with:

- ``sigmoid``: DPO (Rafailov et al. 2023, arXiv:2305.18290), with ``label_smoothing`` cDPO; with ``length_normalize``
  scores are divided by tokens (TRL's ``sigmoid_norm``).
- ``ipo``: squared distance of the margin a token from 1 / (2 beta) (Azar et al. 2023, arXiv:2310.12036).
- ``robust``: unbiased under labels that are wrong with known probability (arXiv:2403.00409).
- ``hinge``: SLiC's (arXiv:2305.10425).
- ``simpo``: scores a token, no reference, a wanted margin ``simpo_gamma`` (arXiv:2405.14734).
- ``orpo``: log odds ratio beside the cross-entropy of the chosen conversation, no reference (arXiv:2403.07691).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.network.transformer import Transformer
from model.objectives.base import Objective
from model.objectives.pairs import PairBatch, pair_batch
from model.specs.dpo import DpoSpec
from model.tokens.rows import Rows
from model.training import loss


class Preference(Objective):
    """A loss of the margin between two answers' scores, plus ``nll_weight`` times the chosen answers' cross-entropy.

    ``chosen_nll`` and ``chosen_tokens`` are the nats and the targets of a chosen answer. ``reference`` holds the
    log-probabilities of every answer under the initial model by split [sequences]; zeros until they are known, and for
    ever where the loss has no reference.
    """

    names = ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward", "chosen_nll", "chosen_tokens", "pairs")
    nats_per_target = ("chosen_nll", "chosen_tokens")
    spec: DpoSpec

    def __init__(self, model: Transformer, spec: DpoSpec, sequences: dict[str, int]) -> None:
        super().__init__(model, spec)
        self.reference = {split: np.zeros(count) for split, count in sequences.items()}

    def batch(self, rows: Rows, norm: float, chunk: int, split: str) -> PairBatch:
        """Rows of pairs with what the initial model thinks of them."""
        return pair_batch(rows, norm, chunk, self.reference[split], prompts=self.spec.loss == "orpo")

    def forward(self, batch: PairBatch, answers: bool = False) -> tuple[Tensor, Tensor]:
        """Loss and sums; with ``answers`` only the answers' log-probabilities [2 * pairs] (nats), twice."""
        logp = loss.log_probs(self.selected(batch), self.lm.head, batch.targets)  # [n]
        said = batch.by_sequence(logp * batch.answer)
        return (said, said) if answers else self.compare(batch, said, logp)

    def compare(self, batch: PairBatch, said: Tensor, logp: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and sums from the log-probabilities of the answers [2 * pairs] and of every target [n]."""
        spec = self.spec
        tokens = batch.by_sequence(batch.answer).clamp_min(1)  # [2 * pairs]
        scores = (said - batch.reference) / (tokens if spec.per_token else 1.0)
        chosen, rejected = scores[0::2], scores[1::2]  # [pairs]
        losses, margin = preference(chosen, rejected, spec)
        if spec.loss == "orpo":
            losses = losses + self._whole(batch, logp)
        elif spec.nll_weight:
            # per target, so that long answers do not count for more
            losses = losses - spec.nll_weight * said[0::2] / tokens[0::2]
        sums = (
            losses.sum(),
            (margin > 0).float().sum(),
            margin.sum(),
            spec.beta * chosen.sum(),
            spec.beta * rejected.sum(),
            -said[0::2].sum(),
            tokens[0::2].sum(),
            torch.tensor(float(len(margin)), device=margin.device),
        )
        # every target of a batch weighs one over the pairs of the whole batch
        return losses.sum() * batch.weight.max(), torch.stack(sums).detach()

    def _whole(self, batch: PairBatch, logp: Tensor) -> Tensor:
        """Cross-entropy a token of each chosen conversation, its prompt included [pairs]."""
        counted = (batch.weight > 0).float()
        return -(batch.by_sequence(logp * counted) / batch.by_sequence(counted).clamp_min(1))[0::2]


def preference(chosen: Tensor, rejected: Tensor, spec: DpoSpec) -> tuple[Tensor, Tensor]:
    """Losses [pairs] of ``spec.loss`` and margins [pairs] from the two answers' scores [pairs] (nats fp32, a token
    where ``spec.per_token``); a margin is ``beta`` times what the chosen one is ahead."""
    ahead = chosen - rejected
    margin, smooth = spec.beta * ahead, spec.label_smoothing
    if spec.loss == "orpo":
        odds = ahead - (_log_of_the_rest(chosen) - _log_of_the_rest(rejected))
        return -spec.beta * F.logsigmoid(odds), margin
    if spec.loss == "ipo":
        return (ahead - 1 / (2 * spec.beta)) ** 2, margin
    if spec.loss == "hinge":
        return torch.relu(1 - margin), margin
    at = margin - spec.simpo_gamma if spec.loss == "simpo" else margin
    right, wrong = -F.logsigmoid(at), -F.logsigmoid(-at)
    if spec.loss == "robust":
        return (right * (1 - smooth) - wrong * smooth) / (1 - 2 * smooth), margin
    return right * (1 - smooth) + wrong * smooth, margin


def _log_of_the_rest(logp: Tensor) -> Tensor:
    """``log(1 - exp(logp))``, exact near both ends; a probability that rounds to 1 keeps a finite gradient."""
    logp = logp.clamp_max(-1e-6)
    return torch.where(logp > -0.693, torch.log(-torch.expm1(logp)), torch.log1p(-torch.exp(logp)))
