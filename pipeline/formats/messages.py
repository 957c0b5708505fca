"""Messages: the roles of every dialect, and the folding of reasoning, tools and parts into plain contents.

After folding a message is ``{"role": "system"|"user"|"assistant", "content": str}`` and nothing else, so that no later
stage knows about dialects. Tool calls and results follow MiniMind's and Qwen's convention: a call is
``<tool_call>…</tool_call>`` inside the assistant's content, a result is a user turn with ``<tool_response>…``,
reasoning is ``<think>…</think>`` before the answer.
"""

from __future__ import annotations

import json
from typing import Any

Message = dict[str, str]

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "用户": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "助手": "assistant",
    "function_call": "call",
    "tool_call": "call",
    "observation": "result",
    "tool": "result",
    "function": "result",
    "ipython": "result",
}
_TOOLS = 'Tools you can call, each by <tool_call>{"name": …, "arguments": …}</tool_call>:'


class BadRecord(ValueError):
    """A record that cannot be used. ``reason`` is a word to count by, ``detail`` says what was found."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


def fold(turns: Any, *, system: Any = None, tools: Any = None) -> list[Message]:
    """Messages in normal form from a list of turns in any dialect (``role``/``content`` or ``from``/``value``).

    ``system`` and ``tools`` are the record's own fields of that name. Raises BadRecord.
    """
    turns = parse_if_json(turns)
    if not isinstance(turns, list):
        raise BadRecord("wrong_type", "the turns are not a list")
    messages: list[Message] = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise BadRecord("wrong_type", "a turn is not an object")
        tools = tools or turn.get("tools")
        messages.append(_message(turn))
    return _with_system(messages, system, tools)


def _message(turn: dict[str, Any]) -> Message:
    name = turn.get("role", turn.get("from"))
    role = ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        raise BadRecord("unknown_role", repr(name)[:60])
    content = content_of(turn.get("content", turn.get("value")))
    if role == "call":
        return {"role": "assistant", "content": _call(content)}
    if role == "result":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    if role == "assistant":
        content = _assistant(content, turn)
    if not content.strip() and role != "system":
        raise BadRecord("empty_message", f"the {role}'s turn is empty")
    return {"role": role, "content": content}


def _assistant(content: str, turn: dict[str, Any]) -> str:
    """The assistant's content with its reasoning before and its tool calls after it."""
    reasoning = turn.get("reasoning_content")
    if isinstance(reasoning, str) and reasoning.strip():
        content = f"<think>\n{reasoning.strip()}\n</think>\n\n{content.lstrip()}"
    calls = parse_if_json(turn.get("tool_calls")) or []
    if not isinstance(calls, list):
        raise BadRecord("wrong_type", "tool_calls is not a list")
    for call in calls:
        content += ("\n" if content else "") + _call(call)
    return content


def _call(call: Any) -> str:
    call = parse_if_json(call)
    if isinstance(call, dict):
        call = call.get("function", call)
        if isinstance(call, dict) and isinstance(call.get("arguments"), str):
            call = {**call, "arguments": parse_if_json(call["arguments"])}
    text = call if isinstance(call, str) else json.dumps(call, ensure_ascii=False)
    return f"<tool_call>\n{text}\n</tool_call>"


def content_of(value: Any) -> str:
    """A content as text: a string, null (empty), or a list of parts as OpenAI and nanochat write them."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in value]
        if all(isinstance(part, str) for part in parts):
            return "".join(parts)
        raise BadRecord("not_text", "a part of the content is not text")
    raise BadRecord("wrong_type", "the content is not a string")


def _with_system(messages: list[Message], system: Any, tools: Any) -> list[Message]:
    """Put the record's system prompt and its tools into one leading system message; drop empty system messages."""
    tools = parse_if_json(tools)
    lead = system.strip() if isinstance(system, str) else ""
    if messages and messages[0]["role"] == "system":
        lead = "\n\n".join(part for part in (lead, messages[0]["content"]) if part.strip())
        messages = messages[1:]
    if tools:
        text = (
            tools
            if isinstance(tools, str)
            else "\n".join(json.dumps(tool, ensure_ascii=False) for tool in _listed(tools))
        )
        lead = (lead + "\n\n" if lead else "") + f"{_TOOLS}\n<tools>\n{text}\n</tools>"
    messages = [m for m in messages if m["role"] != "system" or m["content"].strip()]
    return [{"role": "system", "content": lead}, *messages] if lead.strip() else messages


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def parse_if_json(value: Any) -> Any:
    """Table cells and MiniMind's tool fields carry JSON in strings: the parsed array or object, else the value
    itself."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def checked(messages: list[Message]) -> list[Message]:
    """``messages`` if a model can learn from them. Raises BadRecord(no_answer) when no turn is the assistant's."""
    if not any(m["role"] == "assistant" for m in messages):
        raise BadRecord("no_answer", "no turn of the assistant")
    return messages
