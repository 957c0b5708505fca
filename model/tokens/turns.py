"""Conversations as turns: what a message is, and the words that each turn spells in ChatML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, NotRequired, TypedDict

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_SPECIALS = (END_OF_TEXT, IM_START, IM_END)
"""Ids 0, 1, 2 of a tokenizer we train: document end and padding, start of a turn, end of a turn."""

TOOLS_INTRO = 'Tools you can call, each by <tool_call>{"name": …, "arguments": …}</tool_call>:'

NO_THOUGHT = "<think>\n\n</think>\n\n"
"""How an answer begins that is not to be reasoned about (Qwen3's ``enable_thinking=False``)."""


class Message(TypedDict):
    """One message of the normal form. Roles are system, user, assistant and tool; ``learn`` false makes an answer
    context only."""

    role: str
    content: str
    learn: NotRequired[bool]


class Turn(NamedTuple):
    """What stands between one ``<|im_start|>`` and its ``<|im_end|>``: ``messages`` are several where results of tools
    follow each other."""

    role: str
    content: str
    learn: bool
    messages: int


def turns(messages: Sequence[Message]) -> Iterator[Turn]:
    """The turns that messages are written in, contents trimmed. An empty system message has none of its own: it counts
    to the turn after it."""
    waiting, skipped = [], 0
    for message in messages:
        if message["role"] == "tool":
            waiting.append(f"<tool_response>\n{message['content']}\n</tool_response>")
            continue
        if waiting:
            yield Turn("user", "\n".join(waiting), False, len(waiting) + skipped)
            waiting, skipped = [], 0
        role, content = message["role"], message["content"].strip()
        if role == "system" and not content:
            skipped += 1
            continue
        yield Turn(role, content, role == "assistant" and message.get("learn", True), 1 + skipped)
        skipped = 0
    if waiting:
        yield Turn("user", "\n".join(waiting), False, len(waiting) + skipped)
