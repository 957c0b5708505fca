"""Which targets of a conversation spell the tags of reasoning: ``<think>`` and ``<answer>``, with their ends."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from model.tokens.turns import Message, turns
from pipeline.tokens.encoder import Encoder

TagMarks = Literal["", "whole", "pieces"]
"""``whole``: every token that spells a part of a written tag, and no other. ``pieces``: every token whose id occurs in
the encoding of a tag alone, wherever it stands (MiniMind's ``train_reason.py``)."""
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_TAG = re.compile("|".join(TAGS))


def mark_tags(
    chat: Encoder, messages: Sequence[Message], ids: list[int], mask: list[int], marks: TagMarks
) -> list[int]:
    """``mask`` [tokens] of an encoded conversation with 2 at the targets that belong to a tag.

    With ``whole`` they are found by the characters that tokens spell, so that it does not matter what a tokenizer
    merges with a tag's brackets.
    """
    if marks == "pieces":
        pieces = {piece for tag in TAGS for piece in chat.encode(tag)}
        return [2 if learnt and token in pieces else learnt for token, learnt in zip(ids, mask, strict=True)]
    out, at = list(mask), 0
    newline = len(chat.encode("\n"))
    for turn in turns(messages):
        at += 1 + len(chat.encode(turn.role + "\n"))
        spans = [match.span() for match in _TAG.finditer(turn.content)] if turn.learn else []
        spelled = chat.backend.encode(turn.content, add_special_tokens=False).offsets if spans else []
        for i, (begin, end) in enumerate(spelled):
            if any(begin < tag_end and end > tag_begin for tag_begin, tag_end in spans):
                out[at + i] = 2
        at += (len(spelled) if spans else len(chat.encode(turn.content))) + 1 + newline
    return out
