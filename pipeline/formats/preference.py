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
from pipeline.formats.fields import BESIDE_PAIRS, BESIDE_TURNS, KTO, SWITCHES, is_given, refuse_unused, turn_switches
from pipeline.formats.kto import best_and_worst, is_scored
from pipeline.formats.messages import BadRecord, Message, content_of, fold, parse_if_json
from pipeline.formats.transcripts import is_transcript, transcript_turns


def is_preference(record: dict[str, Any]) -> bool:
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
    chosen, rejected = _answer(chosen), _answer(rejected)
    turn_switches(record, 0, ignored)
    system, tools, used = lead(record, ignored)
    before, also = _before(record, ignored)
    if isinstance(chosen, str) and isinstance(rejected, str):
        prompt, chosen, rejected = _from_strings(before, chosen, rejected, ignored)
    else:
        prompt, chosen, rejected = _from_turns(before, _turns(chosen), _turns(rejected), ignored)
    messages = [_plain(m) for m in fold(prompt, system=system, tools=tools, ignored=ignored)]
    said = "\n".join([*(m["content"] for m in messages), chosen, rejected])
    beside = BESIDE_PAIRS | BESIDE_TURNS
    refuse_unused(record, {*pair, *used, *also, *SWITCHES, *KTO, "margin"}, said, ignored=ignored, also=beside)
    return _checked(messages, chosen, rejected) | _margin(record, ignored)


def _margin(record: dict[str, Any], ignored: Collection[str]) -> dict[str, float]:
    """By how much the chosen answer is better, for a reward model (TRL's column); nothing where that is not said."""
    value = record.get("margin")
    if "margin" in ignored or not is_given(value):
        return {}
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise BadRecord("wrong_type", f"margin is a number, not {str(value)[:40]!r}")
    return {"margin": float(value)}


def _refuse_unpaired(record: Any) -> None:
    if isinstance(record, dict) and any(is_given(record.get(name)) for name in KTO) and first(record, ANSWERS)[0]:
        raise BadRecord(
            "unpaired_answer",
            "an answer with a true or false label (KTO) is no pair; put the true and the false answer of a prompt into"
            " one record as chosen and rejected",
        )


def _plain(message: Message) -> Message:
    return {"role": message["role"], "content": message["content"]}


def _answer(value: Any) -> Any:
    """An answer as a string or a list of turns; LLaMA-Factory gives one turn as an object."""
    value = parse_if_json(value)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, (str, list)):
        raise BadRecord("wrong_type", "an answer is neither a string nor turns")
    return value


def _turns(answer: Any) -> list[Any]:
    if isinstance(answer, str):
        return transcript_turns(answer) if is_transcript(answer) else [{"role": "assistant", "content": answer}]
    return answer


def _before(record: dict[str, Any], ignored: Collection[str]) -> tuple[list[Any] | None, set[str]]:
    """The turns of the record's explicit prompt (None when it is implicit), and the fields they are made of."""
    name = turns_field(record)
    if name:
        return parse_if_json(record[name]), {name}
    return prompt_turns(record, ignored) if first(record, ASKS)[0] else (None, set())


def _from_strings(
    before: list[Any] | None, chosen: str, rejected: str, ignored: Collection[str]
) -> tuple[list[Any], str, str]:
    if is_transcript(chosen) and is_transcript(rejected):
        return _from_turns(before, transcript_turns(chosen), transcript_turns(rejected), ignored)
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


def _from_turns(
    before: list[Any] | None, chosen: list[Any], rejected: list[Any], ignored: Collection[str]
) -> tuple[list[Any], str, str]:
    """The prompt is what is explicit, or what both conversations begin with; one assistant turn of each is left."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    answers = []
    for turns in (chosen[shared:], rejected[shared:]):
        folded = fold(turns, ignored=ignored)
        if len(folded) != 1 or folded[0]["role"] != "assistant":
            raise BadRecord("not_one_answer", "chosen and rejected do not differ by exactly one turn of the assistant")
        if not folded[0].get("learn", True):
            raise BadRecord("not_to_learn", "an answer of the pair is marked as not to be learnt (weight 0)")
        answers.append(folded[0]["content"])
    if not shared:
        return before or [], answers[0], answers[1]
    # UltraFeedback repeats the prompt inside both conversations: then the conversations are the fuller information.
    said = {m["content"].strip() for turns in (chosen, rejected) for m in fold(turns, ignored=ignored)}
    lost = [m for m in fold(before or [], ignored=ignored) if m["content"].strip() not in said]
    if lost:
        raise BadRecord("two_prompts", f"the prompt and both conversations differ: {lost[0]['content'].strip()[:60]!r}")
    return chosen[:shared], answers[0], answers[1]


def _checked(prompt: list[Message], chosen: str, rejected: str) -> dict[str, Any]:
    if not any(m["role"] == "user" for m in prompt):
        raise BadRecord("no_prompt", "no turn of the user comes before the answers")
    if not chosen.strip() or not rejected.strip():
        raise BadRecord("empty_message", "an answer is empty")
    if chosen.strip() == rejected.strip():
        raise BadRecord("same_answers", "chosen and rejected are the same")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
