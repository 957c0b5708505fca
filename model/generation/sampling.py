"""How the next token of a sequence is chosen, and the random numbers that it is drawn with."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sampling:
    """What is done to the logits before a token is drawn, in this order, and the seed of the draw.

    1. ``repetition_penalty`` (CTRL, Keskar et al. 2019): a positive logit of a token of prompt or answer is divided by
       it, a negative one multiplied; 1 is off.
    2. ``frequency_penalty`` times the count of a token in the answer, and ``presence_penalty`` where that is not 0, are
       subtracted (OpenAI's definition; each in [-2, 2]); 0 is off.
    3. ``temperature`` divides; 0 is greedy, and what follows is of no effect.
    4. ``top_k`` keeps the likeliest tokens, of equal ones the lower ids; 0 is off.
    5. ``top_p`` (nucleus, Holtzman et al. 2020) keeps the likeliest of what is left until they have this share of it;
       1 is off.
    6. ``min_p`` (Nguyen et al. 2024, arXiv:2407.01082) keeps those at least this share as likely as the likeliest.

    The order and the meaning of each are those of ``transformers``. Raises ValueError for values that mean nothing.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("top_k", "seed"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{name} must be a whole number, not {value!r}")
        for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, not {value!r}")
        for name in ("temperature", "top_k"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        if 0 < self.temperature < 1e-5:
            raise ValueError(f"temperature must be 0 (greedy) or at least 1e-5, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], not {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must lie in [0, 1], not {self.min_p}")
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty must be positive, not {self.repetition_penalty}")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2 <= getattr(self, name) <= 2:
                raise ValueError(f"{name} must lie in [-2, 2], not {getattr(self, name)}")

    @property
    def knobs(self) -> tuple[float, ...]:
        """All but the seed, as the compiled chooser takes them."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return self.temperature, self.top_k, self.top_p, self.min_p, *penalties

    @property
    def penalised(self) -> bool:
        """Whether earlier tokens change the logits."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


GREEDY = Sampling()


def draws(prompt: Sequence[int], seed: int, sample: int, count: int) -> np.ndarray:
    """Uniform numbers [count] float64 in [0, 1) of one sequence. They follow from ``seed``, the prompt and the number
    of the sample among those of the same prompt, and from nothing else; more of them begin with the same ones."""
    name = hashlib.blake2b(repr((seed, sample, tuple(prompt))).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(name, "big"))).random(count)
