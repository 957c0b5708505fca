"""When an answer counts as right, and how sure a score is. No torch: small functions over strings and numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def is_right(answer: str, keywords: Sequence[Sequence[str]], reference: str) -> bool:
    """Whether ``answer`` states the fact: every keyword group has a word that occurs in it (case does not count).

    Without keywords, at least half of the reference's pairs of neighbouring characters must occur in the answer; this
    is GPT_teacher's acceptance rule, made for short Chinese answers.
    """
    said = answer.casefold()
    if keywords:
        return all(any(word.casefold() in said for word in group) for group in keywords)
    wanted = "".join(reference.casefold().split())
    pairs = {wanted[i : i + 2] for i in range(len(wanted) - 1)} or {wanted}
    said = "".join(said.split())
    return bool(said) and sum(pair in said for pair in pairs) * 2 >= len(pairs)


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % confidence interval of a share (Wilson 1927), which stays honest near 0 and 1 and for small sets."""
    if count == 0:
        return 0.0, 1.0
    share = right / count
    scale = 1 + z * z / count
    middle = (share + z * z / (2 * count)) / scale
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap_mean(values: Sequence[float], seed: int, draws: int = 2000) -> tuple[float, float]:
    """95 % percentile interval of the mean (Efron 1979); NaN-free: a set of none gives (0, 0)."""
    if not len(values):
        return 0.0, 0.0
    data = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = np.array([data[rng.integers(0, len(data), len(data))].mean() for _ in range(draws)])
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def share(flags: Sequence[bool], chance: float | None = None) -> dict[str, float | int | bool]:
    """A share with its interval; with ``chance``, whether the interval covers it (then nothing has been shown)."""
    right, asked = sum(flags), len(flags)
    low, high = wilson(right, asked)
    row: dict[str, float | int | bool] = {
        "right": right,
        "asked": asked,
        "share": right / asked if asked else 0.0,
        "low": low,
        "high": high,
    }
    return row if chance is None else {**row, "chance": chance, "at_chance": low <= chance <= high}


def groups(items: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
    """Indices of "all" items, of each language's, of each set's where there are several, and of each ``overlap`` as
    "overlap.<which>"; none of no items."""
    members = {"all": list(range(len(items)))} if items else {}
    sets = {item["set"] for item in items}
    for key, names in (("lang", {item["lang"] for item in items}), ("set", sets if len(sets) > 1 else set())):
        for name in sorted(names):
            members[name] = [i for i, item in enumerate(items) if item[key] == name]
    for name in sorted({item["overlap"] for item in items if "overlap" in item}):
        members[f"overlap.{name}"] = [i for i, item in enumerate(items) if item.get("overlap") == name]
    return members
