"""What a model is asked when its own answers are judged."""

from __future__ import annotations

from typing import TypedDict

from model.tokens.turns import Message


class Prompt(TypedDict):
    """A prompt with the chat's own answer, the keyword groups that tell a right one (may be none), and its place."""

    messages: list[Message]
    reference: str
    keywords: list[list[str]]
    source: str
    path: str
    line: int
