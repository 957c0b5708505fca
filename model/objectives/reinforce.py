"""The objective of reinforcement learning: answers that did better than others become likelier.

What is known of every token since it was sampled (its log-probability then and under the initial model, its advantage)
lies in the rollout; a micro-batch takes the entries of its own tokens. The formulas are in
:mod:`model.objectives.policy`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.network.lora import LoraLinear
from model.network.transformer import Transformer
from model.objectives.base import Batch, Objective, batch
from model.objectives.policy import Clip, by_answer, divergence, surrogate, value_loss
from model.objectives.sampled import log_probs
from model.specs.rl import RlSpec
from model.tokens.rows import Rows

VALUE = "value_head"
"""Name of the parameter that PPO adds to the model while it trains."""


@dataclass
class Known:
    """What is known of each sampled token of a rollout [tokens], fp32: log-probabilities (``sampled`` the sampler's,
    ``old`` the trainer's before the first update, NaN where not needed; ``reference`` the initial model's), and
    ``advantage``, ``value`` and ``returns``."""

    sampled: NDArray
    advantage: NDArray
    old: NDArray = field(default_factory=lambda: np.zeros(0, np.float32))
    reference: NDArray = field(default_factory=lambda: np.zeros(0, np.float32))
    value: NDArray = field(default_factory=lambda: np.zeros(0, np.float32))
    returns: NDArray = field(default_factory=lambda: np.zeros(0, np.float32))

    def __post_init__(self) -> None:
        for f in fields(self):
            if not len(getattr(self, f.name)):
                fill = np.nan if f.name == "old" else 0.0
                setattr(self, f.name, np.full(len(self.sampled), fill, np.float32))


@dataclass
class SampledRows(Rows):
    """Rows of sampled answers; ``token`` [rows, seq_len] is each target's number in the rollout."""

    token: NDArray


@dataclass
class PolicyBatch(Batch):
    """``token`` [n] is each target's number in the rollout, ``answer`` [n] that of its answer among the ``answers`` [m]
    of this batch (m for a slot that only pads); the others are :class:`Known` of the targets [n]."""

    token: Tensor
    answer: Tensor
    answers: Tensor
    sampled: Tensor
    advantage: Tensor
    old: Tensor
    reference: Tensor
    value: Tensor
    returns: Tensor


class Policy(Objective):
    """The policy's loss, and with PPO the value's, over the targets of a batch; ``known`` is of the current rollout."""

    names = ("loss", "kl", "entropy", "clip_low", "clip_high", "sampler_gap", "value_loss", "targets")
    nats_per_target = ("entropy", "targets")
    spec: RlSpec

    def __init__(self, model: Transformer, spec: RlSpec) -> None:
        super().__init__(model, spec)
        recipe = spec.recipe
        self.clip = Clip(spec.epsilon, recipe.high, spec.delta, spec.algorithm == "cispo")
        self.level = recipe.level
        self.known = Known(np.zeros(0, np.float32), np.zeros(0, np.float32))

    def batch(self, rows: Rows, norm: float, chunk: int, split: str) -> PolicyBatch:
        """Rows of answers with what is known of their tokens."""
        assert isinstance(rows, SampledRows)
        plain = batch(rows, norm, chunk)
        index = slice(None) if plain.index is None else plain.index.numpy()
        there = plain.weight.numpy() > 0
        token = np.where(there, rows.token.ravel()[index], 0)
        sequence = rows.sequence.ravel()[index]
        answers = np.unique(sequence[there])
        answer = np.where(there, np.searchsorted(answers, sequence), len(answers))
        size = len(self.known.sampled)
        own = {f.name: getattr(self.known, f.name)[token] if size else np.zeros(len(token)) for f in fields(Known)}
        return PolicyBatch(
            **vars(plain),
            token=torch.from_numpy(token),
            answer=torch.from_numpy(answer.astype(np.int64)),
            answers=torch.from_numpy(answers),
            **{name: torch.from_numpy(values.astype(np.float32)) for name, values in own.items()},
        )

    def scores(self, batch: PolicyBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probability, entropy and value (zeros without a value head) of each target [n]."""
        h = self.selected(batch)
        spec = self.spec
        logp, entropy = log_probs(h, self.lm.head, batch.targets, spec.temperature, spec.top_k, spec.top_p)
        head = getattr(self.lm, VALUE, None)
        return logp, entropy, torch.zeros_like(logp) if head is None else h.float() @ head.float()

    def forward(self, batch: PolicyBatch, scores: bool = False) -> tuple[Tensor, Tensor]:
        """Loss and sums; with ``scores`` only each target's log-probability and value."""
        logp, entropy, value = self.scores(batch)
        return (logp, value) if scores else self.learn(batch, logp, entropy, value)

    @contextlib.contextmanager
    def adapted(self, wanted: bool) -> Iterator[None]:
        """Inside, adapters count (or, ``wanted`` false, do not: the model is the initial one)."""
        adapters = [] if wanted else [m for m in self.lm.modules() if isinstance(m, LoraLinear)]
        scales = [module.scale for module in adapters]
        for module in adapters:
            module.scale = 0.0
        try:
            yield
        finally:
            for module, scale in zip(adapters, scales, strict=True):
                module.scale = scale

    def learn(self, batch: PolicyBatch, logp: Tensor, entropy: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and sums from what the model gives each target [n]."""
        spec, real = self.spec, batch.weight > 0
        # a slot that only pads must not lead to infinities, which a weight of 0 would make NaN
        logp = torch.where(real, logp, 0.0)
        # on the first of a rollout's updates the model is still the one that sampled
        old = torch.where(torch.isnan(batch.old), logp.detach(), batch.old)
        apart = logp - old
        if self.level == "sequence":
            count = len(batch.answers) + 1  # the last collects what only pads
            apart = by_answer(apart, batch.answer, count)[batch.answer]
        ratio = torch.exp(apart)
        loss, low, high = surrogate(logp, ratio, batch.advantage, self.clip)
        if spec.importance_sampling_clip_max:
            # the sampler's arithmetic is not the trainer's to the last bit
            loss = loss * torch.exp(old - batch.sampled).clamp(max=spec.importance_sampling_clip_max)
        kl = torch.zeros_like(logp)
        if spec.beta and spec.algorithm != "ppo":  # PPO has it in the reward
            kl = divergence(logp, batch.reference, spec.kl_estimator)
            loss = loss + spec.beta * (kl * ratio if spec.use_bias_correction_kl else kl)
        elif spec.beta:
            kl = divergence(logp.detach(), batch.reference, spec.kl_estimator)
        miss = torch.zeros_like(logp)
        if spec.algorithm == "ppo":
            miss = value_loss(value, batch.value, batch.returns, spec.ppo.cliprange_value)
            loss = loss + spec.ppo.vf_coef * miss
        total = torch.where(real, loss * batch.weight, 0.0).sum()
        observed = (kl, entropy, low.float(), high.float(), (old - batch.sampled).abs(), miss)
        sums = [total, *(torch.where(real, values, 0.0).sum() for values in observed), real.sum().float()]
        total = total + self.lm.balance(batch.doc) * batch.weight.sum()
        return total, torch.stack([s.detach().float() for s in sums])


def add_value_head(model: Transformer) -> None:
    """Give ``model`` a linear head [dim] for the value of each token, which starts at zero."""
    model.register_parameter(VALUE, nn.Parameter(torch.zeros(model.config.dim)))
