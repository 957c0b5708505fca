"""Measures of the standard exams as lm-evaluation-harness 0.4 defines them, and how sure they are. No torch.

- ``acc``: the choice of the highest log-likelihood; ``acc_norm``: per character; ``acc_bytes``: per byte. Of equal
  ones the first counts, but of a minimal pair (BLiMP) each half: a model that does not tell them apart knows nothing
  (BabyLM's pipeline counted them as right).
- ``exact_match``: the number after ``####``; ``flexible``: the last number of the answer; both without ``$``, thousands
  separators and a full stop at the end.
- Standard errors: sample deviation over the root of n; of an exam of several subjects their pooled variance.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np

from model.generation.judge import wilson

Item = dict[str, Any]
HEADLINE = {
    "ceval": "acc", "cmmlu": "acc", "mmlu": "acc", "blimp": "acc", "arc": "acc_norm", "hellaswag": "acc_norm",
    "piqa": "acc_norm", "openbookqa": "acc_norm", "gsm8k": "exact_match",
}  # fmt: skip
"""The measure that is reported for each exam."""
INVALID = "[invalid]"
_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = [re.compile(pattern) for pattern in (",", r"\$", r"(?s).*#### ", r"\.$")]


class Said(TypedDict):
    """What a model gave for an item: log-likelihoods of its choices in nats, or its answer; ``None`` in their place
    when the item could not be asked, with the reason."""

    log_likelihood: list[float] | None
    answer: str | None
    why: str


class Measured(TypedDict):
    """A measure: its value with the harness's standard error, and a 95 % interval (Wilson)."""

    value: float
    stderr: float
    low: float
    high: float


def credits(item: Item, said: Said) -> dict[str, float]:
    """What an item counts by each measure, 0 to 1."""
    if not item["choices"]:
        answer = said["answer"] or ""
        return {
            "exact_match": _same(strict(answer), item["target"]),
            "flexible": _same(flexible(answer), item["target"]),
        }
    values = np.array(said["log_likelihood"])
    lengths = np.array([float(len(choice)) for choice in item["choices"]])
    sizes = np.array([float(len(choice.encode())) for choice in item["choices"]])
    ranked = {"acc": values, "acc_norm": values / lengths, "acc_bytes": values / sizes}
    return {name: _credit(by, item["correct"], item["form"] == "blimp") for name, by in ranked.items()}


def chosen(item: Item, said: Said) -> int | None:
    """The choice that counts by the exam's own measure."""
    if not item["choices"] or said["log_likelihood"] is None:
        return None
    values = np.array(said["log_likelihood"])
    if HEADLINE[item["form"]] == "acc_norm":
        values = values / np.array([float(len(choice)) for choice in item["choices"]])
    return int(values.argmax())


def _credit(values: np.ndarray, correct: int, halves: bool) -> float:
    best = np.flatnonzero(values == values.max())
    return float(correct in best) / len(best) if halves else float(best[0] == correct)


def strict(answer: str) -> str:
    """The number after ``####``, as it is written; ``[invalid]`` without one."""
    found = _STRICT.findall(answer)
    return found[0].strip() if found else INVALID


def flexible(answer: str) -> str:
    """The last number of an answer, as it is written; ``[invalid]`` without one."""
    found = _FLEXIBLE.findall(answer)
    return next((part for part in found[-1] if part), INVALID).strip() if found else INVALID


def _same(found: str, target: str) -> float:
    texts = [found, target]
    for pattern in _IGNORED:
        texts = [pattern.sub("", text) for text in texts]
    return float(texts[0].lower() == texts[1].lower())


def standard_error(values: Sequence[float]) -> float:
    """Sample deviation over the root of n; 0 of fewer than two."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def pooled(errors: Sequence[float], sizes: Sequence[int]) -> float:
    """The standard error of a mean over groups of these sizes and standard errors."""
    if sum(sizes) <= len(sizes):
        return 0.0
    variance = sum((n - 1) * error**2 * n for n, error in zip(sizes, errors, strict=True)) / (sum(sizes) - len(sizes))
    return math.sqrt(variance / sum(sizes))


def measured(parts: Sequence[Sequence[float]]) -> Measured:
    """A measure over the items of several subjects together, each item counting the same."""
    values = [value for part in parts for value in part]
    low, high = wilson(sum(values), len(values))
    errors = [standard_error(part) for part in parts]
    error = standard_error(values) if len(parts) == 1 else pooled(errors, [len(part) for part in parts])
    return {"value": sum(values) / len(values), "stderr": error, "low": low, "high": high}


def table(items: Sequence[Item], said: Sequence[Said]) -> dict[str, Any]:
    """The scores of one exam: ``n`` items asked, ``measures`` over all, by ``subjects``, ``groups``, ``overlap`` with
    the training data, the mean over subjects (``macro``), the exam's own measure (``headline``), what guessing gives
    (``chance``), and how many items could not be asked (``unasked``)."""
    asked = [(item, credits(item, own)) for item, own in zip(items, said, strict=True) if not own["why"]]
    form = items[0]["form"]
    row: dict[str, Any] = {
        "form": form,
        "shots": items[0]["shots"],
        "headline": HEADLINE[form],
        "n": len(asked),
        "unasked": len(items) - len(asked),
    }
    if not asked:
        return row
    row["chance"] = float(np.mean([1 / len(i["choices"]) if i["choices"] else 0.0 for i, _ in asked]))
    names = list(asked[0][1])
    by = _members([item for item, _ in asked])
    subjects = by["subjects"]

    def of(members: Sequence[int]) -> dict[str, Measured]:
        inside = set(members)
        parts = [[i for i in own if i in inside] for own in subjects.values()]
        return {name: measured([[asked[i][1][name] for i in part] for part in parts if part]) for name in names}

    row["measures"] = of(range(len(asked)))
    for kind, groups in by.items():
        if len(groups) > 1 or (kind == "overlap" and groups):
            row[kind] = {name: {"n": len(own), "measures": of(own)} for name, own in groups.items()}
    if len(subjects) > 1:
        row["macro"] = {
            name: float(np.mean([np.mean([asked[i][1][name] for i in own]) for own in subjects.values()]))
            for name in names
        }
    return row


def _members(items: Sequence[Item]) -> dict[str, dict[str, list[int]]]:
    """Indices of the items by subject, by group, and by overlap with the training data."""
    found: dict[str, dict[str, list[int]]] = {"subjects": {}, "groups": {}, "overlap": {}}
    for i, item in enumerate(items):
        found["subjects"].setdefault(item["subject"], []).append(i)
        if item["group"]:
            found["groups"].setdefault(item["group"], []).append(i)
        if "overlap" in item:
            found["overlap"].setdefault(item["overlap"], []).append(i)
    return {kind: dict(sorted(groups.items())) for kind, groups in found.items()}
