"""The scores of ``evaluate`` as rows of a comparison: one row per score, one cell per model, from first to last.

Every share carries its 95 % interval and the number it is of, and is marked where it is no better than guessing: where
the interval covers what guessing gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict

from pipeline.evaluation.titles import TITLES

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
    """Loss on held-out text: bits per byte with a 95 % interval, perplexity a token, over how many bytes, and of its
    ``parts`` ("lang.zh", "source.book")."""

    value: float
    bytes: int
    low: NotRequired[float]
    high: NotRequired[float]
    perplexity: NotRequired[float]
    parts: NotRequired[dict[str, Bits]]


class Measured(TypedDict):
    """A measure of an exam with its 95 % interval."""

    value: float
    stderr: float
    low: float
    high: float


class Look(TypedDict):
    """What can be seen of ``n`` answers, with its 95 % interval (model/generation/fluency.py)."""

    value: float
    low: float
    high: float
    n: int


class ExamPart(TypedDict):
    """A subject, a group or an overlap of an exam."""

    n: int
    measures: dict[str, Measured]


class ExamScores(TypedDict):
    """A standard exam in ``scores.json`` (model/generation/measures.py)."""

    form: str
    shots: int
    headline: str
    n: int
    unasked: int
    chance: NotRequired[float]
    measures: NotRequired[dict[str, Measured]]
    macro: NotRequired[dict[str, float]]
    subjects: NotRequired[dict[str, ExamPart]]
    groups: NotRequired[dict[str, ExamPart]]
    overlap: NotRequired[dict[str, ExamPart]]


class Change(TypedDict):
    """The difference of a score to the model before, item by item, with its 95 % interval."""

    difference: float
    low: float
    high: float
    n: int
    sure: bool


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
    exams: NotRequired[dict[str, ExamScores]]
    said: NotRequired[dict[str, Look]]
    judged: NotRequired[Share]
    against_before: NotRequired[dict[str, Change]]


class Answer(TypedDict):
    """A question in ``answers.jsonl`` with what every model said to it."""

    set: str
    lang: str
    question: str
    answer: object
    said: dict[str, str]
    right: dict[str, bool]


Kind = Literal["bits", "share", "margin", "plain"]


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
        percent = f"{100 * difference:+.1f}"
        return {"bits": f"{difference:+.3f}", "share": percent, "margin": f"{difference:+.2f}", "plain": percent}[
            self.kind
        ]

    def direction(self, i: int) -> str:
        """Whether the change as shown is for the better (up), the worse (down), or none (same)."""
        if self.kind == "plain":
            return "same"
        shown = float(self.change(i) or 0) * (-1 if self.kind == "bits" else 1)
        return "up" if shown > 0 else "down" if shown < 0 else "same"


def comparison(models: Sequence[ModelScores]) -> list[Row]:
    """All rows; a score that no model has is left out."""
    rows = bits_rows(models)
    sets = sorted(
        {name for model in models for name in model["answers"]}, key=lambda n: (n not in _SETS, n != "training", n)
    )
    for name in sets:
        label = _SETS.get(name, f"Questions of “{name}” answered correctly")
        rows += _with_parts(label, [model["answers"].get(name, {}) for model in models])
    rows += exam_rows(models)
    rows += _with_parts("Multiple choice", [model["choices"] for model in models])
    rows += _with_parts("Preference accuracy", [model["preferences"] for model in models])
    judged = [{"all": own} if (own := model.get("judged")) else {} for model in models]
    rows += _with_parts("Answers better than the model before, by the judge", judged)
    rewards = [model.get("against_reference", {}) for model in models]
    rows += _with_parts("Reward accuracy against the sft model", rewards)
    margins = tuple(_margin(reward.get("all")) for reward in rewards)
    rows.append(Row("Reward margin against the sft model (nats)", "margin", margins))
    return [row for row in [*rows, *said_rows(models)] if any(row.scores)]


def bits_rows(models: Sequence[ModelScores]) -> list[Row]:
    """Bits per byte of all held-out text, and by language and source."""
    cells = [model["bits_per_byte"] for model in models]
    rows = [Row("Bits per byte of held-out text", "bits", tuple(_bits(cell) for cell in cells))]
    names = list(dict.fromkeys(name for cell in cells if cell for name in cell.get("parts", {})))
    for name in sorted(names, key=lambda name: (not name.startswith("lang."), name)):
        label = _LANGUAGES.get(name.removeprefix("lang."), name.partition(".")[2])
        parts = [cell.get("parts", {}).get(name) if cell else None for cell in cells]
        rows.append(Row(label, "bits", tuple(_bits(part) for part in parts), True))
    return rows


def exam_rows(models: Sequence[ModelScores]) -> list[Row]:
    """Each standard exam by its own measure: all of it, the mean of its subjects, its groups, and its overlaps."""
    rows: list[Row] = []
    for name in dict.fromkeys(name for model in models for name in model.get("exams", {})):
        cells = [model.get("exams", {}).get(name) for model in models]
        first = next(cell for cell in cells if cell)
        shots = f", {first['shots']} examples" if first["shots"] else ""
        title = TITLES.get(first["form"], first["form"])
        label = f"{title}{f' “{name}”' if name.lower() != title.lower() else ''} ({first['headline']}{shots})"
        tables = [_as_shares(cell) if cell else {} for cell in cells]
        rows += _with_parts(label, tables)
        macro = [cell.get("macro", {}).get(first["headline"]) if cell else None for cell in cells]
        scores = tuple(None if m is None else Score(m, f"{100 * m:.1f} %", "each subject the same") for m in macro)
        rows.append(Row("mean of its subjects", "share", scores, True))
    return rows


def _as_shares(exam: ExamScores) -> dict[str, Share]:
    """An exam's own measure as shares: of all items, of its groups, and by overlap with the training data."""
    if "measures" not in exam:
        return {}
    chance, name = exam.get("chance", 0.0), exam["headline"]
    table = {"all": _as_share(exam["measures"][name], exam["n"], chance)}
    for group, part in exam.get("groups", {}).items():
        table[group] = _as_share(part["measures"][name], part["n"], chance)
    for overlap, part in exam.get("overlap", {}).items():
        table[f"overlap.{overlap}"] = _as_share(part["measures"][name], part["n"], chance)
    return table


