"""The prompts that a model is asked for its own preferences: those of the chats it was tuned on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any, TypedDict

from model.tokens.turns import Message
from pipeline.sources.teaching import facts


class Prompt(TypedDict):
    """A prompt with the chat's own answer, the keyword groups that tell a right one (may be none), and its place."""

    messages: list[Message]
    reference: str
    keywords: list[list[str]]
    source: str
    path: str
    line: int


def choose_prompts(chats: Iterable[dict[str, Any]], count: int, seed: int) -> list[Prompt]:
    """Up to ``count`` different prompts, chosen by their hash, in the order of the chats: all of each chat before its
    last answer."""
    known = _keywords()
    found: dict[str, Prompt] = {}
    for chat in chats:
        last = max((i for i, m in enumerate(chat["messages"]) if m["role"] == "assistant"), default=-1)
        if last < 1 or not chat["messages"][last]["content"].strip():
            continue
        messages: list[Message] = [{"role": m["role"], "content": m["content"]} for m in chat["messages"][:last]]
        reference = chat["messages"][last]["content"].strip()
        told = json.dumps(messages, ensure_ascii=False, sort_keys=True)
        groups = known.get(reference, []) if chat["source"] == "teaching" else []
        prompt: Prompt = {
            "messages": messages,
            "reference": reference,
            "keywords": groups,
            "source": chat["source"],
            "path": chat["path"],
            "line": chat["line"],
        }
        found.setdefault(told, prompt)
    order = sorted(found, key=lambda told: hashlib.blake2b(f"{seed}/{told}".encode(), digest_size=8).digest())
    chosen = set(order[:count])
    return [prompt for told, prompt in found.items() if told in chosen]


def _keywords() -> dict[str, list[list[str]]]:
    """Keyword groups of the teaching set by the answer they belong to."""
    return {block["answer"]: block["keywords"] for fact in facts() for block in (fact["zh"], fact["en"])}
