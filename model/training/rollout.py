"""Answers that were sampled, as rows to train on, and what is known of their tokens.

Answers to one prompt stand behind it in a row, which has the prompt once; a group that is longer than a row is cut
between answers. The last token of the prompt, which says the first of every answer, stands before each of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from model.network.shared import ALONE
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
    """Answers packed into rows of ``seq_len`` slots, in ``parts`` mini-batches, each an update. Answers to one prompt
    follow each other.

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
        self.weight = np.zeros(len(answers))
        self.members: list[list[list[int]]] = []  # of each row its groups of answers behind one prompt
        self.parts: list[NDArray] = []
        order = np.random.Generator(np.random.PCG64(list(seed))).permutation(len(answers))
        for part in range(parts):
            own = np.sort(order[part::parts])
            counted = self.lengths[own] if learnt is None else self.lengths[own] * learnt[own]
            self.weight[own] = token_weights(torch.from_numpy(counted), average, longest).numpy() * (counted > 0)
            packed = self._packed(own)
            self.parts.append(np.arange(len(self.members), len(self.members) + len(packed)))
            self.members += packed
        self.rows = len(self.members)
        self.filled = np.array([sum(map(self._slots, row)) for row in self.members], np.int64)
        self.units = self.filled

    def _packed(self, own: NDArray) -> list[list[list[int]]]:
        """The answers ``own`` as rows of groups behind one prompt, as many of each together as fit."""
        groups: list[list[int]] = []
        for prompt, several in itertools.groupby(own.tolist(), lambda i: tuple(self.answers[i].prompt)):
            members = list(several)
            for chosen in pack(self.lengths[members], self.seq_len - len(prompt) + 1):
                groups.append([members[i] for i in chosen])
        sizes = np.array([self._slots(group) for group in groups], np.int64)
        return [[groups[i] for i in row] for row in pack(sizes, self.seq_len)]

    def _slots(self, group: list[int]) -> int:
        """Slots of a prompt with these answers: its last token stands before each of them."""
        return len(self.answers[group[0]].prompt) - 1 + int(self.lengths[group].sum())

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
        nothing = np.zeros_like(plain.ids)
        out = SampledRows(**vars(plain), token=nothing, prompt=np.full_like(nothing, ALONE), position=nothing.copy())
        for r, number in enumerate(numbers):
            at = 0
            for group in self.members[number] if number >= 0 else ():
                at = self._write(out, r, at, group)
        return out

    def _write(self, out: SampledRows, r: int, at: int, group: list[int]) -> int:
        """Write a prompt and its answers into row ``r`` from slot ``at`` on; the slot behind them."""
        prompt = np.array(self.answers[group[0]].prompt, np.int64)
        shared, known = len(self.answers) + group[0], len(prompt) - 1
        here = np.s_[r, at : at + known]
        out.ids[here], out.doc[here], out.position[here] = prompt[:-1], shared, np.arange(known)
        at += known
        for i in group:
            tokens, first = np.array(self.answers[i].tokens, np.int64), int(self.begin[i])
            here = np.s_[r, at : at + len(tokens)]
            out.ids[here] = [prompt[-1], *tokens[:-1]]
            out.targets[here] = tokens
            out.doc[here] = out.sequence[here] = i
            out.prompt[here], out.position[here] = shared, known + np.arange(len(tokens))
            out.weight[here] = self.weight[i]
            out.token[here] = np.arange(first, first + len(tokens))
            at += len(tokens)
        return at

    def targets_per_byte(self, rows: int) -> float:
        """Not known of what a model says itself."""
        return 0.0
