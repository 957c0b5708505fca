"""Answers with a verdict: one good or bad answer a record (KTO's form), and lists of answers with scores
(UltraFeedback's)."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from pipeline.formats.bad import BadRecord
from pipeline.formats.chat import ANSWERS, as_chat, first
from pipeline.formats.fields import KTO, is_given, switch
from pipeline.formats.record import Record

SCORES = ("overall_score", "rating", "score")
"""What says how good an answer of a list is, the first that all have."""
TEXTS = ("response", "completion", "content", "text", "answer")


def is_judged(record: object) -> bool:
    """Whether the record is one answer with a true or false label."""
    if not isinstance(record, dict) or not any(is_given(record.get(name)) for name in KTO):
        return False
    return bool(first(record, ANSWERS)[0]) or any(is_given(record.get(name)) for name in ("messages", "conversations"))


def as_judged(record: Record, ignored: Collection[str] = ()) -> dict[str, Any]:
    """The normal form ``{"prompt": [messages], "answer": str, "label": bool}``. Raises BadRecord."""
    name = next(name for name in KTO if is_given(record.get(name)))
    label = switch(record[name], name)
    messages = as_chat({key: value for key, value in record.items() if key not in KTO}, ignored)["messages"]
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise BadRecord("no_answer", "the last turn is no answer that the label could be about")
    plain = [{"role": m["role"], "content": m["content"]} for m in messages]
    return {"prompt": plain[:-1], "answer": plain[-1]["content"], "label": label}


def is_scored(record: Record) -> bool:
    """Whether the record is a list of answers to one prompt, each with a score."""
    answers = record.get("completions")
    return isinstance(answers, list) and len(answers) > 1 and all(isinstance(a, dict) for a in answers)


def best_and_worst(record: Record) -> Record:
    """The record with ``chosen``, ``rejected`` and the ``margin`` of their scores in place of its list of answers.

    Raises BadRecord where scores are missing, or the same.
    """
    answers = record["completions"]
    known = next((name for name in SCORES if all(_number(a.get(name)) is not None for a in answers)), None)
    if known is None:
        raise BadRecord("no_scores", f"not every answer has a number in {', '.join(SCORES)}")
    values = [float(_number(a[known]) or 0.0) for a in answers]
    best, worst = values.index(max(values)), values.index(min(values))
    if values[best] == values[worst]:
        raise BadRecord("tie", f"all answers have the same {known}")
    beside = {"completions", "models", "correct_answers", "incorrect_answers", "source"}
    rest = {key: value for key, value in record.items() if key not in beside}
    return rest | {
        "chosen": _text(answers[best]),
        "rejected": _text(answers[worst]),
        "margin": values[best] - values[worst],
    }


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _text(answer: Record) -> str:
    found = next((answer[name] for name in TEXTS if isinstance(answer.get(name), str)), "")
    if not found.strip():
        raise BadRecord("empty_message", "an answer of the list is empty")
    return found
