"""Conversations to a token dataset with loss masks, for the sft stage.

A conversation longer than the model's window loses its oldest exchanges first, because its last answer is the one that
its history leads to, and never half an exchange with tools.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from model.tokens.turns import Message
from pipeline.config.base import Progress, quiet
from pipeline.tokens.encoder import Encoder
from pipeline.tokens.sequences import Made, Unusable, fit, write_dataset


def encode_chats(
    records: Iterable[dict[str, Any]],
    tokenizer: Path,
    out: Path,
    *,
    max_tokens: int,
    val_share: float = 0.02,
    seed: int = 0,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Conversations ``{"messages", "source", "path", "line"}`` to a dataset of kind "chat"; returns flat metrics.

    Targets are what the assistant says, with its ``<|im_end|>``, but for messages with ``"learn": False``.
    ``max_tokens`` bounds a sequence; ``val_share`` of the records (at least one, if there are two) are held out. Raises
    ValueError when nothing is left to train on.
    """
    return write_dataset(records, _chat_sequences, "chat", tokenizer, out, max_tokens, val_share, seed, progress)


def _chat_sequences(record: dict[str, Any], chat: Encoder, limit: int) -> Made:
    messages = record["messages"]
    last = max((i for i, m in enumerate(messages) if _is_target(m)), default=-1)
    if last < 0:
        raise Unusable("no_answer")
    unanswered = len(messages) - last - 1
    messages = messages[: last + 1]  # a question that nobody answers teaches nothing
    kept, left_out = fit(messages, chat.sizes(messages), limit)
    size = sum(len(m["content"].strip().encode()) for m in kept if _is_target(m))
    return Made([chat.chat(kept)], size, left_out, unanswered)


def _is_target(message: Message) -> bool:
    return message["role"] == "assistant" and message.get("learn", True) and bool(message["content"].strip())
