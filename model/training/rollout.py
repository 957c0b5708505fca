"""Answers that were sampled, as rows to train on, and what is known of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from model.objectives.policy import token_weights
from model.objectives.reinforce import SampledRows
from model.tokens.rows import Rows, pack


@dataclass(frozen=True)
class Answer:
    """One sampled answer: token ids of its ``prompt``, its own ``tokens`` (the stop token that ended it included) and
    their log-probabilities ``logprobs`` when they were drawn; whether it ``ended``, or was cut at its longest."""

    prompt: Sequence[int]
    tokens: Sequence[int]
    logprobs: Sequence[float]
    ended: bool


class Rollout:
    """Answers packed into rows of ``seq_len`` slots, in ``parts`` mini-batches, each an update.

    Tokens of all answers are numbered through in their order: ``begin`` [answers] is each one's first. A mini-batch
    holds every ``parts``-th answer of a permutation by ``seed``, and ``average`` says what a token weighs in it
    (:func:`model.objectives.policy.token_weights`); an answer that is not ``learnt`` [answers] counts as one without
    tokens.
    """

    def __init__(
        self,
        answers: Sequence[Answer],
        seq_len: int,
        *,
        average: str,
        longest: int,
        learnt: NDArray | None = None,
        pad: int = 0,
        parts: int = 1,
        seed: Sequence[int] = (0,),
    ) -> None:
        self.answers, self.seq_len, self.pad = answers, seq_len, pad
        self.lengths = np.array([len(a.tokens) for a in answers], np.int64)  # [answers], tokens that are learnt
        self.begin = np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)
        slots = np.array([len(a.prompt) + len(a.tokens) - 1 for a in answers], np.int64)
        self.weight = np.zeros(len(answers))
        self.members: list[list[int]] = []
        self.parts: list[NDArray] = []
        order = np.random.Generator(np.random.PCG64(list(seed))).permutation(len(answers))
        for part in range(parts):
            own = np.sort(order[part::parts])
            counted = self.lengths[own] if learnt is None else self.lengths[own] * learnt[own]
            self.weight[own] = token_weights(torch.from_numpy(counted), average, longest).numpy() * (counted > 0)
            packed = [[int(own[i]) for i in row] for row in pack(slots[own], seq_len)]
            self.parts.append(np.arange(len(self.members), len(self.members) + len(packed)))
            self.members += packed
        self.rows = len(self.members)
        self.filled = np.array([int(slots[m].sum()) for m in self.members], np.int64)
        self.units = self.filled

    @property
    def sampled(self) -> NDArray:
        """Log-probability of every token [tokens] when it was drawn."""
        return np.array([lp for answer in self.answers for lp in answer.logprobs], np.float32)

    def spread(self, values: NDArray) -> NDArray:
        """A value of each answer [answers] at each of its tokens [tokens]."""
        return np.repeat(values, self.lengths).astype(np.float32)

    def read(self, numbers: NDArray) -> SampledRows:
        """The rows with these numbers; a negative number gives an empty row."""
        plain = Rows.empty(len(numbers), self.seq_len, self.pad)
        out = SampledRows(**vars(plain), token=np.zeros_like(plain.ids))
        for r, number in enumerate(numbers):
            at = 0
            for i in self.members[number] if number >= 0 else ():
                answer, first = self.answers[i], int(self.begin[i])
                tokens = np.array([*answer.prompt, *answer.tokens], np.int64)
                n, known = len(tokens) - 1, len(answer.prompt) - 1
                here, learnt = np.s_[r, at : at + n], np.s_[r, at + known : at + n]
                out.ids[here], out.targets[here] = tokens[:-1], tokens[1:]
                out.doc[here] = out.sequence[here] = i
                out.weight[learnt] = self.weight[i]
                out.token[learnt] = np.arange(first, first + n - known)
                at += n
        return out

    def targets_per_byte(self, rows: int) -> float:
        """Not known of what a model says itself."""
        return 0.0
