"""Supervised chat records: alpaca, sharegpt, OpenAI ``messages``, MiniMind ``conversations``, prompt/completion, bare
arrays.

Forms and field names as their projects document them (LLaMA-Factory, TRL, MiniMind, nanochat, GPT_teacher), with the
columns that answers depend on: ``system`` (OpenOrca: ``system_prompt``), ``history``, ``input``, ``context`` (Dolly:
after the instruction; SQuAD-like: before the question), ``tools`` (OpenAI's older ``functions``).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pipeline.formats.fields import BESIDE_TURNS, KTO, SWITCHES, refuse_disliked, refuse_unused, turn_switches
from pipeline.formats.messages import BadRecord, Message, checked, fold, parse_if_json
from pipeline.formats.record import Record
from pipeline.formats.transcripts import unfold

TURNS = ("messages", "conversations", "conversation")
ASKS = ("prompt", "instruction", "question", "query")
ANSWERS = ("completion", "output", "response", "answer")
SYSTEMS = ("system", "system_prompt", "system_message")
TOOLS = ("tools", "functions")
CHAT_MARKS = frozenset(TURNS + ASKS + ANSWERS)
_LEAD = frozenset((*SYSTEMS, *TOOLS))
_SWITCHES = {*SWITCHES, *KTO, "weights", "mask"}


def is_chat(record: Record) -> bool:
    """Whether the record has the fields of a chat form."""
    if any(isinstance(parse_if_json(record.get(name)), list) for name in TURNS):
        return True
    return first(record, ASKS)[1] is not None and first(record, ANSWERS)[1] is not None


def as_chat(record: Any, ignored: Collection[str] = ()) -> dict[str, list[Message]]:
    """The chat normal form ``{"messages": […]}`` of a record of any chat form; fields in ``ignored`` are left out.
    Raises BadRecord."""
    if isinstance(record, list):
        return {"messages": checked(fold(record, ignored=ignored))}
    if not isinstance(record, dict):
        raise BadRecord("not_an_object", type(record).__name__)
    refuse_disliked(record, ignored)
    system, tools, used = lead(record, ignored)
    name = turns_field(record)
    if name:
        given, used = parse_if_json(record[name]), used | {name}
    else:
        ask, question = first(record, ASKS)
        answered, answer = first(record, ANSWERS)
        if question is None or answer is None:
            raise BadRecord("unknown_form", "fields " + ", ".join(sorted(map(str, record))[:8]))
        before, also = prompt_turns(record, ignored)
        given = before + _answer_turns(record, answer, ignored)
        used = used | also | {ask, answered, *(() if isinstance(answer, list) else ("reasoning_content",))}
    switches = turn_switches(record, len(given), ignored)
    messages = fold(given, system=system, tools=tools, switches=switches, ignored=ignored)
    said = "\n".join(m["content"] for m in messages)
    beside = BESIDE_TURNS if name else ()
    refuse_unused(_without_rendering(record, messages), used | _SWITCHES, said, ignored=ignored, also=beside)
    return {"messages": checked(messages)}


def turns_field(record: Record) -> str | None:
    """The name of the field that holds a list of turns."""
    return next((name for name in TURNS if isinstance(parse_if_json(record.get(name)), list)), None)


def lead(record: Record, ignored: Collection[str] = ()) -> tuple[Any, Any, frozenset[str]]:
    """System prompt and tools of a record, and the names they have there. Raises BadRecord(two_values)."""
    found = []
    for names in (SYSTEMS, TOOLS):
        if not any(n in record for n in names):
            found.append(None)
            continue
        values = [
            record[n] for n in names if n not in ignored and parse_if_json(record.get(n)) not in (None, "", [], {})
        ]
        if any(parse_if_json(value) != parse_if_json(values[0]) for value in values):
            raise BadRecord("two_values", f"more than one of {', '.join(names)}, saying different things")
        found.append(values[0] if values else None)
    return found[0], found[1], _LEAD


def _answer_turns(record: Record, answer: Any, ignored: Collection[str]) -> list[Any]:
    if isinstance(answer, list):
        return answer
    turn: Record = {"role": "assistant", "content": answer}
    if "reasoning_content" not in ignored and record.get("reasoning_content") is not None:
        turn["reasoning_content"] = record["reasoning_content"]
    return [turn]


def _without_rendering(record: Record, messages: list[Message]) -> Record:
    """The record without a ``text`` that is a rendering of its own turns, as Alpaca's is."""
    text = record.get("text")
    answers = [m["content"].strip() for m in messages if m["role"] == "assistant"]
    rendered = isinstance(text, str) and (text.startswith("Below is") or all(answer in text for answer in answers))
    return {name: value for name, value in record.items() if name != "text" or not rendered}


def prompt_turns(record: Record, ignored: Collection[str] = ()) -> tuple[list[Any], set[str]]:
    """The turns before the answer of an alpaca or prompt/completion record (history, instruction and input, context,
    folded turns), and the names of the fields that they are made of."""
    name, ask = first(record, ASKS)
    history = parse_if_json(record.get("history")) if "history" not in ignored else None
    turns = _history(history or [])
    if isinstance(ask, list):
        return turns + ask, {name, "history"}
    if not isinstance(ask, str):
        raise BadRecord("wrong_type", "the prompt is neither a string nor a list of turns")
    used = {name, "history"}
    for field, join in (("input", "{ask}\n{extra}"), ("context", _PLACES.get(name, ""))):
        extra = record.get(field)
        if field in ignored or extra is None or not join or (field == "input" and name != "instruction"):
            continue
        if not isinstance(extra, str):
            raise BadRecord("wrong_type", f"{field} is not a string")
        used.add(field)
        if extra.strip():
            ask = join.format(ask=ask, extra=extra) if ask.strip() else extra
    return turns + unfold(ask), used


_PLACES = {"instruction": "{ask}\n{extra}"} | dict.fromkeys(("question", "query", "prompt"), "{extra}\n\n{ask}")
"""Where a context stands: Dolly puts it after the instruction, reading comprehension before the question."""


def _history(pairs: Any) -> list[Any]:
    """Earlier turns: pairs of question and answer (LLaMA-Factory), or turns."""
    if isinstance(pairs, list) and pairs and all(isinstance(turn, dict) for turn in pairs):
        return pairs
    if not isinstance(pairs, list) or any(not isinstance(pair, (list, tuple)) or len(pair) != 2 for pair in pairs):
        raise BadRecord("wrong_type", "history is not a list of [question, answer] pairs")
    return [
        {"role": role, "content": said}
        for pair in pairs
        for role, said in zip(("user", "assistant"), pair, strict=True)
    ]


def first(record: Record, names: tuple[str, ...]) -> tuple[str, Any]:
    """Name and value of the first of ``names`` that is there, or ("", None)."""
    for name in names:
        value = record.get(name)
        if value is not None:
            # A prompt that merely starts with a bracket is text; one that spells a list of turns came out of a table.
            if isinstance(value, str) and value.startswith("[{") and ('"role"' in value or '"from"' in value):
                value = parse_if_json(value)
            return name, value
    return "", None
