"""Text generation with a KV cache: batched, greedy or sampled, the same for the same seed.

Prompts of different lengths are aligned at the right; a sequence that has ended leaves the batch. What a sequence says
depends on no neighbour: its positions count from its own first token, its room is what its own prompt leaves, and its
random numbers follow from the seed and its prompt.

Limit: a prompt with its answer must fit the model's ``max_seq_len``; there is no sliding window.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.network.transformer import KVCache, Transformer


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. ``temperature`` 0 is greedy; ``top_k`` 0, ``top_p`` 1 and ``repetition_penalty`` 1
    are off.

    Nucleus sampling: Holtzman et al. 2020; the repetition penalty is CTRL's (Keskar et al. 2019) over prompt and
    answer.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must not be negative, not {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must not be negative, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], not {self.top_p}")
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty must be positive, not {self.repetition_penalty}")


GREEDY = Sampling()


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    stop: Collection[int],
    max_new_tokens: int = 256,
    sampling: Sampling = GREEDY,
) -> list[list[int]]:
    """New token ids after each prompt, without the stop token that ended them.

    Raises ValueError for an empty prompt, or one that leaves no room in ``max_seq_len``.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    for step in _steps(model, prompts, stop, max_new_tokens, sampling):
        for row, token in step:
            answers[row].append(token)
    return answers


def stream(
    model: Transformer,
    prompt: Sequence[int],
    *,
    stop: Collection[int],
    max_new_tokens: int = 256,
    sampling: Sampling = GREEDY,
) -> Iterator[int]:
    """The same for one prompt, a token at a time."""
    for step in _steps(model, [prompt], stop, max_new_tokens, sampling):
        yield from (token for _, token in step)


@torch.no_grad()  # not inference_mode: what the model caches would be unusable for training after it
def _steps(
    model: Transformer, prompts: Sequence[Sequence[int]], stop: Collection[int], max_new_tokens: int, sampling: Sampling
) -> Iterator[list[tuple[int, int]]]:
    """Yield, a step at a time, ``(row, token)`` of every sequence that goes on."""
    if not prompts:
        return
    rooms = _rooms(prompts, model.config.max_seq_len, max_new_tokens)
    longest, steps = max(map(len, prompts)), max(rooms)
    device = model.head.device
    pad = torch.tensor([longest - len(p) for p in prompts], device=device)
    tokens = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    cache = model.cache(len(prompts), longest + steps, pad=pad if bool(pad.any()) else None)
    choose = _Chooser(sampling, prompts, tokens, pad, model.config.vocab_size, steps)
    rows = list(range(len(prompts)))
    for step in range(steps):
        tokens = choose(model(tokens, cache=cache, last=True)[:, -1], step)
        said = [(i, row, token) for i, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True))]
        said = [(i, row, token) for i, row, token in said if token not in stop]
        if said:
            yield [(row, token) for _, row, token in said]
        going = [(i, row) for i, row, _ in said if step + 1 < rooms[row]]
        if not going:
            return
        if len(going) < len(rows):
            kept = torch.tensor([i for i, _ in going], device=device)
            rows = [row for _, row in going]
            tokens = tokens[kept]
            choose.keep(kept)
            _keep(cache, kept)
        tokens = tokens[:, None]


def _rooms(prompts: Sequence[Sequence[int]], window: int, wanted: int) -> list[int]:
    """How many tokens each prompt may get: what is ``wanted``, and at most what it leaves of the window itself."""
    if not all(prompts):
        raise ValueError("a prompt is empty; give at least one token")
    longest = max(map(len, prompts))
    if longest >= window:
        raise ValueError(
            f"a prompt of {longest} tokens leaves no room for an answer: the model reads at most {window} (max_seq_len)"
        )
    return [min(wanted, window - len(prompt)) for prompt in prompts]


def _keep(cache: KVCache, kept: Tensor) -> None:
    """Drop the sequences that have ended from the cache."""
    cache.keys, cache.values = cache.keys[:, kept], cache.values[:, kept]
    if cache.pad is not None:
        cache.pad = cache.pad[kept]


class _Chooser:
    """Logits [rows, vocab] to the next token of each row."""

    def __init__(
        self, sampling: Sampling, prompts: Sequence[Sequence[int]], tokens: Tensor, pad: Tensor, vocab: int, steps: int
    ) -> None:
        self.sampling = sampling
        draws = _draws(prompts, sampling.seed, steps) if sampling.temperature else None
        self.uniform = None if draws is None else torch.from_numpy(draws).to(tokens.device)
        self.seen = (
            torch.zeros((len(tokens), vocab), dtype=torch.bool, device=tokens.device)
            if sampling.repetition_penalty != 1
            else None
        )
        if self.seen is not None:
            real = torch.arange(tokens.shape[1], device=tokens.device) >= pad[:, None]
            for row, line, own in zip(self.seen, tokens, real, strict=True):
                row[line[own]] = True

    def keep(self, kept: Tensor) -> None:
        self.uniform = None if self.uniform is None else self.uniform[kept]
        self.seen = None if self.seen is None else self.seen[kept]

    def __call__(self, logits: Tensor, step: int) -> Tensor:
        if self.seen is not None:
            penalty = self.sampling.repetition_penalty
            logits = torch.where(self.seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
        chosen = logits.argmax(-1) if self.uniform is None else self._draw(logits, self.uniform[:, step])
        if self.seen is not None:
            self.seen.scatter_(1, chosen[:, None], True)
        return chosen

    def _draw(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Inverse of the cumulative distribution over the tokens that top-k and top-p leave, most likely first."""
        values, order = torch.sort(logits / self.sampling.temperature, descending=True, stable=True)
        weights = torch.softmax(values, -1)
        before = weights.cumsum(-1) - weights
        weights = torch.where(before < self.sampling.top_p, weights, 0.0)
        if self.sampling.top_k:
            weights[:, self.sampling.top_k :] = 0.0
        cumulative = weights.cumsum(-1)
        place = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)
        allowed = (weights > 0).sum(-1, keepdim=True) - 1
        return order.gather(1, torch.minimum(place, allowed))[:, 0]


def _draws(prompts: Sequence[Sequence[int]], seed: int, steps: int) -> np.ndarray:
    """Uniform numbers [prompts, steps] fp32. A row follows from ``seed``, its prompt and how many equal prompts precede
    it, and from nothing else in the batch."""
    rows, before = np.empty((len(prompts), steps), np.float32), Counter[tuple[int, ...]]()
    for row, prompt in zip(rows, map(tuple, prompts), strict=True):
        name = hashlib.blake2b(repr((seed, before[prompt], prompt)).encode(), digest_size=16).digest()
        row[:] = np.random.Generator(np.random.PCG64(int.from_bytes(name, "big"))).random(steps, np.float32)
        before[prompt] += 1
    return rows
