"""What a model said, taken apart: reasoning, content and calls of tools; the way back from the chat format's text.

:func:`parse_reply` undoes what :mod:`model.tokens.template` writes into the assistant's turn. A model may write
anything, so nothing here raises, and what is no readable call stays in the content.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_OWN_FORM = re.compile(r'\{"name": "(?:[^"\\]|\\.)*", "arguments": (.*)\}', re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*)</answer>", re.DOTALL)
_TAGS = re.compile(r"</?(?:think|answer)>")


class ToolCall(NamedTuple):
    """A call of the tool ``name``; ``arguments`` is JSON text of an object, as OpenAI's API carries it."""

    name: str
    arguments: str


class Reply(NamedTuple):
    """An answer's parts; ``reasoning`` and ``content`` are empty, ``tool_calls`` is ``()`` where it has none."""

    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()

    def message(self) -> dict[str, Any]:
        """The assistant's message as chat templates take it; rendered again it gives the text that was parsed."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [{"type": "function", "function": call._asdict()} for call in self.tool_calls]
        return message


def parse_reply(text: str) -> Reply:
    """Reasoning, content and tool calls of an assistant's turn.

    Reasoning is what stands in ``<think>…</think>`` at the beginning. It may lack its opening tag (the prompt had it
    already) or its end (the answer was cut off: all of it is reasoning then). A call is ``<tool_call>`` with a JSON
    object of ``name`` and ``arguments`` (or ``parameters``, as Llama writes), or a list of them; the last one may lack
    its end. A call that is not readable JSON or has no name stays in the content as it was written.
    """
    reasoning, rest = _reasoning(text)
    calls: list[ToolCall] = []
    kept: list[str] = []
    end = 0
    for match in _CALL.finditer(rest):
        found = _calls(match[1].strip())
        if found:
            kept.append(rest[end : match.start()].strip())
            calls += found
            end = match.end()
    kept.append(rest[end:].strip())
    return Reply("\n".join(part for part in kept if part), reasoning, tuple(calls))


def _reasoning(text: str) -> tuple[str, str]:
    """The reasoning before an answer, and the answer."""
    opened = text.lstrip().startswith("<think>")
    begin = text.find("<think>") + len("<think>") if opened else 0
    end = text.find("</think>")
    if end < 0:
        return (text[begin:].strip(), "") if opened else ("", text)
    return text[begin:end].strip(), text[end + len("</think>") :]


def _calls(body: str) -> list[ToolCall]:
    """The calls between two tags; empty when they are not readable."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        return []
    own = _OWN_FORM.fullmatch(body)
    if own and isinstance(given, dict) and set(given) == {"name", "arguments"} and isinstance(given["arguments"], dict):
        return [ToolCall(given["name"], own[1])]  # to the letter, blanks too
    calls = [_call(one) for one in (given if isinstance(given, list) else [given])]
    return [call for call in calls if call] if all(calls) else []


def _call(given: Any) -> ToolCall | None:
    if isinstance(given, dict) and isinstance(given.get("function"), dict):
        given = given["function"]
    if not isinstance(given, dict) or not isinstance(given.get("name"), str) or not given["name"]:
        return None
    arguments = given.get("arguments", given.get("parameters"))
    if isinstance(arguments, str) and arguments.strip():  # JSON within JSON
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if arguments in (None, "", []):
        arguments = {}
    return ToolCall(given["name"], json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None


def well_formed(text: str, *, answer: bool = False) -> bool:
    """Whether an answer reasons and then answers: ``<think>…</think>`` with something in it, and something after it.

    Answers in ``<answer>…</answer>`` (MiniMind's and DeepSeek-R1's distilled form) have that block once and nothing
    beside it; with ``answer`` there has to be one. Each tag may stand there once.
    """
    text = text.strip()
    reasoning, rest = _reasoning(text)
    tags = _TAGS.findall(text)
    if not text.startswith("<think>") or tags[:2] != ["<think>", "</think>"] or not reasoning or not rest.strip():
        return False
    if len(tags) == 2:
        return not answer
    block = _ANSWER.fullmatch(rest.strip())
    return tags[2:] == ["<answer>", "</answer>"] and bool(block and block[1].strip())
