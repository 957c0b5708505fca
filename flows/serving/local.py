"""Models of this process behind the routes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from flows.serving.body import Body
from flows.serving.chats import Chat
from flows.serving.errors import Wrong
from flows.serving.lineage import lineage_page
from flows.serving.metrics import Metrics
from flows.serving.prompts import chat_prompt, text_prompts
from flows.serving.requests import ChatRequest, CompletionRequest
from flows.serving.served import Models, Served, has_lineage
from flows.serving.talks import Events, Going, Limits, Post, listened
from flows.serving.texts import Texts
from model.serving.engine import Engine

T = TypeVar("T")


@dataclass
class Local:
    """``seconds``: between two looks whether a name means another model."""

    served: Models
    limits: Limits
    metrics: Metrics
    seconds: float = 5.0

    @cached_property
    def post(self) -> Post:
        """The way from the models' threads to the loop that serves."""
        return Post(asyncio.get_running_loop())

    async def models(self) -> list[Body]:
        """See :class:`flows.serving.app.Backend`, as for all below."""
        return [model.facts() for model in self.served.by_name.values()]

    async def chat(self, request: Request, asked: ChatRequest) -> Response:
        model = self.served.get(asked.model)
        most = self.limits.tokens or model.engine.window
        engine, prompt = await _read(model, lambda engine: chat_prompt(engine, asked, most, model.defaults))
        chat = Chat(asked, prompt, Going(model, engine, [prompt.ask], self.limits, self.metrics, self.post))
        return await _told(request, chat, bool(asked.stream))

    async def complete(self, request: Request, asked: CompletionRequest) -> Response:
        model = self.served.get(asked.model)
        most = self.limits.tokens or model.engine.window
        engine, asks = await _read(model, lambda engine: text_prompts(engine, asked, most, model.defaults))
        texts = Texts(asked, Going(model, engine, asks, self.limits, self.metrics, self.post))
        return await _told(request, texts, bool(asked.stream))

    def lineage(self, model: str) -> str:
        found = self.served.get(model).found
        if not has_lineage(found.directory):
            raise Wrong(404, f"{model} does not say what it was made from", param="model")
        return lineage_page(found.directory, f"{model}: {found.artifact or found.directory.name}")

    async def health(self) -> dict[str, Body]:
        self.served.gauge()
        return {
            name: {"running": m.engine.running, "waiting": m.engine.waiting, "slots": m.engine.slots}
            for name, m in self.served.by_name.items()
        }

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncGenerator[None]:
        watch = asyncio.create_task(self.served.watch(self.seconds))
        try:
            yield
        finally:
            watch.cancel()
            await self.served.close()


async def _read(model: Served, prompt: Callable[[Engine], T]) -> tuple[Engine, T]:
    """What a request asks of the engine that the name means now. A long text and a large schema take their time, which
    is not the other answers'."""
    while True:
        engine = model.engine
        read = await asyncio.to_thread(prompt, engine)
        if engine is model.engine:  # else another model has taken over the name, with a tokenizer of its own
            return engine, read


async def _told(request: Request, answer: Chat | Texts, stream: bool) -> Response:
    if stream:
        return Events(answer.going, answer.stream())
    try:
        return JSONResponse(await listened(request, answer.whole()))
    finally:
        answer.going.leave()
