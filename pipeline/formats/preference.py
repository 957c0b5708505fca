"""Preference records: MiniMind, LLaMA-Factory (alpaca and sharegpt), TRL (string, conversational, implicit prompt) and
lists of answers with scores (UltraFeedback).

In the normal form the prompt is a list of messages and each answer is one string; both answers are to the same prompt.
Turns of the prompt are never targets, so what says that one is not to be learnt changes nothing there.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from pipeline.formats.chat import ANSWERS, ASKS, first, lead, prompt_turns, turns_field
from pipeline.formats.compared import answer_of, checked_pair, plain, prompt_and_answers, turns_of
from pipeline.formats.fields import (
    BESIDE_PAIRS,
    BESIDE_TURNS,
    KTO,
    SWITCHES,
    is_given,
    refuse_unused,
    switch,
    turn_switches,
)
from pipeline.formats.kto import best_and_worst, is_scored
from pipeline.formats.messages import BadRecord, content_of, fold, parse_if_json
from pipeline.formats.record import Record
from pipeline.formats.transcripts import is_transcript, transcript_turns


def is_preference(record: Record) -> bool:
    """Whether the record holds two answers to compare."""
    output = record.get("output")
    return (
        is_scored(record)
        or (record.get("chosen") is not None and record.get("rejected") is not None)
        or (isinstance(output, list) and len(output) == 2 and all(isinstance(o, str) for o in output))
    )


def as_preference(record: Any, ignored: Collection[str] = ()) -> dict[str, Any]:
    """The normal form ``{"prompt": [messages], "chosen": str, "rejected": str}``, with ``margin`` where the record says
    by how much the chosen answer is better; fields in ``ignored`` are left out. Raises BadRecord."""
    if not isinstance(record, dict) or not is_preference(record):
        _refuse_unpaired(record)
        raise BadRecord("unknown_form", "no chosen and rejected answer")
    if is_scored(record):
        record = best_and_worst(record)
    pair = ("chosen", "rejected") if record.get("chosen") is not None else ("output",)
    chosen, rejected = (record[name] for name in pair) if len(pair) == 2 else record["output"]
    chosen, rejected = answer_of(chosen), answer_of(rejected)
    for name in KTO:
        if name not in ignored and is_given(record.get(name)) and not switch(record[name], name):
            raise BadRecord("two_values", f"{name} = {record[name]} beside chosen and rejected: which one is better?")
    turn_switches(record, 0, ignored)
    system, tools, used = lead(record, ignored)
    before, also = _before(record, ignored)
    if isinstance(chosen, str) and isinstance(rejected, str):
        prompt, chosen, rejected = _from_strings(before, chosen, rejected, ignored)
    else:
        prompt, chosen, rejected = prompt_and_answers(before, _turns(chosen), _turns(rejected), ignored)
    messages = [plain(m) for m in fold(prompt, system=system, tools=tools, ignored=ignored)]
    said = "\n".join([*(m["content"] for m in messages), chosen, rejected])
    beside = BESIDE_PAIRS | BESIDE_TURNS
    refuse_unused(record, {*pair, *used, *also, *SWITCHES, *KTO, "margin"}, said, ignored=ignored, also=beside)
    return checked_pair(messages, chosen, rejected) | _margin(record, ignored)


def _margin(record: Record, ignored: Collection[str]) -> dict[str, float]:
    """By how much the chosen answer is better, for a reward model (TRL's column); nothing where that is not said."""
    value = record.get("margin")
    if "margin" in ignored or not is_given(value):
        return {}
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise BadRecord("wrong_type", f"margin is a number, not {str(value)[:40]!r}")
    if value < 0:
        raise BadRecord("two_values", f"margin = {value}: below 0 the rejected answer would be the better one")
    return {"margin": float(value)}


def _refuse_unpaired(record: Any) -> None:
    if isinstance(record, dict) and any(is_given(record.get(name)) for name in KTO) and first(record, ANSWERS)[0]:
        raise BadRecord(
            "unpaired_answer",
            "an answer with a true or false label (KTO) is no pair; put the true and the false answer of a prompt into"
            " one record as chosen and rejected",
        )


def _turns(answer: Any) -> list[Any]:
    return transcript_turns(answer) if isinstance(answer, str) and is_transcript(answer) else turns_of(answer)


def _before(record: Record, ignored: Collection[str]) -> tuple[list[Any] | None, set[str]]:
    """The turns of the record's explicit prompt (None when it is implicit), and the fields they are made of."""
    name = turns_field(record)
    if name:
        return parse_if_json(record[name]), {name}
    return prompt_turns(record, ignored) if first(record, ASKS)[0] else (None, set())


def _from_strings(
    before: list[Any] | None, chosen: str, rejected: str, ignored: Collection[str]
) -> tuple[list[Any], str, str]:
    if is_transcript(chosen) and is_transcript(rejected):
        return prompt_and_answers(before, transcript_turns(chosen), transcript_turns(rejected), ignored)
    if before is not None:
        last = content_of(before[-1].get("content")).strip() if before and isinstance(before[-1], dict) else ""
        if any(c.isspace() for c in last) and chosen.lstrip().startswith(last) and rejected.lstrip().startswith(last):
            raise BadRecord("prompt_in_answers", "both answers begin with the prompt; leave it out in one place")
        return before, chosen, rejected
    shared = _common_start(chosen, rejected)
    cut = max(shared.rfind(" "), shared.rfind("\n")) + 1
    if not shared[:cut].strip():
        raise BadRecord("no_prompt", "there is no prompt, and the answers do not begin alike")
    return [{"role": "user", "content": shared[:cut].strip()}], chosen[cut:], rejected[cut:]


def _common_start(a: str, b: str) -> str:
    return a[: next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))]
