"""The routes: OpenAI's API, the chat page, lineage, health and metrics."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import orjson
from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.middleware.cors import CORSMiddleware

from flows.serving import replies
from flows.serving.body import Body
from flows.serving.errors import Wrong, install
from flows.serving.gate import OPEN, Gate, Rules
from flows.serving.metrics import Metrics
from flows.serving.requests import ChatRequest, CompletionRequest
from pipeline.pages.chat.page import page

_STREAM: dict[int | str, Body] = {
    200: {"content": {"text/event-stream": {}}},
    "4XX": {"model": replies.Error, "description": "The request is wrong, or comes at a wrong time"},
    "5XX": {"model": replies.Error, "description": "The server is at fault, or too slow"},
}
_ERRORS: dict[int | str, Body] = {"4XX": _STREAM["4XX"]}
_JSON = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
_AS_JSON: dict[int | str, Body] = {
    code: {"content": _JSON, "description": _STREAM[code]["description"]} for code in ("4XX", "5XX")
}
"""Of routes whose answer is no JSON, though their errors are."""


class Backend(Protocol):
    """What answers behind the routes: models of this process, or another server."""

    async def models(self) -> list[Body]:
        """The entries of /v1/models."""
        ...

    async def chat(self, request: Request, asked: ChatRequest) -> Response:
        """Answer a conversation. Raises Wrong."""
        ...

    async def complete(self, request: Request, asked: CompletionRequest) -> Response:
        """Go on with a text. Raises Wrong."""
        ...

    def lineage(self, model: str) -> str:
        """The lineage page of a model. Raises Wrong (404)."""
        ...

    async def health(self) -> dict[str, Body]:
        """By model, how busy it is. Raises Wrong (503) when it cannot answer."""
        ...

    def run(self) -> contextlib.AbstractAsyncContextManager[None]:
        """What goes on as long as the server does."""
        ...


@dataclass(frozen=True)
class Face:
    """How the server shows itself. ``cors``: origins whose pages may call it; ``compare``: the model of the page's
    second column, "" for one column."""

    rules: Rules = field(default_factory=Rules)
    cors: Sequence[str] = ()
    compare: str = ""


def create(backend: Backend, metrics: Metrics, face: Face) -> FastAPI:
    """The server as an ASGI application."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        async with backend.run():
            yield

    app = FastAPI(
        title="full-pipeline serve",
        version="1",
        description="Models made by full-pipeline, behind OpenAI's API.",
        docs_url=None,
        redoc_url=None,  # both would be fetched from elsewhere
        lifespan=lifespan,
    )
    install(app)
    _answers(app, backend)
    _looks(app, backend, metrics, face)
    if face.rules.key:
        _with_key(app)
    app.add_middleware(Gate, rules=face.rules, metrics=metrics)
    if face.cors:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(face.cors), allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    return app


def _answers(app: FastAPI, backend: Backend) -> None:
    """The routes at which models speak."""

    @app.post("/v1/chat/completions", response_model=replies.ChatReply, responses=_STREAM)
    async def chat(request: Request, asked: ChatRequest) -> Response:
        """Answer a conversation; with ``stream`` as server-sent events."""
        _legible(await request.body())
        return await backend.chat(request, asked)

    @app.post("/v1/completions", response_model=replies.TextReply, responses=_STREAM)
    async def complete(request: Request, asked: CompletionRequest) -> Response:
        """Go on with a text; with ``stream`` as server-sent events."""
        _legible(await request.body())
        return await backend.complete(request, asked)

    @app.post("/v1/embeddings", include_in_schema=False)
    async def embeddings() -> Response:
        raise Wrong(404, "embeddings are not served: these are models that write", code="not_available")

    @app.get("/v1/models", response_model=replies.Models, responses=_ERRORS)
    async def models() -> Response:
        """The models that can be named in requests."""
        return JSONResponse({"object": "list", "data": await backend.models()})

    @app.get("/v1/models/{model:path}", response_model=replies.Model, responses=_ERRORS)
    async def model(model: str) -> Response:
        """One of them."""
        if not model:
            return await models()
        for known in await backend.models():
            if known["id"] == model:
                return JSONResponse(known)
        raise Wrong(404, f"no model {model!r} is served here", param="model", code="model_not_found")


def _legible(body: bytes) -> None:
    """Refuse halves of surrogate pairs, which JSON can spell and no tokenizer reads. Raises Wrong."""
    try:
        if b"\\u" in body:
            orjson.loads(body)
    except ValueError as error:
        raise Wrong(400, f"the body holds what is no text: {error}", code="invalid_json") from None


def _looks(app: FastAPI, backend: Backend, metrics: Metrics, face: Face) -> None:
    """The routes at which people and monitors look."""
    html = page(compare=face.compare)
    policy = (
        "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors"
        # a lineage page that is opened with a key comes from here and has styles of its own
        f" 'none'; style-src 'unsafe-inline'; script-src {_hashes(html)}"
    )

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def chat_page() -> Response:
        return HTMLResponse(html, headers={"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"})

    @app.get("/lineage/{model:path}", response_class=HTMLResponse, responses=_AS_JSON)
    async def lineage(model: str) -> Response:
        """What a model was made from, as a page."""
        text = await asyncio.to_thread(backend.lineage, model)
        headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}
        return HTMLResponse(text, headers=headers)

    @app.get("/health", response_model=replies.Health, responses={**_ERRORS, 503: _STREAM["5XX"]})
    async def health() -> Response:
        """Whether the server can answer, and how busy its models are."""
        return JSONResponse({"status": "ok", "models": await backend.health()})

    @app.get("/metrics", response_class=PlainTextResponse, responses=_AS_JSON)
    async def numbers() -> Response:
        """Numbers for Prometheus."""
        await backend.health()
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _hashes(html: str) -> str:
    """The scripts that a content security policy lets through: exactly those that the page has."""
    blocks = [block.partition("</script>")[0] for block in html.split("<script>")[1:]]
    digests = [base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks]
    return " ".join(f"'sha256-{digest}'" for digest in digests)


def _with_key(app: FastAPI) -> None:
    """Say in the schema that a key is needed."""

    def described() -> Body:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            schema.setdefault("components", {})["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for path, methods in schema["paths"].items():
                for operation in methods.values():
                    operation["security"] = [] if path in OPEN else [{"key": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]