def _as_share(cell: Measured, n: int, chance: float) -> Share:
    share: Share = {
        "right": round(cell["value"] * n),
        "asked": n,
        "share": cell["value"],
        "low": cell["low"],
        "high": cell["high"],
    }
    return {**share, "chance": chance, "at_chance": cell["low"] <= chance <= cell["high"]} if chance else share


_SAID = {
    "loops": "Answers that end in a loop",
    "distinct": "Different word pairs in an answer",
    "language": "Answers in the question's language",
    "tagged": "Answers with reasoning tags",
    "well_formed": "Of these, tags whole and in order",
    "empty": "Empty answers",
}


def said_rows(models: Sequence[ModelScores]) -> list[Row]:
    """What the answers look like, whether right or not."""
    rows: list[Row] = []
    for name, label in _SAID.items():
        scores = [_look(model.get("said", {}).get(name)) for model in models]
        if any(score and score.value for score in scores):
            rows.append(Row(label, "plain", tuple(scores)))
    return rows


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


def _look(cell: Look | None) -> Score | None:
    if cell is None:
        return None
    basis = f"{100 * cell['low']:.0f} to {100 * cell['high']:.0f} %, n = {cell['n']:,}"
    return Score(cell["value"], f"{100 * cell['value']:.1f} %", basis)


def _bits(cell: Bits | None) -> Score | None:
    if cell is None:
        return None
    basis = [f"{cell['low']:.3f} to {cell['high']:.3f}"] if "low" in cell and "high" in cell else []
    basis += [f"perplexity {cell['perplexity']:.4g}"] if "perplexity" in cell else []
    return Score(cell["value"], f"{cell['value']:.3f}", ", ".join([*basis, f"{cell['bytes']:,} bytes"]))


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
