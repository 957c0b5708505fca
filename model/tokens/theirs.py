"""The chat template that a tokenizer or model folder brings, and whether it says what ours says."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from model.tokens.jinja import TemplateRefuses, compiled, render
from model.tokens.template import CHAT_TEMPLATE

TEMPLATE_FILES = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
"""What says how a chat is written, beside ``tokenizer.json``."""
NAMES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
"""Special tokens that a template may write by name."""
_USER: dict[str, Any] = {"role": "user", "content": "How deep?"}
_ANSWER: dict[str, Any] = {"role": "assistant", "content": "Two."}
_CALL = {"type": "function", "function": {"name": "depth", "arguments": {"pier": 1}}}
_TOOLS = [{"type": "function", "function": {"name": "depth", "description": "d", "parameters": {"type": "object"}}}]
_RESULT: list[dict[str, Any]] = [{"role": "tool", "content": "2"}, _ANSWER]
_CALLED = [_USER, {"role": "assistant", "content": "", "tool_calls": [_CALL]}, *_RESULT]
_UNCALLED = [_USER, {"role": "assistant", "content": ""}, *_RESULT]
_THOUGHT = [_USER, {**_ANSWER, "reasoning_content": "hm"}]
_PARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "turns": ({"messages": [_USER, _ANSWER, _USER], "add_generation_prompt": True}, {"messages": []}),
    "answers": ({"messages": [_USER, _ANSWER]}, {"messages": []}),
    "system": ({"messages": [{"role": "system", "content": "Be brief."}, _USER]}, {"messages": [_USER]}),
    "tools": ({"messages": [_USER], "tools": _TOOLS}, {"messages": [_USER]}),
    "calls and their results": ({"messages": _CALLED}, {"messages": _UNCALLED}),
    "reasoning": ({"messages": _THOUGHT}, {"messages": [_USER, _ANSWER]}),
    "earlier reasoning": ({"messages": [*_THOUGHT, _USER]}, {"messages": [_USER, _ANSWER, _USER]}),
}
"""Parts of a template: a conversation with the part, and one without it, whose renderings differ where it is there."""


def template_of(folder: Path) -> str | None:
    """The chat template beside a tokenizer: ``chat_template.jinja``, else the one in ``tokenizer_config.json``."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8-sig")
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return None
    found = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(found, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default") or next(iter(named.values()), None)
    return found if isinstance(found, str) and found.strip() else None


def foreign_template(folder: Path, names: dict[str, str]) -> str | None:
    """The chat template of a folder where it says something else than ours; None for ours, and where there is none."""
    template = template_of(folder)
    return template if template and other_parts(template, tuple(sorted(names.items()))) else None


@functools.lru_cache(maxsize=16)
def other_parts(template: str, names: tuple[tuple[str, str], ...] = ()) -> tuple[str, ...]:
    """The parts of a chat template that write something else than our format; empty when none does. ``names`` are its
    special tokens by name."""
    if template == CHAT_TEMPLATE:
        return ()
    try:
        compiled(template)
    except TemplateRefuses as error:
        return (f"all ({error})",)
    return tuple(name for name, probe in _PARTS.items() if _differs(template, *probe, dict(names)))


def _differs(template: str, probe: dict[str, Any], without: dict[str, Any], names: dict[str, str]) -> bool:
    """Whether a template has a part and writes it otherwise. One that refuses it, or does not show it, has none."""
    try:
        written = render(template, {**probe, **names})
        plain = render(template, {**without, **names}) if without["messages"] else ""
    except TemplateRefuses:  # it has no such part
        return not without["messages"]
    return written != plain and written != render(CHAT_TEMPLATE, probe)


def special_texts(folder: Path) -> dict[str, str]:
    """A folder's special tokens by the names under which a template may write them."""
    given: dict[str, Any] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        try:
            values = json.loads((folder / file).read_text(encoding="utf-8-sig"))
        except (OSError, ValueError):
            continue
        given |= {name: values[name] for name in NAMES if isinstance(values, dict) and values.get(name) is not None}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in given.items()}
    return {name: value for name, value in texts.items() if isinstance(value, str)}
