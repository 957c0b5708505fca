"""Logits to the next token of each sequence, with its log-probability, in torch on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.generation.sampling import Sampling


def penalise(logits: Tensor, sampling: Sampling, prompt: Tensor, answer: Tensor) -> Tensor:
    """Logits [vocab] after the penalties for the ids of ``prompt`` and ``answer`` (int64 each)."""
    counts = torch.bincount(answer, minlength=len(logits))
    if sampling.repetition_penalty != 1:
        seen = counts > 0
        seen[prompt] = True
        penalty = sampling.repetition_penalty
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    return logits - sampling.frequency_penalty * counts - sampling.presence_penalty * (counts > 0)


def choose(logits: Tensor, samplings: Sequence[Sampling], uniform: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The next tokens int64 [rows] and their log-probabilities fp32 [rows] under what they were drawn from.

    ``logits`` [rows, vocab] fp32 with penalties applied. A token is the inverse of the cumulative distribution, in the
    order of ids, at the row's ``uniform`` number. Greedy rows take the likeliest (the lowest id of equal ones), and
    their log-probability is that of the whole softmax.
    """
    device = logits.device
    logits = logits - logits.amax(-1, keepdim=True)
    told = torch.tensor([[s.temperature for s in samplings], uniform], dtype=torch.float64).to(device)
    greedy, temperature = told[0] == 0, told[0].float()
    logits = logits / torch.where(greedy, 1.0, temperature)[:, None]
    drawing = [s for s in samplings if s.temperature]
    if any(s.top_k or s.top_p < 1 for s in drawing):
        logits = _narrow(logits, samplings)
    if any(s.min_p for s in drawing):
        floor = torch.tensor([s.min_p if s.temperature else 0.0 for s in samplings], device=device)
        logits = logits.masked_fill(logits.exp() < floor[:, None], -torch.inf)
    chosen = logits.argmax(-1)
    if drawing:
        cumulative = torch.softmax(logits, -1, dtype=torch.float64).cumsum(-1)
        # what rounding leaves above the last sum must not fall on a token that was cut
        point = told[1] * cumulative[:, -1]
        drawn = torch.searchsorted(cumulative, point[:, None], right=True)[:, 0]
        chosen = torch.where(greedy, chosen, drawn)
    return chosen, torch.log_softmax(logits, -1).gather(1, chosen[:, None])[:, 0]


def _narrow(logits: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """Logits [rows, vocab] with -inf where a row's top-k or top-p cuts."""
    vocab, device = logits.shape[1], logits.device
    narrow = [s.temperature > 0 for s in samplings]
    top_k = torch.tensor([s.top_k if n and s.top_k else vocab for s, n in zip(samplings, narrow, strict=True)])
    top_p = torch.tensor([s.top_p if n else 1.0 for s, n in zip(samplings, narrow, strict=True)], dtype=torch.float64)
    values, order = torch.sort(logits, descending=True, stable=True)
    cut = torch.arange(vocab, device=device) >= top_k.to(device)[:, None]
    weights = torch.softmax(values.masked_fill(cut, -torch.inf), -1, dtype=torch.float64)
    before = weights.cumsum(-1) - weights
    cut |= (before >= top_p.to(device)[:, None]) & (top_p.to(device)[:, None] < 1)
    return logits.masked_fill(torch.zeros_like(cut).scatter(1, order, cut), -torch.inf)


def top_logprobs(logits: Tensor, count: int, chosen: int) -> list[tuple[int, float]]:
    """The ``count`` likeliest tokens of logits [vocab] as the model made them, with their log-probabilities; the
    ``chosen`` one follows them where it is not among them."""
    own = torch.log_softmax(logits, -1)
    values, ids = own.topk(min(count, len(logits)))
    top = list(zip(ids.tolist(), values.tolist(), strict=True))
    return top if chosen in ids else [*top, (chosen, float(own[chosen]))]
