"""Another engine behind the same face: llama.cpp's ``llama-server``, or ``vllm serve``.

Page, limits, keys, metrics and the check of every field are those of our own engine; what is asked goes on as it came,
and so does the answer. Names that are given to ``pipeline serve`` narrow what the other server has to those models.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from typing import cast

import httpx
from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from flows.serving.body import Body
from flows.serving.errors import Wrong
from flows.serving.metrics import Metrics
from flows.serving.requests import ChatRequest, CompletionRequest, Unused
from flows.serving.talks import Limits, listened

OTHER_NAMES = {"llama.cpp": {"repetition_penalty": "repeat_penalty"}, "vllm": {}}
"""What an engine calls an option that is not OpenAI's."""
_NOT_SENT = {*Unused.model_fields, "truncation"}


class Upstream:
    """The server at ``url``. ``key`` is what it asks for itself; ours never goes there."""

    def __init__(
        self, url: str, kind: str, names: Sequence[str], limits: Limits, metrics: Metrics, key: str = ""
    ) -> None:
        self.kind, self.names, self.limits, self.metrics = kind, list(names), limits, metrics
        self.url = url.rstrip("/").removesuffix("/v1")
        self.going = 0
        self.client = httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(limits.seconds, connect=10),
            limits=httpx.Limits(max_connections=None),
            trust_env=False,  # an engine beside us is not reached through a proxy
        )

    async def models(self) -> list[Body]:
        """See :class:`flows.serving.app.Backend`, as for all below."""
        answer = await self._get("/v1/models")
        listed: list[object] = answer.get("data") or []
        known: list[Body] = [
            {"id": str(m["id"]), "object": "model", "created": int(m.get("created") or 0), "owned_by": self.kind}
            for m in (cast(Body, one) for one in listed if isinstance(one, dict))
            if m.get("id")
        ]
        if missing := [name for name in self.names if name not in [m["id"] for m in known]]:
            raise Wrong(503, f"{self.url} has no model {', '.join(missing)}", code="model_not_found")
        return [m for m in known if not self.names or m["id"] in self.names]

    async def chat(self, request: Request, asked: ChatRequest) -> Response:
        return await self._passed(request, "/v1/chat/completions", asked)

    async def complete(self, request: Request, asked: CompletionRequest) -> Response:
        return await self._passed(request, "/v1/completions", asked)

    def lineage(self, model: str) -> str:
        raise Wrong(404, f"{self.kind} does not say what {model} was made from", param="model")

    async def health(self) -> dict[str, Body]:
        await self._get("/health", json=False)
        self.metrics.running.labels(self.kind).set(self.going)
        return {self.kind: {"running": self.going, "upstream": self.url}}

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncGenerator[None]:
        async with self.client:
            yield

    async def _get(self, path: str, json: bool = True) -> Body:
        try:
            answer = await self.client.get(path, timeout=10)
            answer.raise_for_status()
            found: object = answer.json() if json else {}
        except (httpx.HTTPError, ValueError) as error:
            raise self._silent(error) from None
        return cast(Body, found) if isinstance(found, dict) else {}

    def _silent(self, error: Exception) -> Wrong:
        text = str(error).split("\n")[0] or type(error).__name__
        return Wrong(503, f"{self.kind} at {self.url} does not answer: {text}", code="upstream")

    async def _passed(self, request: Request, path: str, asked: ChatRequest | CompletionRequest) -> Response:
        if self.names and asked.model not in self.names:
            raise Wrong(404, f"no model {asked.model!r} is served here", param="model", code="model_not_found")
        if self.going >= self.limits.queue:
            raise Wrong(
                429, f"{self.going} requests are going on; try again later", code="queue_full",
                headers={"Retry-After": "2"},
            )  # fmt: skip
        begun = time.monotonic()
        self.going += 1
        try:
            sent = self.client.build_request("POST", path, json=self._renamed(asked))
            answer = await listened(request, self._sent(sent))
        except BaseException:
            self.ended(begun, cut=True)
            raise
        if asked.stream and answer.status_code == 200:
            return _Passing(answer, self, begun)
        try:
            async with asyncio.timeout(self.limits.seconds):
                data = await answer.aread()
        finally:
            await answer.aclose()
            self.ended(begun, cut=False)
        return self._told(answer, data)

    async def _sent(self, sent: httpx.Request) -> httpx.Response:
        try:
            return await self.client.send(sent, stream=True)
        except httpx.TimeoutException:
            raise Wrong(504, "the answer took longer than the server allows", code="timeout") from None
        except httpx.HTTPError as error:
            raise self._silent(error) from None

    def _told(self, answer: httpx.Response, data: bytes) -> Response:
        """The other server's answer; what it says of an error in our form."""
        if answer.status_code < 300:
            return Response(data, media_type="application/json")
        try:
            answered: Body = httpx.Response(200, content=data).json()
            error: Body | str = answered.get("error", answered)
            message = str(error.get("message") or error) if isinstance(error, dict) else str(error)
        except (ValueError, AttributeError):
            message = data[:500].decode("utf-8", "replace")
        status = answer.status_code if answer.status_code < 500 else 502
        wrong = Wrong(status, f"{self.kind}: {message}", code="upstream")
        return JSONResponse(wrong.body, wrong.status)

    def _renamed(self, asked: ChatRequest | CompletionRequest) -> Body:
        body = asked.model_dump(exclude_unset=True, exclude_none=True, by_alias=True)
        names = OTHER_NAMES[self.kind]
        return {names.get(name, name): value for name, value in body.items() if name not in _NOT_SENT}

    def ended(self, begun: float, *, cut: bool) -> None:
        self.going -= 1
        nothing = {"prompt_tokens": 0, "completion_tokens": 0}  # the other server counts tokens
        self.metrics.ended(self.kind, nothing, time.monotonic() - begun, cut=cut)


class _Passing(StreamingResponse):
    """The other server's stream as it comes; closed, and so ended there, when our client leaves."""

    media_type = "text/event-stream"

    def __init__(self, answer: httpx.Response, upstream: Upstream, begun: float) -> None:
        self.answer, self.upstream, self.begun = answer, upstream, begun
        super().__init__(answer.aiter_raw(), headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cut = True
        try:
            await super().__call__(scope, receive, send)
            cut = not self.answer.is_stream_consumed
        finally:
            await self.answer.aclose()
            self.upstream.ended(self.begun, cut=cut)
