"""Two models on the same items: the difference of their scores and how sure it is. No torch.

Items that both were asked are resampled together (paired bootstrap, Efron 1979; Koehn 2004), so what makes an item hard
for both counts for neither: the interval is much narrower than those of the two scores beside each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

DRAWS = 2000


class Change(TypedDict):
    """How much a score changed: the mean difference over ``n`` items with its 95 % interval; ``sure``: the interval
    does not hold 0."""

    difference: float
    low: float
    high: float
    n: int
    sure: bool


def paired(
    own: Sequence[float | None], before: Sequence[float | None], seed: int, weights: Sequence[float] | None = None
) -> Change | None:
    """The change from ``before`` to ``own``, item by item; None where no item has both. With ``weights`` (such as
    bytes) it is the sum of differences over the sum of weights."""
    pairs = [i for i, (a, b) in enumerate(zip(own, before, strict=True)) if a is not None and b is not None]
    if not pairs:
        return None
    gains = np.array([(own[i] or 0.0) - (before[i] or 0.0) for i in pairs])
    sizes = np.ones(len(pairs)) if weights is None else np.array([weights[i] for i in pairs])
    rng, means = np.random.default_rng(seed), np.empty(DRAWS)
    step = max(1, (1 << 21) // len(pairs))
    for begin in range(0, DRAWS, step):
        drawn = rng.integers(0, len(pairs), (min(step, DRAWS - begin), len(pairs)))
        means[begin : begin + step] = gains[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = (float(edge) for edge in np.percentile(means, [2.5, 97.5]))
    difference = float(gains.sum() / sizes.sum())
    return {"difference": difference, "low": low, "high": high, "n": len(pairs), "sure": low > 0 or high < 0}


def changes(
    own: Mapping[str, Sequence[float | None]],
    before: Mapping[str, Sequence[float | None]],
    seed: int,
    weights: Mapping[str, Sequence[float]],
) -> dict[str, Change]:
    """The change of every score that both models have, by its name."""
    found = {name: paired(own[name], before[name], seed, weights.get(name)) for name in own if name in before}
    return {name: change for name, change in found.items() if change}
