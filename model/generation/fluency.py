"""What can be seen of answers without knowing whether they are right. No torch.

- ``loops``: the share that end in the same words again and again (a piece of up to 60 characters at least four times);
- ``distinct``: different pairs of neighbouring words (of Chinese: characters) among all of an answer's (Li et al. 2016,
  arXiv:1510.03055), the mean over answers with at least two pairs;
- ``language``: the share in the language of the question, by script;
- ``tagged``: of a model that writes reasoning or answer tags, the share that have one, and ``well_formed`` the share of
  these whose tags are whole and in order;
- ``empty``: the share that say nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypedDict

from model.generation.judge import bootstrap_mean, wilson
from model.tokens.reply import well_formed

MEASURES = ("empty", "loops", "distinct", "language", "tagged", "well_formed")
_LOOP = re.compile(r"(.{1,60}?)\1{3,}\W*\Z", re.DOTALL)
_WORD = re.compile(r"[一-鿿]|[^\W一-鿿]+")
_TAG = re.compile(r"</?(?:think|answer)>")
_TAIL = 600


def loops(text: str) -> bool:
    """Whether a text ends in a piece of it again and again."""
    found = _LOOP.search(text[-_TAIL:])
    return found is not None and len(found[0]) >= 8 and any(character.isalnum() for character in found[1])


def distinct(text: str) -> float | None:
    """The share of different pairs of words among all; None of fewer than two pairs."""
    pairs = list(pairwise(_WORD.findall(text.lower())))
    return len(set(pairs)) / len(pairs) if len(pairs) > 1 else None


def language(text: str) -> str | None:
    """ "zh" where more than a fifth of the letters are Chinese, else "en"; None without letters."""
    letters = [character for character in text if character.isalpha()]
    chinese = sum("一" <= character <= "鿿" for character in letters)
    return None if not letters else "zh" if chinese * 5 > len(letters) else "en"


class Look(TypedDict):
    """A measure of ``n`` answers: the mean with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


def seen(items: Sequence[dict[str, Any]], answers: Sequence[str | None]) -> dict[str, list[float | None]]:
    """What every answer counts by each measure; None for one that there is not, or that a measure is not about."""
    rows: dict[str, list[float | None]] = {name: [] for name in MEASURES}
    for item, answer in zip(items, answers, strict=True):
        for name, own in _seen(item, answer).items():
            rows[name].append(own)
    if not any(rows["tagged"]):
        rows["tagged"] = [None] * len(answers)
    return rows


def _seen(item: dict[str, Any], answer: str | None) -> dict[str, float | None]:
    if answer is None:
        return dict.fromkeys(MEASURES)
    tongue = language(answer) if item["lang"] in ("zh", "en") else None
    return {
        "empty": float(not answer.strip()),
        "loops": float(loops(answer)),
        "distinct": distinct(answer),
        "language": float(item["lang"] == tongue) if tongue else None,
        "tagged": float(bool(_TAG.search(answer))),
        "well_formed": float(well_formed(answer)) if _TAG.search(answer) else None,
    }


def look(items: Sequence[dict[str, Any]], answers: Sequence[str | None], seed: int) -> dict[str, Look]:
    """The measures above over the answers that each is about; those that are about none are left out."""
    found: dict[str, Look] = {}
    for name, row in seen(items, answers).items():
        own = [value for value in row if value is not None]
        if own:
            low, high = bootstrap_mean(own, seed) if name == "distinct" else wilson(sum(own), len(own))
            found[name] = {"value": sum(own) / len(own), "low": low, "high": high, "n": len(own)}
    return found
