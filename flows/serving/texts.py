"""Continuations of texts: whole, or as a stream of chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator

from flows.serving.body import Body
from flows.serving.events import event, events
from flows.serving.requests import CompletionRequest
from flows.serving.talks import Going
from model.serving.engine import Piece, Scored


class Texts:
    """One request for continuations and how they are told; those of the first prompt come first."""

    def __init__(self, request: CompletionRequest, going: Going) -> None:
        self.request, self.going = request, going
        self.each = request.n or 1
        self.length = [0] * (len(going.asks) * self.each)  # characters of each, for the places of its tokens
        self.head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": going.served.name,
            "system_fingerprint": going.served.fingerprint,
        }

    async def whole(self) -> Body:
        """The continuations as one object. Raises Wrong."""
        texts, finish = [""] * len(self.length), [""] * len(self.length)
        scored: list[list[Scored]] = [[] for _ in texts]
        async for batch in self.going.pieces():
            for question, piece in batch:
                i = question * self.each + piece.sample
                texts[i] += piece.text
                finish[i] = piece.finish
                scored[i] += piece.scored
        choices = [_choice(i, texts[i], self._logprobs(i, scored[i]), finish[i]) for i in range(len(texts))]
        return {**self.head, "choices": choices, "usage": self.going.usage()}

    def stream(self) -> AsyncIterator[bytes]:
        """The continuations as events, the usage last where it is wanted, then ``[DONE]``."""
        options = self.request.stream_options
        usage = {"usage": None} if options and options.include_usage else {}
        head = {**self.head, **usage}
        return events(self.going, head, bool(usage), lambda question, piece: self._event(head, question, piece))

    def _event(self, head: Body, question: int, piece: Piece) -> bytes:
        if not (piece.text or piece.finish or piece.scored):
            return b""
        i = question * self.each + piece.sample
        return event({**head, "choices": [_choice(i, piece.text, self._logprobs(i, piece.scored), piece.finish)]})

    def _logprobs(self, i: int, scored: list[Scored]) -> Body | None:
        if self.request.logprobs is None:
            return None
        places: list[int] = []
        for one in scored:
            places.append(self.length[i])
            self.length[i] += len(one.text)
        top = [{text: value for text, _, value in one.top} for one in scored]
        return {
            "tokens": [one.text for one in scored],
            "token_logprobs": [one.logprob for one in scored],
            "top_logprobs": top if self.request.logprobs else None,
            "text_offset": places,
        }


def _choice(index: int, text: str, logprobs: Body | None, finish: str) -> Body:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish or None}
