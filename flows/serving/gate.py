"""What stands before every route: who may come in, how large a body may be, and what a browser must not do."""

from __future__ import annotations

import hmac
from collections.abc import Collection
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.serving.errors import Wrong
from flows.serving.metrics import Metrics

OPEN = ("/", "/health", "/openapi.json")
"""Paths that need no key: the page asks for it, and a load balancer has none."""
_KNOWN = ("/", "/health", "/openapi.json", "/metrics", "/v1/models", "/v1/chat/completions", "/v1/completions")


@dataclass(frozen=True)
class Rules:
    """``key``: "" for none; ``hosts``: names under which the server may be called, empty for any; ``largest``: bytes of
    a body."""

    key: str = ""
    hosts: Collection[str] = ()
    largest: int = 4 << 20


class Gate:
    """ASGI middleware that refuses what ``rules`` refuse, before anything is read."""

    def __init__(self, app: ASGIApp, rules: Rules, metrics: Metrics) -> None:
        self.app, self.rules, self.metrics = app, rules, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        if scope["method"] == "HEAD":  # what load balancers ask; the server leaves the body out
            scope = {**scope, "method": "GET"}

        async def count(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault("X-Content-Type-Options", "nosniff")
                known = path if path in _KNOWN else "other"
                self.metrics.requests.labels(known, str(message["status"])).inc()
            await send(message)

        try:
            self._check(scope, Headers(scope=scope))
            await self.app(scope, self._limited(receive), count)
        except Wrong as error:  # of a check, or of a body that grew too large while it was read
            await error.response()(scope, receive, count)

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "").rsplit("]", 1)
        name = (host[0] + "]" if len(host) > 1 else host[0].rpartition(":")[0] or host[0]).lower()
        if self.rules.hosts and name not in self.rules.hosts:
            # a page of another name that resolves to this machine (DNS rebinding) comes with its own name
            raise Wrong(403, f"this server answers as {', '.join(sorted(self.rules.hosts))}, not as {name!r}")
        if self.rules.key and scope["path"] not in OPEN and scope["method"] != "OPTIONS":
            scheme, _, key = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), self.rules.key.encode()):
                what = "the API key is wrong" if key else "an API key is needed: Authorization: Bearer KEY"
                raise Wrong(401, what, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        if scope["method"] == "POST":
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":  # a browser sends other types to any address without asking
                raise Wrong(415, f"the body has to be application/json, not {kind or 'of no type'}")
            if int(length if (length := headers.get("content-length", "")).isdecimal() else 0) > self.rules.largest:
                raise self._too_large()

    def _limited(self, receive: Receive) -> Receive:
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.rules.largest:
                raise self._too_large()
            return message

        return limited

    def _too_large(self) -> Wrong:
        return Wrong(413, f"the body is larger than {self.rules.largest:,} bytes", code="body_too_large")
