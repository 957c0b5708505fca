"""The records of ``costs.json``: what a form of a model is and costs."""

from __future__ import annotations

from typing import NotRequired, TypedDict


class Share(TypedDict):
    """Right answers of ``n`` items of a set, and how many points that is above the original with a 95 % interval."""

    n: int
    share: float
    difference: NotRequired[float]
    low: NotRequired[float]
    high: NotRequired[float]


class Cost(TypedDict):
    """What a form is and costs; what was not measured is left out, and ``why`` says it.

    ``bits_per_byte`` of held-out text; ``kl``: mean KL divergence of its next-token distribution from the original's in
    nats; ``same_top``: share of tokens whose likeliest successor is the original's; ``tokens_per_second`` of one greedy
    stream on this machine; ``exams`` by set.
    """

    bytes: int
    bits_per_byte: NotRequired[float]
    kl: NotRequired[float]
    same_top: NotRequired[float]
    tokens_per_second: NotRequired[float]
    exams: NotRequired[dict[str, Share]]
    why: NotRequired[str]
