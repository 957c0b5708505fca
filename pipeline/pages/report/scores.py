"""The scores of ``evaluate`` as rows of a comparison: one row per score, one cell per model, from first to last.

Every share carries its 95 % interval and the number it is of, and is marked where it is no better than guessing: where
the interval covers what guessing gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict

WORSE, NO_BETTER = "worse than guessing", "no better than guessing"
_SETS = {"training": "Training questions answered correctly", "heldout": "Held-out questions answered correctly"}
_LANGUAGES = {"zh": "Chinese", "en": "English"}
_OVERLAPS = {
    "clean": "clean",
    "overlapping": "overlapping",
    "in_distribution": "in-distribution",
    "too_short": "too short to tell",
}


class Bits(TypedDict):
    """Loss on held-out text: bits per byte, over how many bytes."""

    value: float
    bytes: int


class Share(TypedDict):
    """``right`` of ``asked`` with a 95 % interval, all 0..1; preferences also have the mean ``margin`` with its own."""

    right: int
    asked: int
    share: float
    low: float
    high: float
    chance: NotRequired[float]
    at_chance: NotRequired[bool]
    margin: NotRequired[float]
    margin_low: NotRequired[float]
    margin_high: NotRequired[float]


class ModelScores(TypedDict):
    """One model in ``scores.json``; shares by "all", language, set and "overlap.<which>"."""

    place: int
    bits_per_byte: Bits | None
    answers: dict[str, dict[str, Share]]
    choices: dict[str, Share]
    preferences: dict[str, Share]
    against_reference: NotRequired[dict[str, Share]]


class Answer(TypedDict):
    """A question in ``answers.jsonl`` with what every model said to it."""

    set: str
    lang: str
    question: str
    answer: object
    said: dict[str, str]
    right: dict[str, bool]


Kind = Literal["bits", "share", "margin"]


@dataclass(frozen=True)
class Score:
    """A number as it is shown: ``basis`` is what it rests on, ``verdict`` a word on guessing or nothing."""

    value: float
    text: str
    basis: str
    verdict: str = ""
    share: Share | None = None


@dataclass(frozen=True)
class Row:
    """One line of the comparison; ``part`` is a part of the row above it."""

    label: str
    kind: Kind
    scores: tuple[Score | None, ...]
    part: bool = False

    def change(self, i: int) -> str:
        """The difference to the model before, with its sign; nothing where one of the two has no score."""
        own, before = self.scores[i], self.scores[i - 1] if i else None
        if own is None or before is None:
            return ""
        difference = own.value - before.value
        return {"bits": f"{difference:+.3f}", "share": f"{100 * difference:+.1f}", "margin": f"{difference:+.2f}"}[
            self.kind
        ]

    def direction(self, i: int) -> str:
        """Whether the change as shown is for the better (up), the worse (down), or none (same)."""
        shown = float(self.change(i) or 0) * (-1 if self.kind == "bits" else 1)
        return "up" if shown > 0 else "down" if shown < 0 else "same"


def comparison(models: Sequence[ModelScores]) -> list[Row]:
    """All rows; a score that no model has is left out."""
    rows = [Row("Bits per byte of held-out text", "bits", tuple(_bits(model["bits_per_byte"]) for model in models))]
    sets = sorted(
        {name for model in models for name in model["answers"]}, key=lambda n: (n not in _SETS, n != "training", n)
    )
    for name in sets:
        label = _SETS.get(name, f"Questions of “{name}” answered correctly")
        rows += _with_parts(label, [model["answers"].get(name, {}) for model in models])
    rows += _with_parts("Multiple choice", [model["choices"] for model in models])
    rows += _with_parts("Preference accuracy", [model["preferences"] for model in models])
    rewards = [model.get("against_reference", {}) for model in models]
    rows += _with_parts("Reward accuracy against the sft model", rewards)
    margins = tuple(_margin(reward.get("all")) for reward in rewards)
    rows.append(Row("Reward margin against the sft model (nats)", "margin", margins))
    return [row for row in rows if any(row.scores)]


def _with_parts(label: str, tables: Sequence[dict[str, Share]]) -> list[Row]:
    """A row over all items, and rows by language, set and overlap with training; a part that is the whole is told in
    the label."""
    keys = sorted({key for table in tables for key in table if key != "all"}, reverse=True)
    overlaps = [f"overlap.{name}" for name in _OVERLAPS if f"overlap.{name}" in keys]
    others = [key for key in keys if key not in overlaps]
    names = _LANGUAGES | {f"overlap.{name}": text for name, text in _OVERLAPS.items()}
    shown = [*(others if len(others) > 1 else []), *(overlaps if len(overlaps) > 1 else [])]
    whole = f"{label} ({names[overlaps[0]]})" if len(overlaps) == 1 else label
    return [
        Row(whole, "share", tuple(_share(table.get("all")) for table in tables)),
        *(Row(names.get(key, key), "share", tuple(_share(table.get(key)) for table in tables), True) for key in shown),
    ]


def _bits(cell: Bits | None) -> Score | None:
    return Score(cell["value"], f"{cell['value']:.3f}", f"{cell['bytes']:,} bytes") if cell else None


def _share(cell: Share | None) -> Score | None:
    if cell is None:
        return None
    verdict = NO_BETTER if cell.get("at_chance") else WORSE if cell["high"] < cell.get("chance", 0) else ""
    basis = f"{100 * cell['low']:.0f} to {100 * cell['high']:.0f} %, n = {cell['asked']:,}"
    return Score(cell["share"], f"{100 * cell['share']:.1f} %", basis, verdict, cell)


def _margin(cell: Share | None) -> Score | None:
    if cell is None or "margin" not in cell:
        return None
    low, high = cell.get("margin_low", cell["margin"]), cell.get("margin_high", cell["margin"])
    verdict = NO_BETTER if low <= 0 <= high else WORSE if high < 0 else ""
    return Score(cell["margin"], f"{cell['margin']:+.2f}", f"{low:+.2f} to {high:+.2f}, n = {cell['asked']:,}", verdict)


def pick_samples(answers: Sequence[Answer], count: int) -> list[Answer]:
    """Held-out questions first, languages in turn, spread evenly over the set: not chosen for looks."""
    pool = [a for a in answers if a["set"] != "training"] or list(answers)
    langs = sorted({a["lang"] for a in pool}, reverse=True)
    chosen: list[Answer] = []
    for turn, lang in enumerate(langs):
        own = [a for a in pool if a["lang"] == lang]
        room = count // len(langs) + (turn < count % len(langs))
        chosen += [own[i * len(own) // room] for i in range(min(room, len(own)))]
    return chosen
