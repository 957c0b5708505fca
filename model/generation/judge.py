"""When an answer counts as right, and how sure a score is. No torch: small functions over strings and numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

Item = dict[str, Any]
_NUMBER = re.compile(r"(?<![0-9A-Za-z])([-+−]?)\$?(\d{1,3}(?:,\d{3})+(?!\d)|\d+)(\.\d+)?")
_MARKS = (re.compile(r"####\s*(?=[-+−$\d])"), re.compile(r"\\boxed\{(?=[-+−$\d])"))
"""What stands before a final number: GSM8K's mark, and the box of other mathematical sets."""
_OTHERS = 32
"""Other answers that are tried on a question to see what an answer is right by accident."""


def is_right(answer: str, keywords: Sequence[Sequence[str]], reference: str, number: str | None = None) -> bool:
    """Whether ``answer`` states the fact: every keyword group has a word that occurs in it (case does not count).

    With ``number`` its final number must equal that. Without keywords, at least half of the reference's pairs of
    neighbouring characters must occur in the answer; this is GPT_teacher's acceptance rule, made for short Chinese
    answers.
    """
    if number is not None:
        found = final_number(answer)
        return found is not None and found == final_number(number)
    said = answer.casefold()
    if keywords:
        return all(any(word.casefold() in said for word in group) for group in keywords)
    wanted = "".join(reference.casefold().split())
    pairs = {wanted[i : i + 2] for i in range(len(wanted) - 1)} or {wanted}
    said = "".join(said.split())
    return bool(said) and sum(pair in said for pair in pairs) * 2 >= len(pairs)


def final_number(text: str) -> Fraction | None:
    """The number after the first ``####`` or inside the first box, else the last number of the text; None without one.

    Thousands separators, a currency sign and trailing zeros do not count, a minus does unless it joins two numbers.
    """
    for mark in _MARKS:
        if at := mark.search(text):
            number = _NUMBER.match(text, at.end())
            return _value(number) if number else None
    numbers = list(_NUMBER.finditer(text))
    return _value(numbers[-1]) if numbers else None


def _value(number: re.Match[str]) -> Fraction:
    sign, whole, part = number.groups()
    value = Fraction(whole.replace(",", "") + (part or ""))
    return -value if sign in ("-", "−") else value


def right(item: Item, answer: str) -> bool:
    """Whether ``answer`` is right by the item's number, keywords or reference answer."""
    return is_right(answer, item["keywords"], item["answer"], item.get("number"))


def by_accident(items: Sequence[Item]) -> list[tuple[float, float]]:
    """What needs no knowledge, of each item: whether the question said again is right (0 or 1), and the share of other
    questions' answers (up to 32 of the same set and language) that are."""
    pools: dict[tuple[str, str], list[str]] = {}
    for item in items:
        pool = pools.setdefault((item["set"], item["lang"]), [])
        pool.append(item["answer"] or " ".join(group[0] for group in item["keywords"]))
    distinct = {key: sorted(set(pool)) for key, pool in pools.items()}
    rows = []
    for i, item in enumerate(items):
        own = item["answer"] or " ".join(group[0] for group in item["keywords"])
        others = [text for text in distinct[item["set"], item["lang"]] if text != own]
        count = min(_OTHERS, len(others))
        tried = [others[(i + k * len(others) // count) % len(others)] for k in range(count)]
        rate = sum(right(item, text) for text in tried) / len(tried) if tried else 0.0
        rows.append((float(right(item, item["question"])), rate))
    return rows


def wilson(right: float, count: int, z: float = 1.96) -> tuple[float, float]:
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


def share(flags: Sequence[float], chance: float | None = None) -> dict[str, float | int | bool]:
    """The share of ``flags`` (0 to 1 each: ties count in part) with its interval; with ``chance``, whether the interval
    covers it (then nothing has been shown)."""
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
