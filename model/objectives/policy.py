"""The formulas of reinforcement learning on language models, as pure functions over flat lists of answer tokens.

Tokens of all answers stand one after the other: ``logp`` [n] is the log-probability of each under the model that is
trained, ``old`` under the model that sampled it, ``answer`` [n] the number of its answer (below ``answers``). Names and
formulas are those of TRL 1.x's GRPOTrainer, and of the PPOTrainer of its earlier versions:

- grpo: Shao et al. 2024, arXiv:2402.03300; dr_grpo: Liu et al. 2025, arXiv:2503.20783; dapo: Yu et al. 2025,
  arXiv:2503.14476; cispo: MiniMax 2025, arXiv:2506.13585; gspo: Zheng et al. 2025, arXiv:2507.18071;
- ppo: Schulman et al. 2017, arXiv:1707.06347, with generalised advantages (Schulman et al. 2015, arXiv:1506.02438).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SPREAD = 1e-4
"""Added to a standard deviation before rewards are divided by it, as TRL does."""


def advantages(rewards: Tensor, scale: str) -> Tensor:
    """How much better an answer is than its group: ``rewards`` [groups, answers] to the same shape.

    ``scale``: divide by the standard deviation of the "group", of the "batch", or by nothing ("none").
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    if scale == "none":
        return centred
    spread = rewards.std() if scale == "batch" else rewards.std(1, keepdim=True)
    return centred / (spread + SPREAD)


def varied(rewards: Tensor) -> Tensor:
    """Which groups [groups] of ``rewards`` [groups, answers] have answers of different reward: only those teach
    anything."""
    return ~torch.isclose(rewards.max(1).values, rewards.min(1).values)


def token_weights(lengths: Tensor, how: str, longest: int) -> Tensor:
    """What each token of an answer of ``lengths`` [answers] weighs in the loss, by answer; a batch is then a plain sum.

    ``how``: mean over "answers" of the mean over their tokens (grpo), over all "tokens" (dapo), or over answers of the
    ``longest`` length ("constant", dr_grpo).
    """
    lengths = lengths.double()
    if how == "tokens":
        return torch.full_like(lengths, 1.0) / lengths.sum().clamp_min(1.0)
    if how == "constant":
        return torch.full_like(lengths, 1.0 / (len(lengths) * longest))
    return 1.0 / (len(lengths) * lengths.clamp_min(1.0))


def by_answer(values: Tensor, answer: Tensor, answers: int) -> Tensor:
    """Mean of ``values`` [n] over the tokens of each answer [answers]."""
    ones = torch.zeros(answers, device=values.device).index_add(0, answer, torch.ones_like(values))
    return torch.zeros(answers, device=values.device).index_add(0, answer, values) / ones.clamp_min(1.0)


class Clip(NamedTuple):
    """How far the ratio of new to old probability may go: ``low`` below 1 and ``high`` above, ``most`` in any case (0:
    no such limit; INTELLECT-2's delta, arXiv:2505.07291). ``cispo`` clips weights alone, at ``high``."""

    low: float
    high: float
    most: float = 0.0
    cispo: bool = False


def surrogate(logp: Tensor, ratio: Tensor, advantage: Tensor, clip: Clip) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of each token [n], and which are clipped at the low and at the high end [n] (bool).

    ``ratio`` [n] of new to old probability, ``advantage`` [n].
    """
    nothing = torch.zeros_like(ratio, dtype=torch.bool)
    if clip.cispo:
        return -ratio.clamp(max=clip.high).detach() * advantage * logp, nothing, (ratio > clip.high) & (advantage > 0)
    bounded = ratio.clamp(1 - clip.low, 1 + clip.high)
    free = ratio.clamp(max=clip.most) if clip.most else ratio
    low, high = (free < 1 - clip.low) & (advantage < 0), (free > 1 + clip.high) & (advantage > 0)
    return -torch.min(free * advantage, bounded * advantage), low, high


def divergence(logp: Tensor, reference: Tensor, estimator: str) -> Tensor:
    """An estimate of KL(model || reference) at each token [n]: "k1" is unbiased and may be negative, "k3" never is
    (Schulman 2020, joschu.net/blog/kl-approx.html)."""
    apart = reference - logp
    return -apart if estimator == "k1" else torch.exp(apart) - apart - 1


def gae(rewards: Tensor, values: Tensor, lengths: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantages [answers, T] of ``rewards`` and ``values`` [answers, T]; after an answer's ``lengths``
    tokens nothing is worth anything, and the advantage is 0."""
    inside = torch.arange(rewards.shape[1], device=rewards.device)[None, :] < lengths[:, None]
    rewards, values = rewards * inside, values * inside
    out, after, worth = torch.zeros_like(rewards), rewards.new_zeros(len(rewards)), rewards.new_zeros(len(rewards))
    for t in range(rewards.shape[1] - 1, -1, -1):
        surprise = rewards[:, t] + gamma * worth - values[:, t]
        after = surprise + gamma * lam * after
        worth, out[:, t] = values[:, t], after
    return out * inside


def whitened(values: Tensor, inside: Tensor) -> Tensor:
    """``values`` with mean 0 and variance 1 over the places where ``inside`` is true; 0 elsewhere."""
    chosen = values[inside]
    if len(chosen) < 2:
        return torch.zeros_like(values)
    return torch.where(inside, (values - chosen.mean()) * torch.rsqrt(chosen.var() + 1e-8), 0.0)


def value_loss(value: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Half the squared error of each token's value [n], which may not gain by moving further than ``clip`` from what it
    was (0: it may)."""
    loss = (value - returns).square()
    if clip:
        loss = torch.max(loss, (torch.clamp(value, old - clip, old + clip) - returns).square())
    return 0.5 * loss
