"""A request on its way through the engine, as asyncio sees it: limits before, pieces as they come, a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from flows.serving.errors import Wrong
from flows.serving.metrics import Metrics
from flows.serving.served import Served
from model.serving.engine import Ask, Engine, Piece, Talk

SILENCE = 15.0
"""Seconds after which a stream without news gets a comment, so that proxies keep it open."""


@dataclass(frozen=True)
class Limits:
    """``queue``: answers that may wait for a slot; ``seconds``: longest time for a request, waiting included;
    ``tokens``: longest answer (0: the model's window); ``bytes``: longest body."""

    queue: int = 64
    seconds: float = 600.0
    tokens: int = 0
    bytes: int = 4 << 20


class Post:
    """From models' threads to the event loop: what comes while it is busy wakes it once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._box: deque[tuple[Going, int, Piece]] = deque()
        self._called = False

    def put(self, going: Going, question: int, piece: Piece) -> None:
        """Called on the model's thread."""
        self._box.append((going, question, piece))
        if not self._called:
            self._called = True
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody listens
                self.loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._called = False  # first: what is put from now on calls again
        while self._box:
            going, question, piece = self._box.popleft()
            going.take(question, piece)


class Going:
    """Several questions to one engine as one request. ``pieces`` yields (question, piece) in lists; whoever leaves it
    calls ``leave``, and the slots are free."""

    def __init__(
        self, served: Served, engine: Engine, asks: Sequence[Ask], limits: Limits, metrics: Metrics, post: Post
    ) -> None:
        self.served, self.engine, self.asks, self.metrics = served, engine, asks, metrics
        self.begun = time.monotonic()
        self.deadline = self.begun + limits.seconds
        self.tokens = 0
        self.first = 0.0  # seconds to the first piece
        self.left = sum(ask.samples for ask in asks)
        _admit(engine, self.left, limits, metrics, served.name)
        self._news: list[tuple[int, Piece]] = []
        self._heard = self.begun
        self._awake = asyncio.Event()
        self._alarm = post.loop.call_later(min(SILENCE, limits.seconds), self._ring)
        self._talks: list[Talk] = [engine.submit(ask, partial(post.put, self, i)) for i, ask in enumerate(asks)]

    def take(self, question: int, piece: Piece) -> None:
        """A piece has come."""
        self._news.append((question, piece))
        self._awake.set()

    def _ring(self) -> None:
        """Time has passed: wake up when that was silence, or all there was."""
        now = time.monotonic()
        at = min(self._heard + SILENCE, self.deadline)
        if now >= at:
            self._heard, at = now, min(now + SILENCE, max(self.deadline, now + 1))
            self._awake.set()
        self._alarm = asyncio.get_running_loop().call_later(at - now, self._ring)

    async def pieces(self) -> AsyncIterator[list[tuple[int, Piece]]]:
        """What came since the last time; an empty list after some silence. Raises Wrong (500, 504)."""
        while self.left:
            await self._awake.wait()
            self._awake.clear()
            batch, self._news = self._news, []
            if batch:
                self._heard = time.monotonic()
            if time.monotonic() >= self.deadline:
                raise Wrong(504, "the answer took longer than the server allows", code="timeout") from None
            for _, piece in batch:
                self._count(piece)
            yield batch

    def _count(self, piece: Piece) -> None:
        if not self.first:
            self.first = time.monotonic() - self.begun
            self.metrics.first.labels(self.served.name).observe(self.first)
        if not piece.finish:
            return
        self.left -= 1
        self.tokens += piece.tokens
        if piece.finish == "error":
            raise Wrong(500, "the model failed; the server's log has more", code="model_error")

    def usage(self) -> dict[str, int]:
        """Tokens read and written; the samples of a prompt share its reading."""
        read = sum(len(ask.prompt) for ask in self.asks)
        return {"prompt_tokens": read, "completion_tokens": self.tokens, "total_tokens": read + self.tokens}

    def leave(self) -> None:
        """Nobody listens any more."""
        self._alarm.cancel()
        if self.left:
            for talk in self._talks:
                talk.cancel()
        self.metrics.ended(self.served.name, self.usage(), time.monotonic() - self.begun, cut=bool(self.left))


def _admit(engine: Engine, samples: int, limits: Limits, metrics: Metrics, name: str) -> None:
    """Refuse what the queue has no room for, with a guess at when it will have."""
    waiting = engine.pending + samples - engine.slots
    if waiting > limits.queue:
        seconds = math.ceil(max(1.0, metrics.seconds(name) * waiting / engine.slots))
        raise Wrong(
            429,
            f"{engine.pending} answers are being made or wait, and at most {limits.queue} may wait; try again later",
            code="queue_full",
            headers={"Retry-After": str(min(seconds, 60))},
        )


async def listened(request: Request, work: Any) -> Any:
    """The result of a coroutine, which is ended when the client goes away (then 499, which nobody reads)."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Wrong(499, "the client has gone")
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Events(StreamingResponse):
    """Server-sent events of one request, which is left when the stream ends in any way."""

    media_type = "text/event-stream"

    def __init__(self, going: Going, lines: AsyncIterator[bytes]) -> None:
        super().__init__(lines, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self.going = going

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.going.leave()
