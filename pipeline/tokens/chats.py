"""Conversations to a token dataset with loss masks, for the sft stage.

A conversation longer than the model's window loses its oldest exchanges first, because its last answer is the one that
its history leads to, and never half an exchange with tools.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from model.tokens.turns import Message
from pipeline.config.base import Progress, quiet
from pipeline.formats.record import Record
from pipeline.tokens.encoder import Encoder
from pipeline.tokens.sequences import Made, Unusable, fit, write_dataset
from pipeline.tokens.tags import TagMarks, mark_tags


def encode_chats(
    records: Iterable[Record],
    tokenizer: Path,
    out: Path,
    *,
    max_tokens: int,
    val_share: float = 0.02,
    seed: int = 0,
    weights: Mapping[str, float] = MappingProxyType({}),
    tags: TagMarks = "",
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Conversations ``{"messages", "source", "path", "line"}`` to a dataset of kind "chat"; returns flat metrics.

    Targets are what the assistant says, with its ``<|im_end|>``, but for messages with ``"learn": False``.
    ``max_tokens`` bounds a sequence; ``val_share`` of the records (at least one, if there are two) are held out.
    ``weights`` says how many times a source's records appear in training (1 where not named). ``tags`` marks targets
    that belong to a tag of reasoning by 2 in the mask, see :mod:`pipeline.tokens.tags`. Raises ValueError when nothing
    is left to train on.
    """
    make = functools.partial(_chat_sequences, tags=tags)
    return write_dataset(records, make, "chat", tokenizer, out, max_tokens, val_share, seed, progress, weights)


def _chat_sequences(record: Record, chat: Encoder, limit: int, tags: TagMarks) -> Made:
    messages = record["messages"]
    last = max((i for i, m in enumerate(messages) if _is_target(m)), default=-1)
    if last < 0:
        raise Unusable("no_answer")
    unanswered = len(messages) - last - 1
    messages = messages[: last + 1]  # a question that nobody answers teaches nothing
    kept, left_out = fit(chat, messages, limit)
    size = sum(len(m["content"].strip().encode()) for m in kept if _is_target(m))
    sequences = chat.sequences(kept)
    if tags:
        sequences = [(ids, mark_tags(chat, kept, ids, mask, tags)) for ids, mask in sequences]
    return Made(sequences, size, left_out, unanswered)


def _is_target(message: Message) -> bool:
    return message["role"] == "assistant" and message.get("learn", True) and bool(message["content"].strip())
