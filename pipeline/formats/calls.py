"""Tools: their list in the system message, calls in an assistant's content, and what they returned.

The convention is Hermes' and Qwen3's: ``<tools>`` with one JSON object a line, ``<tool_call>`` around
``{"name": …, "arguments": …}``, ``<tool_response>`` around a result. The chat template of :mod:`model.tokens.template`
writes the same texts from structured messages, so that a model meets in use what it has learnt.
"""

from __future__ import annotations

import json
import re
from typing import Any

from model.tokens.turns import TOOLS_INTRO
from pipeline.formats.bad import BadRecord

_RESPONSES = re.compile(r"\s*(?:<tool_response>\n?.*?\n?</tool_response>\s*)+", re.DOTALL)
_RESPONSE = re.compile(r"<tool_response>\n?(.*?)\n?</tool_response>", re.DOTALL)
_CALL_FIELDS = {"name", "arguments"}
_CALL_METADATA = {"id", "type", "index", "call_id", "tool_call_id"}


def parse_if_json(value: Any) -> Any:
    """Table cells and MiniMind's tool fields carry JSON in strings: the parsed array or object, else the value
    itself."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def calls_of(value: Any) -> list[str]:
    """The texts of a turn's calls: a list of calls, one call, or words that were never JSON. Raises BadRecord."""
    value = parse_if_json(value)
    if value is None or value in ("", [], {}):
        return []
    if isinstance(value, str):
        if "<tool_call>" in value:
            return [value.strip()]
        return [_wrapped(value)]
    calls = value if isinstance(value, list) else [value]
    return [_wrapped(_call(parse_if_json(call))) for call in calls]


def _wrapped(call: str) -> str:
    return f"<tool_call>\n{call}\n</tool_call>"


def _call(call: Any) -> str:
    """``{"name": …, "arguments": …}`` as JSON; arguments that are JSON in a string already stay as they are."""
    if not isinstance(call, dict):
        raise BadRecord("bad_call", f"{str(call)[:60]!r} is not a call")
    outer = call
    if isinstance(call.get("function"), dict):
        call = call["function"]
        outer = {key: value for key, value in outer.items() if key != "function"}
    unused = sorted(
        key
        for key, value in {**outer, **call}.items()
        if key not in _CALL_FIELDS | _CALL_METADATA and value not in (None, "", {}, [])
    )
    if unused or not isinstance(call.get("name"), str):
        raise BadRecord("bad_call", f"a call has a name and arguments, not {', '.join(unused or map(str, call))}"[:200])
    name, arguments = json.dumps(call["name"], ensure_ascii=False), call.get("arguments")
    if isinstance(arguments, str) and arguments.strip():
        try:
            json.loads(arguments)
        except (ValueError, RecursionError):
            raise BadRecord("bad_call", f"the arguments are not JSON: {arguments[:60]!r}") from None
    else:
        arguments = json.dumps(arguments or {}, ensure_ascii=False)
    return f'{{"name": {name}, "arguments": {arguments}}}'


def results_of(content: str) -> list[str]:
    """What a turn of the tools says, a text for each result; those written in their tags already are taken out."""
    if _RESPONSES.fullmatch(content):
        return _RESPONSE.findall(content)
    return [content]


def tools_text(tools: Any) -> str:
    """The paragraph of the system message that lists the tools; empty without tools. Raises BadRecord."""
    tools = parse_if_json(tools)
    if tools is None or tools in ("", [], {}):
        return ""
    if not isinstance(tools, (str, list, dict)):
        raise BadRecord("wrong_type", "tools is not a list")
    listed = [tools] if isinstance(tools, (str, dict)) else tools
    lines = [tool if isinstance(tool, str) else json.dumps(tool, ensure_ascii=False) for tool in listed]
    return "\n".join([TOOLS_INTRO, "<tools>", *lines, "</tools>"])
