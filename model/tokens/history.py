"""What of a conversation fits a window."""

from __future__ import annotations

from collections.abc import Sequence

from model.tokens.turns import Message


def fit_history(messages: Sequence[Message], sizes: Sequence[int], room: int) -> tuple[list[Message], int] | None:
    """Leave out the oldest exchanges until the rest fits into ``room`` tokens; it and how many messages went.

    ``sizes``: tokens of each message, see ``ChatTokenizer.sizes``. What stays begins at a question of the user, never
    inside an exchange with tools. A leading system message and all from the last question on always stay; None when
    even they do not fit.
    """
    head = 1 if messages and messages[0]["role"] == "system" else 0
    room -= sum(sizes[:head])
    size = sum(sizes[head:])
    starts = [head, *(i for i in range(head + 1, len(messages)) if messages[i]["role"] == "user")]
    at = head
    for start in starts:
        size -= sum(sizes[at:start])
        at = start
        if size <= room:
            return [*messages[:head], *messages[start:]], start - head
    return None
