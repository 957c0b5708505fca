"""Distillation: next-token prediction and, beside it, a frozen teacher's probabilities (Hinton et al. 2015,
arXiv:1503.02531)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from model.network.transformer import Transformer
from model.objectives.answers import AnswerBatch, Answers, apart, counts_of, in_chunks
from model.objectives.base import Batch
from model.specs.sft import SftSpec


class Distill(Answers):
    """Cross-entropy at the targets and, beside it, the divergence from a frozen teacher (nats at the spec's
    temperature, times its square), of answers and of replayed text."""

    names = ("loss", "divergence", "replay_loss", "replay_divergence", "replay_targets", "targets")
    spec: SftSpec

    def __init__(self, model: Transformer, spec: SftSpec, teacher: Transformer) -> None:
        super().__init__(model, spec)
        self.teacher = (teacher,)  # in a tuple: no part of what engines shard, train and save
        self.gradient = distill_gradient

    @property
    def compiled_gradient(self) -> Callable:
        """It is written for the compiler already."""
        return distill_gradient

    def flops_per_token(self) -> float:
        """The student's, and one forward pass of the teacher."""
        return super().flops_per_token() + self.teacher[0].config.flops_per_token(self.spec.seq_len) / 3

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        assert isinstance(batch, AnswerBatch) and batch.index is not None
        how, teacher, gradient = self.spec.distill, self.teacher[0], self.gradient
        with torch.no_grad():
            # the teacher reads the same rows, without noise, and is asked at the same slots
            taught = teacher.hidden(batch.ids, batch.doc).reshape(-1, teacher.config.dim)[batch.index]

        total, sums = distillation(
            self.selected(batch),
            self.lm.head,
            taught,
            teacher.head,
            batch.targets,
            batch.weight,
            how.weight,
            how.temperature,
            gradient,
            batch.text,
        )
        total = total + self.lm.balance(batch.doc) * batch.weight.sum()
        return total, torch.cat((sums.detach(), counts_of(batch)))


def distill_gradient(
    h: Tensor,
    w: Tensor,
    taught: Tensor,
    teacher: Tensor,
    targets: Tensor,
    weight: Tensor,
    share: float,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """One chunk of :func:`distillation`: weighted loss, plain sums of nll and divergence [2] (fp32), gradient of the
    logits in ``h``'s dtype."""
    logits = (h @ w.t()).float()  # [n, vocab]
    nll = torch.logsumexp(logits, -1) - logits.gather(1, targets[:, None])[:, 0]
    at = torch.arange(logits.shape[1], device=h.device)[None, :] == targets[:, None]
    known = min(w.shape[0], teacher.shape[0])  # rows past the teacher's last id have no teacher
    ours = torch.log_softmax(logits[:, :known] / temperature, -1)  # [n, known]
    theirs = torch.log_softmax((taught @ teacher[:known].t()).float() / temperature, -1)
    # softened gradients are 1 / t^2 as large; the square keeps both terms in proportion
    divergence = (theirs.exp() * (theirs - ours)).sum(-1) * temperature**2
    grad = (torch.softmax(logits, -1) - at.float()) * (1 - share)  # [n, vocab]
    grad = grad + torch.nn.functional.pad(
        (ours.exp() - theirs.exp()) * (share * temperature), (0, logits.shape[1] - known)
    )
    counted = (weight != 0).float()  # [n]
    sums = torch.stack(((nll * counted).sum(), (divergence * counted).sum()))
    return ((nll * (1 - share) + divergence * share) * weight).sum(), sums, (grad * weight[:, None]).to(h.dtype)


def distillation(
    h: Tensor,
    head: Tensor,
    taught: Tensor,
    teacher: Tensor,
    targets: Tensor,
    weight: Tensor,
    share: float,
    temperature: float,
    gradient: Callable = distill_gradient,
    text: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``sum(weight * ((1 - share) * nll + share * t^2 * KL(teacher || student)))`` and the plain sums of both terms [2]
    over rows of weight > 0.

    As :func:`cross_entropy`, with the teacher's hidden states ``taught`` [n, width] and its head ``teacher`` [vocab,
    width], both in h's dtype; the divergence is taken at temperature ``t`` over the ids both know (Hinton et al. 2015,
    arXiv:1503.02531). With ``text`` [n] (1 where a chunk of targets is replayed text) the sums are those of answers and
    then those of text [4].
    """

    def chunk_of(
        h: Tensor, w: Tensor, taught: Tensor, targets: Tensor, weight: Tensor, *text: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        total, sums, grad = gradient(h, w, taught, teacher, targets, weight, share, temperature)
        return total, apart(sums, text[0]) if text else sums, grad

    columns = (taught, targets, weight) if text is None else (taught, targets, weight, text)
    return in_chunks(h, head, chunk_of, *columns)
