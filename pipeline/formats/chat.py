"""Supervised chat records: alpaca, sharegpt, OpenAI ``messages``, MiniMind ``conversations``, prompt/completion, bare
arrays.

Forms and field names as their projects document them (LLaMA-Factory, TRL, MiniMind, nanochat, GPT_teacher).
"""

from __future__ import annotations

import re
from typing import Any

from pipeline.formats.messages import BadRecord, Message, checked, fold, parse_if_json

TURNS = ("messages", "conversations", "conversation")
ASKS = ("prompt", "instruction", "question", "query")
ANSWERS = ("completion", "output", "response", "answer")
CHAT_MARKS = frozenset(TURNS + ASKS + ANSWERS)

_FOLDED = re.compile(r"\n(助手|用户)[:：]")
"""GPT_teacher writes earlier turns into the prompt: ``first question\\n助手:its answer\\n用户:next question``."""


def is_chat(record: dict[str, Any]) -> bool:
    """Whether the record has the fields of a chat form."""
    if any(isinstance(parse_if_json(record.get(name)), list) for name in TURNS):
        return True
    return _first(record, ASKS) is not None and _first(record, ANSWERS) is not None


def as_chat(record: Any) -> dict[str, list[Message]]:
    """The chat normal form ``{"messages": […]}`` of a record of any chat form. Raises BadRecord."""
    if isinstance(record, list):
        return {"messages": checked(fold(record))}
    if not isinstance(record, dict):
        raise BadRecord("not_an_object", type(record).__name__)
    for name in TURNS:
        if isinstance(parse_if_json(record.get(name)), list):
            return {"messages": checked(fold(record[name], system=record.get("system"), tools=record.get("tools")))}
    answer = _first(record, ANSWERS)
    if _first(record, ASKS) is None or answer is None:
        raise BadRecord("unknown_form", "fields " + ", ".join(sorted(map(str, record))[:8]))
    turns = prompt_turns(record)
    turns += answer if isinstance(answer, list) else [{"role": "assistant", "content": answer}]
    return {"messages": checked(fold(turns, system=record.get("system"), tools=record.get("tools")))}


def prompt_turns(record: dict[str, Any]) -> list[Any]:
    """The turns before the answer of an alpaca or prompt/completion record: history, instruction and input, folded
    turns."""
    ask = _first(record, ASKS)
    turns: list[Any] = []
    history = parse_if_json(record.get("history")) or []
    if not isinstance(history, list) or any(not isinstance(pair, (list, tuple)) or len(pair) != 2 for pair in history):
        raise BadRecord("wrong_type", "history is not a list of [question, answer] pairs")
    for question, answer in history:
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if isinstance(ask, list):
        return turns + ask
    if not isinstance(ask, str):
        raise BadRecord("wrong_type", "the prompt is neither a string nor a list of turns")
    extra = record.get("input") if "instruction" in record else None
    if isinstance(extra, str) and extra.strip():
        ask = f"{ask}\n{extra}" if ask.strip() else extra
    return turns + _unfold(ask)


def _unfold(prompt: str) -> list[Message]:
    """A prompt with earlier turns folded in, as turns; any other prompt as one user turn."""
    pieces = _FOLDED.split(prompt.removeprefix("用户:").removeprefix("用户："))
    roles = pieces[1::2]
    # Only the strict alternation is the folded form; a text that merely mentions the words stays as it is.
    if not roles or len(roles) % 2 or any(role != ("助手", "用户")[i % 2] for i, role in enumerate(roles)):
        return [{"role": "user", "content": prompt}]
    return [{"role": ("user", "assistant")[i % 2], "content": text.strip()} for i, text in enumerate(pieces[::2])]


def _first(record: dict[str, Any], names: tuple[str, ...]) -> Any:
    for name in names:
        value = record.get(name)
        if value is not None:
            # A prompt that merely starts with a bracket is text; one that spells a list of turns came out of a table.
            return (
                parse_if_json(value)
                if isinstance(value, str) and value.startswith("[{") and '"role"' in value
                else value
            )
    return None
