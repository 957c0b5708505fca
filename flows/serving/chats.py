"""Answers to conversations: whole, or as a stream of chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator

from flows.serving.body import Body
from flows.serving.events import event, events
from flows.serving.prompts import Prompt
from flows.serving.requests import ChatRequest
from flows.serving.talks import Going
from model.serving.engine import Piece, Scored
from model.serving.parts import Content, Part, Parts, Reasoning
from model.tokens.reply import ToolCall


def logprob(scored: Scored) -> Body:
    """A token as OpenAI writes it down."""
    top = [{"token": text, "bytes": data, "logprob": value} for text, data, value in scored.top]
    return {"token": scored.text, "bytes": scored.bytes, "logprob": scored.logprob, "top_logprobs": top}


class _Sample:
    """One of the answers, while it comes."""

    def __init__(self, request: ChatRequest, begun: str) -> None:
        tools = bool(request.tools) and request.tool_choice != "none"
        self.parts, self.one_call = Parts(tools), request.parallel_tool_calls is False
        self.parts.push(begun)
        self.scored: list[Body] = []
        self.calls = 0
        self.finish = ""

    def take(self, piece: Piece) -> list[Part]:
        """The parts that a piece makes sure; after a call that has to stay alone nothing more comes."""
        self.scored += map(logprob, piece.scored)
        found = self.parts.push(piece.text)
        if piece.finish:
            found += self.parts.end()
        kept: list[Part] = []
        for part in found:
            if not (self.one_call and self.calls):
                kept.append(part)
                self.calls += isinstance(part, ToolCall)
        if piece.finish:
            self.finish = "tool_calls" if self.calls and piece.finish == "stop" else piece.finish
        return kept


class Chat:
    """One request for a chat answer and how it is told."""

    def __init__(self, request: ChatRequest, prompt: Prompt, going: Going) -> None:
        self.request, self.prompt, self.going = request, prompt, going
        self.samples = [_Sample(request, prompt.begun) for _ in range(request.n or 1)]
        self.head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": going.served.name,
            "system_fingerprint": going.served.fingerprint,
        }

    async def whole(self) -> Body:
        """The answer as one object. Raises Wrong."""
        said: list[list[Part]] = [[] for _ in self.samples]
        async for batch in self.going.pieces():
            for _, piece in batch:
                said[piece.sample] += self.samples[piece.sample].take(piece)
        choices = [
            {
                "index": i,
                "message": _message(parts),
                "logprobs": {"content": sample.scored} if self.request.logprobs else None,
                "finish_reason": sample.finish,
            }
            for i, (sample, parts) in enumerate(zip(self.samples, said, strict=True))
        ]
        return {
            **self.head,
            "object": "chat.completion",
            "choices": choices,
            "usage": self.going.usage(),
            "forgotten": self.prompt.forgotten,
        }

    async def stream(self) -> AsyncIterator[bytes]:
        """The answer as events: the role first, the usage last where it is wanted, then ``[DONE]``."""
        options = self.request.stream_options
        usage = {"usage": None} if options and options.include_usage else {}
        head = {**self.head, "object": "chat.completion.chunk", **usage}
        for i in range(len(self.samples)):
            delta = {"role": "assistant", "content": "", "refusal": None}
            forgotten = {"forgotten": self.prompt.forgotten} if self.prompt.forgotten else {}
            yield event({**head, "choices": [_choice(i, delta)], **forgotten})
        async for lines in events(self.going, head, bool(usage), lambda _, piece: self._events(head, piece)):
            yield lines

    def _events(self, head: Body, piece: Piece) -> bytes:
        sample, i = self.samples[piece.sample], piece.sample
        before = sample.calls
        deltas = [delta for part in sample.take(piece) for delta in _deltas(part)]
        number = before
        for delta in deltas:
            for call in delta.get("tool_calls", []):
                call["index"] = number - ("id" not in call)
                number += "id" in call
        choices = [_choice(i, delta) for delta in deltas]
        if sample.finish:
            choices.append({**_choice(i, {}), "finish_reason": sample.finish})
        if choices and sample.scored:
            choices[0]["logprobs"] = {"content": sample.scored}
            sample.scored = []
        return b"".join(event({**head, "choices": [choice]}) for choice in choices)


def _choice(index: int, delta: Body) -> Body:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _deltas(part: Part) -> list[Body]:
    """A part as chunks: a call comes as its name, then its arguments, as clients expect them."""
    if isinstance(part, Content):
        return [{"content": part.text}]
    if isinstance(part, Reasoning):
        return [{"reasoning_content": part.text}]
    function = {"name": part.name, "arguments": ""}
    return [
        {"tool_calls": [{"id": _call_id(), "type": "function", "function": function}]},
        {"tool_calls": [{"function": {"arguments": part.arguments}}]},
    ]


def _message(parts: list[Part]) -> Body:
    content = "".join(part.text for part in parts if isinstance(part, Content))
    why = "".join(part.text for part in parts if isinstance(part, Reasoning))
    calls = [
        {"id": _call_id(), "type": "function", "function": {"name": part.name, "arguments": part.arguments}}
        for part in parts
        if isinstance(part, ToolCall)
    ]
    message: Body = {"role": "assistant", "content": None if calls and not content else content}
    message |= {"refusal": None}
    return message | ({"reasoning_content": why} if why else {}) | ({"tool_calls": calls} if calls else {})


def _call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
