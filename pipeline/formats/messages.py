"""Messages: the roles of every dialect, and the folding of reasoning, tools and parts into plain contents.

After folding a message is ``{"role": "system"|"user"|"assistant"|"tool", "content": str}``, with ``"learn": False``
where an answer is context only, and nothing else, so that no later stage knows about dialects. A call is
``<tool_call>…</tool_call>`` inside the assistant's content (:mod:`pipeline.formats.calls`), reasoning is
``<think>…</think>`` before the answer, tools are listed in the system message.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from model.tokens.turns import Message, turns
from pipeline.formats.bad import BadRecord
from pipeline.formats.calls import calls_of, parse_if_json, results_of, tools_text
from pipeline.formats.fields import BESIDE_TURNS, SWITCHES, learnt, refuse_unused
from pipeline.formats.record import Record

__all__ = ["BadRecord", "Message", "checked", "content_of", "fold", "parse_if_json"]

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "用户": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "chatbot": "assistant",
    "助手": "assistant",
    "function_call": "call",
    "tool_call": "call",
    "observation": "tool",
    "tool": "tool",
    "tool_response": "tool",
    "function": "tool",
    "ipython": "tool",
}
_TEXT_PARTS = (None, "text", "input_text", "output_text")
_ROLE, _CONTENT = ("role", "from"), ("content", "value")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_ASSISTANTS = frozenset((*_REASONING, "tool_calls", "function_call"))
_TURN_FIELDS = {*_ROLE, *_CONTENT, *_REASONING, *SWITCHES, "tools", "functions", "tool_calls", "function_call"}


def fold(
    given: Any, *, system: Any = None, tools: Any = None, switches: list[bool] | None = None,
    ignored: Collection[str] = (),
) -> list[Message]:  # fmt: skip
    """Messages in normal form from a list of turns in any dialect (``role``/``content`` or ``from``/``value``).

    ``system`` and ``tools`` are the record's own fields of that name, ``switches`` says of each turn whether it may be
    learnt, ``ignored`` names fields that are left out. Raises BadRecord.
    """
    given = parse_if_json(given)
    if not isinstance(given, list):
        raise BadRecord("wrong_type", "the turns are not a list")
    messages: list[Message] = []
    waiting: list[Any] = []
    for i, turn in enumerate(given):
        if not isinstance(turn, dict):
            raise BadRecord("wrong_type", "a turn is not an object")
        own = parse_if_json(turn.get("tools")) or parse_if_json(turn.get("functions"))
        if own and tools and own != parse_if_json(tools):
            raise BadRecord("two_tool_lists", "the tools change within the conversation")
        tools = own or tools
        role = _role(turn)
        waiting = _in_order(turn, role, waiting)
        found = _messages(turn, role, switches is None or switches[i], ignored)
        before = messages[-1] if messages else None
        if role == "call" and before and {**before, "content": ""} == {**found[0], "content": ""}:
            before["content"] = f"{before['content'].strip()}\n{found[0]['content']}"  # words and calls of one turn
        else:
            messages += found
    return _with_system(messages, system, tools)


def _in_order(turn: Record, role: str, waiting: list[Any]) -> list[Any]:
    """The ids of calls that wait for a result after this turn. Raises BadRecord(result_order) for a result that belongs
    to a later call: results are told apart by their order alone."""
    if role == "assistant":
        calls = parse_if_json(turn.get("tool_calls"))
        return [c["id"] for c in calls if isinstance(c, dict) and c.get("id")] if isinstance(calls, list) else []
    if role != "tool" or turn.get("tool_call_id") not in waiting:
        return waiting
    if turn["tool_call_id"] != waiting[0]:
        raise BadRecord("result_order", f"the result of call {turn['tool_call_id']!r} comes before an earlier call's")
    return waiting[1:]


def _role(turn: Record) -> str:
    """system, user, assistant, tool, or call for a turn that is a call and nothing else."""
    name = _one(turn, _ROLE)
    role = ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        raise BadRecord("unknown_role", repr(name)[:60])
    return role


def _messages(turn: Record, role: str, wanted: bool, ignored: Collection[str]) -> list[Message]:
    """The message that a turn is, or one for each result that it holds."""
    given = _one(turn, _CONTENT)
    own = "assistant" if role == "call" else role
    learn = learnt(turn, own, ignored) and wanted
    used = _TURN_FIELDS
    if role == "call":
        if given is None and turn.get("name"):  # ms-swift also writes the call's fields into the turn
            given, used = {"name": turn["name"], "arguments": turn.get("arguments")}, used | {"arguments"}
        content = "\n".join(calls_of(given))
    else:
        content = content_of(given)
    if own == "assistant":
        content = _assistant(content, turn)
    else:
        _refuse_assistants(turn, own)
    if not content.strip() and role not in ("system", "tool"):
        raise BadRecord("empty_message", f"the {role}'s turn is empty")
    refuse_unused(turn, used, content, ignored=ignored, also=BESIDE_TURNS)
    if own == "tool":
        return [{"role": "tool", "content": result} for result in results_of(content)]
    if own == "user" and content.startswith("<tool_response>"):  # written in our convention already
        results: list[Message] = [{"role": "tool", "content": result} for result in results_of(content)]
        if "".join(t.content for t in turns(results)) == content.strip():
            return results
    message: Message = {"role": own, "content": content}
    return [message if learn or own != "assistant" else {**message, "learn": False}]


def _one(turn: Record, names: tuple[str, ...]) -> Any:
    """The value under the one of two names that is there: a table of both dialects leaves the other one null."""
    given = [turn[name] for name in names if turn.get(name) is not None]
    if len(given) > 1 and given[0] != given[1]:
        raise BadRecord("two_values", f"{' and '.join(names)} say different things")
    return given[0] if given else None


def _refuse_assistants(turn: Record, role: str) -> None:
    if _ASSISTANTS.isdisjoint(turn):
        return
    for name in sorted(_ASSISTANTS):
        if parse_if_json(turn.get(name)) not in (None, "", [], {}):
            raise BadRecord("unused_field", f"{name} in a turn of role {role}: only the assistant's can have it")


def _assistant(content: str, turn: Record) -> str:
    """The assistant's content with its reasoning before and its tool calls after it."""
    if _ASSISTANTS.isdisjoint(turn):
        return content
    calls = calls_of(turn.get("tool_calls"))
    legacy = calls_of(turn.get("function_call"))
    if calls and legacy and calls != legacy:
        raise BadRecord("two_values", "tool_calls and function_call say different things")
    said = content.strip() if calls or legacy else content
    content = "\n".join([*([said] if said else []), *(calls or legacy)])
    reasons = list(dict.fromkeys(content_of(turn[name]).strip() for name in _REASONING if turn.get(name) is not None))
    reasons = [reason for reason in reasons if reason]
    if len(reasons) > 1:
        raise BadRecord("two_values", f"{' and '.join(n for n in _REASONING if turn.get(n))} say different things")
    if reasons:
        content = f"<think>\n{reasons[0]}\n</think>\n\n{content.lstrip()}"
    return content


