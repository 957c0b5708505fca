"""The prompts that a model is asked for its own preferences: those of the chats it was tuned on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator

from model.tokens.turns import Message
from pipeline.formats.record import Record
from pipeline.sampling.disturbed import disturbed
from pipeline.sampling.prompt import Prompt
from pipeline.sources.teaching import facts

_LONGEST = 200
"""Characters of a question that is taken apart."""


def choose_prompts(
    chats: Iterable[Record], count: int, seed: int, many: int = 0, taken: Collection[str] = ()
) -> list[Prompt]:
    """Up to ``count`` different prompts, chosen by their hash, in the order of the chats: all of each chat before its
    last answer. Behind them up to ``many`` for each answer of several single questions, see
    :mod:`pipeline.sampling.disturbed`; ``taken`` are questions of exams in their plain form."""
    found: dict[str, Prompt] = {}
    for prompt in _prompts(chats):
        found.setdefault(json.dumps(prompt["messages"], ensure_ascii=False, sort_keys=True), prompt)
    order = sorted(found, key=lambda told: hashlib.blake2b(f"{seed}/{told}".encode(), digest_size=8).digest())
    chosen = set(order[:count])
    own = [prompt for told, prompt in found.items() if told in chosen]
    return own + (_disturbed(list(found.values()), many, seed, taken) if many else [])


def _prompts(chats: Iterable[Record]) -> Iterator[Prompt]:
    known = {block["answer"]: block["keywords"] for fact in facts() for block in (fact["zh"], fact["en"])}
    for chat in chats:
        last = max((i for i, m in enumerate(chat["messages"]) if m["role"] == "assistant"), default=-1)
        if last < 1 or not chat["messages"][last]["content"].strip():
            continue
        messages: list[Message] = [{"role": m["role"], "content": m["content"]} for m in chat["messages"][:last]]
        reference = chat["messages"][last]["content"].strip()
        yield {
            "messages": messages,
            "reference": reference,
            "keywords": known.get(reference, []) if chat["source"] == "teaching" else [],
            "source": chat["source"],
            "path": chat["path"],
            "line": chat["line"],
        }


def _disturbed(prompts: list[Prompt], many: int, seed: int, taken: Collection[str]) -> list[Prompt]:
    groups: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        if len(prompt["messages"]) == 1 and len(prompt["messages"][0]["content"]) <= _LONGEST:
            groups.setdefault(prompt["reference"], []).append(prompt)
    asked = {answer: [p["messages"][0]["content"] for p in own] for answer, own in groups.items()}
    return [
        {**groups[answer][0], "messages": [{"role": "user", "content": text}]}
        for answer, texts in disturbed(asked, many, seed, taken).items()
        for text in texts
    ]
