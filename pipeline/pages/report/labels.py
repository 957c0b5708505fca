"""The flat scores of an evaluation (model/generation/summary.py) as they are called and ordered in tables."""

from __future__ import annotations

LABELS = {
    "bits_per_byte": "Bits per byte of held-out text",
    "answers_training": "Training questions",
    "answers_heldout": "Held-out questions",
    "choices": "Multiple choice",
    "preferences": "Preference accuracy",
    "said.loops": "Answers that end in a loop",
    "said.empty": "Empty answers",
    "said.language": "Answers in the question's language",
    "said.tagged": "Answers with reasoning tags",
    "said.well_formed": "Reasoning tags whole and in order",
    "said.distinct": "Different word pairs in an answer",
}


def label(score: str) -> str:
    """What a row of it is called."""
    return LABELS.get(score, score.removeprefix("exam.").removeprefix("answers_"))


def place(score: str) -> int:
    """Where its row stands; exams come last, in their own order."""
    return list(LABELS).index(score) if score in LABELS else len(LABELS)
