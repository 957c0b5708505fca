"""What SFT trains: the assistant's answers, and beside them ordinary text of the pretraining data (replay)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.objectives.base import Batch
from model.objectives.next_token import NextToken
from model.tokens.rows import PADDING, Rows
from model.training import loss


@dataclass
class AnswerBatch(Batch):
    """``text`` [n] says which targets are replayed text (1) and not answers (0); a chunk of targets is of one kind.
    ``noise`` [rows, seq_len, dim] is added to the embeddings (null: none)."""

    text: Tensor
    noise: Tensor | None = None


def answer_batch(rows: Rows, norm: float, chunk: int) -> AnswerBatch:
    """Rows as a micro-batch: targets of the answers, then those of replayed text, each padded to whole chunks, so that
    the loss of both is known apart although it is one pass."""
    of_text = (rows.doc[:, 0] != PADDING) & (rows.sequence[:, 0] == PADDING)  # a stream of documents has no sequences
    flat, replayed = rows.weight.ravel() > 0, np.repeat(of_text, rows.ids.shape[1])
    indices, weights, kinds = [], [], []
    for kind in (False, True):
        index = np.flatnonzero(flat & (replayed == kind))
        # one chunk where there is no target at all: every rank takes part in the head's collectives
        room = -len(index) % chunk if len(index) or kind or flat.any() else chunk
        indices.append(np.pad(index, (0, room)))
        weights.append(np.pad(rows.weight.ravel()[index] / norm, (0, room)))
        kinds.append(np.full(len(index) + room, kind))
    index = np.concatenate(indices)
    return AnswerBatch(
        ids=torch.from_numpy(rows.ids),
        doc=torch.from_numpy(rows.doc),
        index=torch.from_numpy(index),
        targets=torch.from_numpy(rows.targets.ravel()[index]),
        weight=torch.from_numpy(np.concatenate(weights).astype(np.float32)),
        text=torch.from_numpy(np.concatenate(kinds).astype(np.float32)),
    )


class Answers(NextToken):
    """Cross-entropy at the targets, reported apart for answers and for replayed text."""

    names = ("loss", "replay_loss", "replay_targets", "targets")

    def batch(self, rows: Rows, norm: float, chunk: int, split: str) -> AnswerBatch:
        """Rows as a micro-batch whose targets know what they are; see :func:`answer_batch`."""
        return answer_batch(rows, norm, chunk)

    def selected(self, batch: Batch) -> Tensor:
        """Hidden states [n, dim] at the batch's targets, with its noise on the embeddings."""
        assert isinstance(batch, AnswerBatch) and batch.index is not None
        with torch.set_grad_enabled(torch.is_grad_enabled() or self.lm.compiled):  # as in the base class
            h = self.lm.hidden(batch.ids, batch.doc, noise=batch.noise).reshape(-1, self.lm.config.dim)
        return h[batch.index]

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        assert isinstance(batch, AnswerBatch)
        h, z, gradient = self.selected(batch), self.spec.optim.z_loss, self.gradient

        def chunk_of(h: Tensor, w: Tensor, targets: Tensor, weight: Tensor, text: Tensor) -> tuple[Tensor, ...]:
            total, nll, grad = gradient(h, w, targets, weight, z)
            return total, apart(nll[None], text), grad

        if torch.is_grad_enabled():
            total, nll = in_chunks(h, self.lm.head, chunk_of, batch.targets, batch.weight, batch.text)
        else:
            each = -loss.log_probs_now(h, self.lm.head, batch.targets, chunk_size(h))  # [n]
            counted = each * (batch.weight > 0)
            total, nll = (
                (each * batch.weight).sum(),
                torch.stack(((counted * (1 - batch.text)).sum(), (counted * batch.text).sum())),
            )
        total = total + self.lm.balance(batch.doc) * batch.weight.sum()
        return total, torch.cat((nll.detach(), counts_of(batch)))


def apart(sums: Tensor, text: Tensor) -> Tensor:
    """Sums of one chunk [k] as those of answers and then those of text [2 k]; one of both is zero."""
    return torch.cat((sums * (1 - text[0]), sums * text[0]))


def counts_of(batch: AnswerBatch) -> Tensor:
    """Numbers of text's and of answers' targets [2] (fp32)."""
    counted = (batch.weight > 0).float()
    return torch.stack(((counted * batch.text).sum(), (counted * (1 - batch.text)).sum()))


def in_chunks(h: Tensor, head: Tensor, chunk_of: Callable, *columns: Tensor) -> tuple[Tensor, Tensor]:
    """The loss and the sums of ``chunk_of`` over chunks of rows, see :class:`model.training.loss.InForward`."""
    return loss.InForward.apply(h, head, chunk_size(h), chunk_of, *columns)


def chunk_size(h: Tensor) -> int:
    """Rows whose logits are made at once."""
    return loss.CHUNK.get(h.device.type, 4096)


def embedding_noise(doc: Tensor, of_text: NDArray, dim: int, alpha: float, seeds: list[int]) -> Tensor:
    """NEFTune's noise (Jain et al. 2023, arXiv:2310.05914) for rows of packed conversations [rows, seq_len, dim], fp32.

    Uniform in ``±alpha / sqrt(L * dim)``, where ``L`` is the number of slots of a slot's own conversation: packing
    changes nothing. None for padding and for replayed text. Row i draws with ``seeds[i]``, so that its noise depends on
    neither ranks nor micro-batches.
    """
    out = torch.zeros(*doc.shape, dim, device=doc.device)
    for row, seed in enumerate(seeds):
        if of_text[row]:
            continue
        generator = torch.Generator(doc.device).manual_seed(seed)
        out[row].uniform_(-1.0, 1.0, generator=generator)
        lengths = (doc[row][:, None] == doc[row][None, :]).sum(1)  # [seq_len]
        scale = alpha / torch.sqrt(lengths.float() * dim) * (doc[row] != PADDING)
        out[row] *= scale[:, None]
    return out