def content_of(value: Any) -> str:
    """A content as text: a string, null (empty), or a list of parts as OpenAI and nanochat write them."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, list):
        parts: list[Any] = [_part(part) if isinstance(part, dict) else part for part in value]
        if all(isinstance(part, str) for part in parts):
            return "".join(parts)
        raise BadRecord("not_text", "a part of the content is not text")
    raise BadRecord("wrong_type", "the content is not a string")


def _part(part: Record) -> Any:
    """The text of a part of a content; None for a part of another kind, whatever text stands in it."""
    return part.get("text") if part.get("type") in _TEXT_PARTS else None


def _with_system(messages: list[Message], system: Any, tools: Any) -> list[Message]:
    """Put the record's system prompt and its tools into one leading system message; drop empty system messages."""
    if system is not None and not isinstance(system, str):
        raise BadRecord("wrong_type", "the system prompt is not a string")
    lead = (system or "").strip()
    if messages and messages[0]["role"] == "system":
        first = messages[0]["content"].strip() if lead else messages[0]["content"]
        lead = lead if first == lead else "\n\n".join(part for part in (lead, first) if part.strip())
        messages = messages[1:]
    text = tools_text(tools)
    if text and "<tools>" not in lead:  # Hermes' records have their tools in both places
        lead = "\n\n".join(part for part in (lead.strip(), text) if part)
    messages = [m for m in messages if m["role"] != "system" or m["content"].strip()]
    return [{"role": "system", "content": lead}, *messages] if lead.strip() else messages


def checked(messages: list[Message]) -> list[Message]:
    """``messages`` if a model can learn from them. Raises BadRecord(no_answer | not_to_learn) when no turn is the
    assistant's, or none that may be learnt."""
    answers = [m for m in messages if m["role"] == "assistant"]
    if not answers:
        raise BadRecord("no_answer", "no turn of the assistant")
    if not any(m.get("learn", True) for m in answers):
        raise BadRecord("not_to_learn", "every answer is marked as not to be learnt (weight 0)")
    return messages
