"""Server-sent events: what streams of chats and of texts have in common."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson

from flows.serving.errors import Wrong
from flows.serving.talks import Going
from model.serving.engine import Piece

DONE = b"data: [DONE]\n\n"
QUIET = b": still at it\n\n"


def event(value: object) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


async def events(
    going: Going, head: dict[str, Any], usage: bool, lines_of: Callable[[int, Piece], bytes]
) -> AsyncIterator[bytes]:
    """What comes of a request as events, by ``lines_of`` its question and piece; its usage where it is wanted, or what
    went wrong on the way; then ``[DONE]``."""
    try:
        async for batch in going.pieces():
            if lines := b"".join(lines_of(question, piece) for question, piece in batch):
                yield lines
            elif not batch:
                yield QUIET
    except Wrong as error:
        yield event(error.body)
        yield DONE
        return
    if usage:
        yield event({**head, "choices": [], "usage": going.usage()})
    yield DONE
