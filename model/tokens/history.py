"""What of a conversation fits a window."""

from __future__ import annotations

from collections.abc import Sequence

from model.tokens.turns import Message


def beginnings(messages: Sequence[Message]) -> tuple[int, list[int]]:
    """How many messages always stay (a leading system message), and where a history may begin after them: at its
    first message or at any later question of the user, never inside an exchange with tools."""
    head = 1 if messages and messages[0]["role"] == "system" else 0
    return head, [head, *(i for i in range(head + 1, len(messages)) if messages[i]["role"] == "user")]


def fit_history(messages: Sequence[Message], sizes: Sequence[int], room: int) -> tuple[list[Message], int] | None:
    """Leave out the oldest exchanges until the rest fits into ``room`` tokens; it and how many messages went.

    ``sizes``: tokens of each message. What stays begins where :func:`beginnings` says, all from the last question on
    always stays; None when even that does not fit.
    """
    head, starts = beginnings(messages)
    room -= sum(sizes[:head])
    size = sum(sizes[head:])
    at = head
    for start in starts:
        size -= sum(sizes[at:start])
        at = start
        if size <= room:
            return [*messages[:head], *messages[start:]], start - head
    return None
