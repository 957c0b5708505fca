"""Two answers to one prompt, each as turns: where the prompt ends, and which single answer of each is compared.

Preference records and preference exams share this; the forms that they come in are their own.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pipeline.formats.messages import BadRecord, Message, fold, parse_if_json
from pipeline.formats.record import Record


def answer_of(value: Any) -> Any:
    """An answer as a string or a list of turns; LLaMA-Factory gives one turn as an object. Raises BadRecord."""
    value = parse_if_json(value)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, (str, list)):
        raise BadRecord("wrong_type", "an answer is neither a string nor turns")
    return value


def turns_of(answer: Any) -> list[Any]:
    """An answer as turns."""
    return [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer


def prompt_and_answers(
    before: list[Any] | None, chosen: list[Any], rejected: list[Any], ignored: Collection[str]
) -> tuple[list[Any], str, str]:
    """Prompt, chosen and rejected answer: the prompt is what is explicit, or what both conversations begin with; one
    assistant turn of each is left. Raises BadRecord."""
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


def plain(message: Message) -> Message:
    """A message of a prompt: never a target, so what says that it is not to be learnt changes nothing."""
    return {"role": message["role"], "content": message["content"]}


def checked_pair(prompt: list[Message], chosen: str, rejected: str) -> Record:
    """The pair in normal form, if it is one. Raises BadRecord."""
    if not any(m["role"] == "user" for m in prompt):
        raise BadRecord("no_prompt", "no turn of the user comes before the answers")
    if not chosen.strip() or not rejected.strip():
        raise BadRecord("empty_message", "an answer is empty")
    if chosen.strip() == rejected.strip():
        raise BadRecord("same_answers", "chosen and rejected are the same")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
