"""Preference records: MiniMind, LLaMA-Factory (alpaca and sharegpt) and TRL (string, conversational, implicit prompt).

In the normal form the prompt is a list of messages and each answer is one string; both answers are to the same prompt.
"""

from __future__ import annotations

import re
from typing import Any

from pipeline.formats.chat import ASKS, TURNS, prompt_turns
from pipeline.formats.messages import BadRecord, Message, content_of, fold, parse_if_json

_HH = re.compile(r"\n\n(Human|Assistant):")
"""The turn marks inside the strings of Anthropic's hh-rlhf and the data sets made like it."""


def is_preference(record: dict[str, Any]) -> bool:
    """Whether the record holds two answers to compare."""
    output = record.get("output")
    return ("chosen" in record and "rejected" in record) or (
        isinstance(output, list) and len(output) == 2 and all(isinstance(o, str) for o in output)
    )


def as_preference(record: Any) -> dict[str, Any]:
    """The normal form ``{"prompt": [messages], "chosen": str, "rejected": str}``. Raises BadRecord."""
    if not isinstance(record, dict) or not is_preference(record):
        raise BadRecord("unknown_form", "no chosen and rejected answer")
    chosen, rejected = (record["chosen"], record["rejected"]) if "chosen" in record else record["output"]
    chosen, rejected = _answer(chosen), _answer(rejected)
    before = _before(record)
    if isinstance(chosen, str) and isinstance(rejected, str):
        prompt, chosen, rejected = _from_strings(before, chosen, rejected)
    else:
        prompt, chosen, rejected = _from_turns(before, _turns(chosen), _turns(rejected))
    prompt = fold(prompt, system=record.get("system"), tools=record.get("tools"))
    return _checked(prompt, chosen, rejected)


def _answer(value: Any) -> Any:
    """An answer as a string or a list of turns; LLaMA-Factory gives one turn as an object."""
    value = parse_if_json(value)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, (str, list)):
        raise BadRecord("wrong_type", "an answer is neither a string nor turns")
    return value


def _turns(answer: Any) -> list[Any]:
    return [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer


def _before(record: dict[str, Any]) -> list[Any] | None:
    """The turns of the record's explicit prompt; None when the prompt is implicit."""
    for name in TURNS:
        turns = parse_if_json(record.get(name))
        if isinstance(turns, list):
            return turns
    return prompt_turns(record) if any(record.get(name) is not None for name in ASKS) else None


def _from_strings(before: list[Any] | None, chosen: str, rejected: str) -> tuple[list[Any], str, str]:
    if before is not None:
        return before, chosen, rejected
    if _HH.match(chosen) and _HH.match(rejected):
        return _from_turns(None, _hh_turns(chosen), _hh_turns(rejected))
    shared = _common_start(chosen, rejected)
    cut = max(shared.rfind(" "), shared.rfind("\n")) + 1
    if not shared[:cut].strip():
        raise BadRecord("no_prompt", "there is no prompt, and the answers do not begin alike")
    return [{"role": "user", "content": shared[:cut].strip()}], chosen[cut:], rejected[cut:]


def _common_start(a: str, b: str) -> str:
    return a[: next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))]


def _hh_turns(text: str) -> list[Message]:
    pieces = _HH.split(text)[1:]
    return [
        {"role": "user" if who == "Human" else "assistant", "content": said.strip()}
        for who, said in zip(pieces[::2], pieces[1::2], strict=True)
    ]


def _from_turns(before: list[Any] | None, chosen: list[Any], rejected: list[Any]) -> tuple[list[Any], str, str]:
    """The prompt is what is explicit, or what both conversations begin with; one assistant turn of each is left."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    answers = []
    for turns in (chosen[shared:], rejected[shared:]):
        folded = fold(turns)
        if len(folded) != 1 or folded[0]["role"] != "assistant":
            raise BadRecord("not_one_answer", "chosen and rejected do not differ by exactly one turn of the assistant")
        answers.append(folded[0]["content"])
    # UltraFeedback repeats the prompt inside both conversations: then the conversations are the fuller information.
    return (chosen[:shared] if shared else before or []), answers[0], answers[1]


def _checked(prompt: list[Message], chosen: str, rejected: str) -> dict[str, Any]:
    if not any(m["role"] == "user" for m in prompt):
        raise BadRecord("no_prompt", "no turn of the user comes before the answers")
    chosen, rejected = content_of(chosen), content_of(rejected)
    if not chosen.strip() or not rejected.strip():
        raise BadRecord("empty_message", "an answer is empty")
    if chosen.strip() == rejected.strip():
        raise BadRecord("same_answers", "chosen and rejected are the same")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
