"""A conversation as text, for documents."""

from __future__ import annotations

import re
from collections.abc import Sequence

from model.tokens.turns import CHAT_SPECIALS, IM_END, IM_START, Message, turns

_LITERAL_SPECIAL = re.compile("|".join(re.escape(token) for token in CHAT_SPECIALS))


def render_chat(messages: Sequence[Message]) -> str:
    """A conversation as ChatML text, for documents of kind "chat".

    A special token that somebody wrote *inside* a message gets a blank after its ``<``: it stays readable, and a data
    file cannot forge the end of a turn.
    """
    return "".join(
        f"{IM_START}{turn.role}\n{_LITERAL_SPECIAL.sub(_defuse, turn.content)}{IM_END}\n" for turn in turns(messages)
    )


def _defuse(match: re.Match[str]) -> str:
    return "< " + match.group()[1:]
