"""What a tokenizer of others brings, looked at before anything is trained: can its ids be carried, and does its chat
template say what is trained here?

Conversations are trained in the format of :mod:`model.tokens.template`, whatever the tokenizer's own template says. A
template that writes the same loses nothing; one that writes other turns, tools, calls or reasoning must not vanish
without a word.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.tokens.chat import ChatTokenizer
from model.tokens.template import CHAT_TEMPLATE
from model.tokens.turns import CHAT_SPECIALS, Message

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Render = Callable[..., str]

_TEXTS = ("What is a token?", "什么是词元？", "1 + 1 = ?", "(a)\n\n- b\n", "<b>é</b>", "'s")
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


def with_chat_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer itself, with the chat tokens that it lacks added at the end."""
    from tokenizers import AddedToken

    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in CHAT_SPECIALS])
    return tokenizer


def read_tokenizer(text: str, where: str) -> Tokenizer:
    """The tokenizer of a ``tokenizer.json`` text with the chat tokens. Raises ValueError when it is none."""
    from tokenizers import Tokenizer

    try:
        return with_chat_tokens(Tokenizer.from_str(text))
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(f"{where}: not a readable tokenizer.json: {error}") from error


def check_ids(tokenizer: Tokenizer, where: str) -> None:
    """Raises ValueError when a conversation has other ids piece by piece, as it is trained and asked, than as one text,
    as every other engine encodes it: a tokenizer that puts a blank before each text, for one."""
    chat = ChatTokenizer(tokenizer)
    for text in _TEXTS:
        messages: list[Message] = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
        rendered = "".join(f"<|im_start|>{m['role']}\n{m['content'].strip()}<|im_end|>\n" for m in messages)
        ids, _ = chat.chat(messages)
        tokenizer.encode_special_tokens = False
        whole = tokenizer.encode(rendered, add_special_tokens=False).ids
        tokenizer.encode_special_tokens = True
        if ids != whole:
            raise ValueError(
                f"{where}: a conversation has other ids in pieces than as a whole (it adds a blank before every text,"
                " or merges across turns), so that no other engine would encode it as it was trained; take a byte-level"
                " tokenizer without prefix space, or train one (tokenizer.existing= empty)"
            )


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
        found = named.get("tool_use") or named.get("default") or next(iter(named.values()), None)
    return found if isinstance(found, str) and found.strip() else None


def other_parts(template: str, specials: dict[str, str] | None = None) -> list[str]:
    """The parts of a chat template that write something else than the format trained here; empty when none does.

    ``specials``: ``bos_token`` and the like, as the template may write them.
    """
    if template == CHAT_TEMPLATE:
        return []
    own = _renderer(CHAT_TEMPLATE)
    try:
        theirs = _renderer(template)
    except Exception as error:  # jinja2 raises its own family
        return [f"all (it cannot be rendered: {error})"]
    return [name for name, probe in _PARTS.items() if _differs(own, theirs, *probe, specials or {})]


def _differs(
    own: Render, theirs: Render, probe: dict[str, Any], without: dict[str, Any], specials: dict[str, str]
) -> bool:
    """Whether a template has a part and writes it otherwise. One that refuses it, or does not show it, has none."""
    try:
        written = theirs(**probe, **specials)
        plain = theirs(**without, **specials) if without["messages"] else ""
    except Exception:  # whatever a template raises: it has no such part
        return not without["messages"]
    return written != plain and written != own(**probe)


def _renderer(template: str) -> Render:
    """What renders a template as ``transformers`` does, in a sandbox: data of others may not run code here."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks what is trained; its body is written as it is."""

        tags = {"generation"}  # noqa: RUF012 - jinja2's own interface

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, indent=None, **_: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: form}
    return environment.from_string(template).render


def check_template(folder: Path, where: str, knob: str = "tokenizer.template") -> None:
    """Raises ValueError when the chat template beside a tokenizer writes something else than what is trained here."""
    template = template_of(folder)
    if template is None:
        return
    parts = other_parts(template, _special_texts(folder))
    if parts:
        raise ValueError(
            f"{where}: its chat template writes {', '.join(parts)} otherwise than what is trained here (ChatML turns,"
            " <tools>, <tool_call>, <tool_response>, <think> kept in every turn), and a model cannot be trained in its"
            f" format here. Set {knob}=own to train and export in ours instead"
        )


def _special_texts(folder: Path) -> dict[str, str]:
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}
    given = {name: config.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in given.items()}
    return {name: value for name, value in texts.items() if isinstance(value, str)}
