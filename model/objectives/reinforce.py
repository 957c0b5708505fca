"""The objective of reinforcement learning: answers that did better than others become likelier.

What is known of every token since it was sampled (its log-probability then and under the initial model, its advantage)
lies in the rollout; a micro-batch takes the entries of its own tokens. The formulas are in
:mod:`model.objectives.policy`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.network.lora import LoraLinear
from model.network.shared import hidden
from model.network.transformer import Transformer
from model.objectives.base import Batch, Objective, batch
from model.objectives.policy import Clip, by_answer, divergence, surrogate, value_loss
from model.objectives.sampled import log_probs, policy_of, steepness
from model.specs.rl import RlSpec
from model.tokens.rows import PADDING, Rows
from model.training import loss

VALUE = "value_head"
"""Name of the parameter that PPO adds to the model while it trains."""
TRIM = 32
"""Slots by which rows are shortened."""


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
    """Rows of sampled answers; ``token`` [rows, seq_len] is each target's number in the rollout, ``prompt`` and
    ``position`` [rows, seq_len] are what :func:`model.network.shared.hidden` takes."""

    token: NDArray
    prompt: NDArray
    position: NDArray

    def trimmed(self) -> SampledRows:
        """These rows without those that are empty and the slots that are padding in all of them."""
        used = (self.doc != PADDING).sum(1)  # padding stands at the end
        there = np.flatnonzero(used) if used.any() else np.zeros(1, np.int64)
        length = min(self.doc.shape[1], max(1, -(-int(used.max()) // TRIM)) * TRIM)
        return SampledRows(**{f.name: getattr(self, f.name)[there, :length] for f in fields(self)})


class Targets(NamedTuple):
    """What the policy's loss needs of each target [n] beside its log-probability: ``answer`` is the number of its
    answer in the batch, the others are weights and :class:`Known`."""

    weight: Tensor
    answer: Tensor
    sampled: Tensor
    advantage: Tensor
    old: Tensor
    reference: Tensor


@dataclass
class PolicyBatch(Batch):
    """``prompt``, ``position`` [rows, seq_len] as in :class:`SampledRows`; ``token`` [n] is each target's number in the
    rollout, ``answer`` [n] that of its answer among the ``answers`` [m] of this batch (m for a slot that only pads);
    the others are :class:`Known` of the targets [n]."""

    prompt: Tensor
    position: Tensor
    token: Tensor
    answer: Tensor
    answers: Tensor
    sampled: Tensor
    advantage: Tensor
    old: Tensor
    reference: Tensor
    value: Tensor
    returns: Tensor

    @property
    def of_targets(self) -> Targets:
        """What the policy's loss needs."""
        return Targets(*(getattr(self, name) for name in Targets._fields))


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
        rows = rows.trimmed()
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
            prompt=torch.from_numpy(rows.prompt),
            position=torch.from_numpy(rows.position),
            token=torch.from_numpy(token),
            answer=torch.from_numpy(answer.astype(np.int64)),
            answers=torch.from_numpy(answers),
            **{name: torch.from_numpy(values.astype(np.float32)) for name, values in own.items()},
        )

    def selected(self, batch: Batch) -> Tensor:
        """Hidden states [n, dim] at the batch's targets."""
        assert isinstance(batch, PolicyBatch)
        h = hidden(self.lm, batch.ids, batch.doc, batch.prompt, batch.position).reshape(-1, self.lm.config.dim)
        return h if batch.index is None else h[batch.index]

    @property
    def how(self) -> tuple[float, int, float]:
        """What answers are sampled with: temperature, top-k and top-p."""
        return self.spec.temperature, self.spec.top_k, self.spec.top_p

    def value(self, h: Tensor) -> Tensor:
        """The value [n] of the tokens after hidden states ``h`` [n, dim]; zeros without a value head."""
        head = getattr(self.lm, VALUE, None)
        return h.new_zeros(len(h), dtype=torch.float32) if head is None else h.float() @ head.float()

    def forward(self, batch: PolicyBatch, scores: bool = False) -> tuple[Tensor, Tensor]:
        """Loss and sums; with ``scores`` only each target's log-probability and value [n]."""
        h = self.selected(batch)
        if scores:
            return log_probs(h, self.lm.head, batch.targets, *self.how)[0], self.value(h)
        known = batch.of_targets
        if self.level == "token":
            size = loss.CHUNK.get(h.device.type, 4096)
            total, sums = loss.InForward.apply(h, self.lm.head, size, self._chunk, batch.targets, *known)
        else:  # what an answer's tokens have in common is known after the last of them
            logp, entropy = log_probs(h, self.lm.head, batch.targets, *self.how)
            total, sums = self.learn(known, logp, entropy, len(batch.answers))
        miss = torch.zeros_like(total)
        if self.spec.algorithm == "ppo":
            extra, miss = self.learn_value(batch, self.value(h))
            total, sums = total + extra, torch.cat([(sums[0] + extra.detach())[None], sums[1:]])
        sums = torch.cat([sums[:-1], miss.detach()[None], sums[-1:]])
        return total + self.lm.balance(batch.doc) * batch.weight.sum(), sums

    def _chunk(self, h: Tensor, w: Tensor, targets: Tensor, *columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, sums and the gradient of the logits [n, vocab] of some targets, while their logits are in cache."""
        logp, entropy, soft = policy_of(h, w, targets, self.how)
        with torch.enable_grad():
            total, sums = self.learn(Targets(*columns), logp.requires_grad_(), entropy)
            (slope,) = torch.autograd.grad(total, logp)
        return total.detach(), sums, steepness(soft, targets, slope, self.spec.temperature).to(h.dtype)

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

    def learn(self, known: Targets, logp: Tensor, entropy: Tensor, answers: int = 0) -> tuple[Tensor, Tensor]:
        """The policy's loss and sums (all but the value's) from what the model gives each target [n]; ``answers`` that
        they belong to count at the sequence level."""
        spec, real = self.spec, known.weight > 0
        # a slot that only pads must not lead to infinities, which a weight of 0 would make NaN
        logp = torch.where(real, logp, 0.0)
        # on the first of a rollout's updates the model is still the one that sampled
        old = torch.where(torch.isnan(known.old), logp.detach(), known.old)
        apart = logp - old
        if self.level == "sequence":  # the last collects what only pads
            apart = by_answer(apart, known.answer, answers + 1)[known.answer]
        ratio = torch.exp(apart)
        each, low, high = surrogate(logp, ratio, known.advantage, self.clip)
        if spec.importance_sampling_clip_max:
            # the sampler's arithmetic is not the trainer's to the last bit
            each = each * torch.exp(old - known.sampled).clamp(max=spec.importance_sampling_clip_max)
        kl = torch.zeros_like(logp)
        if spec.beta and spec.algorithm != "ppo":  # PPO has it in the reward
            kl = divergence(logp, known.reference, spec.kl_estimator)
            each = each + spec.beta * (kl * ratio if spec.use_bias_correction_kl else kl)
        elif spec.beta:
            kl = divergence(logp.detach(), known.reference, spec.kl_estimator)
        total = torch.where(real, each * known.weight, 0.0).sum()
        observed = (kl, entropy, low.float(), high.float(), (old - known.sampled).abs())
        sums = [total, *(torch.where(real, values, 0.0).sum() for values in observed), real.sum().float()]
        return total, torch.stack([s.detach().float() for s in sums])

    def learn_value(self, batch: PolicyBatch, value: Tensor) -> tuple[Tensor, Tensor]:
        """PPO's loss of the values [n], weighed, and the plain sum of it."""
        real = batch.weight > 0
        miss = value_loss(value, batch.value, batch.returns, self.spec.ppo.cliprange_value)
        weighed = torch.where(real, miss * batch.weight, 0.0).sum()
        return self.spec.ppo.vf_coef * weighed, torch.where(real, miss, 0.0).sum()


def add_value_head(model: Transformer) -> None:
    """Give ``model`` a linear head [dim] for the value of each token, which starts at zero."""
    model.register_parameter(VALUE, nn.Parameter(torch.zeros(model.config.dim)))
