"""Requests as what a model reads: token ids, the options of sampling, and how long an answer may be."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, replace
from typing import Any

from flows.serving.errors import Wrong
from flows.serving.requests import (
    Answer,
    ChatRequest,
    ChosenTool,
    CompletionRequest,
    Content,
    ResponseFormat,
    Result,
    SamplingAsked,
)
from model.chat import SAMPLED, own_sampling
from model.generation.sampling import Sampling
from model.serving.engine import Ask, Engine
from model.serving.grammar import ANY_OBJECT, INSTALL, JsonRule, installed
from model.tokens.jinja import TemplateRefuses
from model.tokens.turns import Message
from pipeline.formats.bad import BadRecord
from pipeline.formats.calls import calls_of, tools_text


@dataclass(frozen=True)
class Prompt:
    """What a request asks the engine. ``begun``: how a forced call begins, which the model goes on with; ``forgotten``:
    messages that were left out."""

    ask: Ask
    begun: str = ""
    forgotten: int = 0


def chat_prompt(engine: Engine, request: ChatRequest, most: int, defaults: dict[str, float]) -> Prompt:
    """The conversation in the model's chat format. ``most``: longest answer that the server gives. Raises Wrong."""
    wanted = request.max_completion_tokens or request.max_tokens or int(defaults.get("max_new_tokens", 0)) or most
    begun = _begun(request)
    messages = normal(request)
    prefix = messages.pop()["content"] if request.continue_final_message else begun
    tail = engine.tokenizer.encode(prefix) if prefix else []
    try:
        ids, forgotten = engine.tokenizer.prompt(messages), 0
        if request.truncation == "auto":
            short = min(wanted, most, engine.window // 4)
            ids, forgotten = _fitting(engine, messages, ids, (short + len(tail), 1 + len(tail)))
    except TemplateRefuses as refusal:
        raise Wrong(400, f"the chat template of this model refuses: {refusal}", param="messages") from None
    ids = ids + tail
    ask = _ask(engine, request, ids, wanted, most, defaults, "messages")
    count = request.top_logprobs or 0
    ask = replace(ask, top_logprobs=count if request.logprobs else None, rule=_rule(engine, request.response_format))
    return Prompt(ask, begun, forgotten)


def _rule(engine: Engine, form: ResponseFormat | None) -> JsonRule | None:
    """What the answer is held to. Raises Wrong."""
    if form is None or form.type == "text":
        return None
    if not installed():
        what = f"response_format {form.type} needs a package that this server lacks: {INSTALL}"
        raise Wrong(400, what, param="response_format", code="unsupported_value")
    try:
        return engine.grammars.json(form.json_schema.schema_ if form.json_schema else ANY_OBJECT)
    except ValueError as error:
        raise Wrong(400, f"response_format: {error}", param="response_format.json_schema.schema") from None


def _fitting(engine: Engine, messages: list[Message], ids: list[int], rooms: tuple[int, ...]) -> tuple[list[int], int]:
    """The ids of what fits of a conversation and how many messages do not, with the first of the ``rooms`` for an
    answer that leaves the last question whole; all of it when none does."""
    for room in rooms:
        if fitting := engine.tokenizer.fit(messages, engine.window - room, ask=True):
            return (engine.tokenizer.prompt(fitting[0]), fitting[1]) if fitting[1] else (ids, 0)
    return ids, 0


def text_prompts(engine: Engine, request: CompletionRequest, most: int, defaults: dict[str, float]) -> list[Ask]:
    """A question to the engine for each prompt. Raises Wrong."""
    given: list[Any] = request.prompt if isinstance(request.prompt, list) else [request.prompt]
    prompts: list[str | list[int]] = [given] if isinstance(given[0], int) else given
    asks: list[Ask] = []
    for prompt in prompts:
        ids = engine.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        size = engine.model.config.vocab_size
        if any(token >= size for token in ids):
            raise Wrong(400, f"the prompt has ids that the model does not: it has {size}", param="prompt")
        # a text begins as documents do in training
        ids = ids or [engine.tokenizer.end_of_text_id]
        ids = [engine.tokenizer.end_of_text_id, *ids] if isinstance(prompt, str) and prompt else ids
        ask = _ask(engine, request, ids, request.max_tokens or 16, most, defaults, "prompt")
        asks.append(replace(ask, top_logprobs=request.logprobs))
    return asks


def _bias(engine: Engine, request: SamplingAsked) -> dict[int, float]:
    """What is added to the logits of tokens. Raises Wrong."""
    bias = {int(token): value for token, value in (request.logit_bias or {}).items()}
    if strange := [token for token in bias if token >= engine.model.config.vocab_size]:
        what = f"logit_bias names the token {strange[0]}, and the model has {engine.model.config.vocab_size}"
        raise Wrong(400, what, param="logit_bias")
    return bias


def _ask(
    engine: Engine,
    request: SamplingAsked,
    ids: list[int],
    wanted: int,
    most: int,
    defaults: dict[str, float],
    param: str,
) -> Ask:
    room = engine.window - len(ids)
    if room < 1:
        raise Wrong(
            400,
            f"the prompt has {len(ids)} tokens and this model reads at most {engine.window}, prompt and answer together"
            + ("; truncation: auto forgets the oldest exchanges" if param == "messages" else ""),
            param=param,
            code="context_length_exceeded",
        )
    longest, least = min(wanted, most, room), request.min_tokens or 0
    if least > longest:
        raise Wrong(400, f"min_tokens is {least}, and the answer has room for {longest}", param="min_tokens")
    return Ask(
        ids,
        longest,
        _sampling(request, defaults),
        samples=request.n or 1,
        stop=request.stops,
        least=least,
        on_and_on=bool(request.ignore_eos),
        bias=_bias(engine, request),
    )


def _sampling(request: SamplingAsked, defaults: dict[str, float]) -> Sampling:
    given = {name: getattr(request, name) for name in (*SAMPLED, "presence_penalty", "frequency_penalty")}
    seed = secrets.randbits(62) if request.seed is None else request.seed
    if given["temperature"] is not None and given["temperature"] < 1e-4:
        given["temperature"] = 0.0  # greedy all the same, and what logits are divided by stays a number
    if given["top_k"] == -1:  # vLLM's and llama.cpp's way to say off
        given["top_k"] = 0
    return own_sampling(defaults, **given, seed=seed)


def normal(request: ChatRequest) -> list[Message]:
    """The conversation in the normal form that models are trained on: calls and reasoning in the contents, the tools in
    the leading system message, results in the order of their calls. Raises Wrong."""
    messages: list[Message] = []
    waiting: list[str] = []
    results: list[tuple[int, Message]] = []
    for i, message in enumerate(request.messages):
        if isinstance(message, Result):
            if message.tool_call_id not in waiting:
                raise Wrong(
                    400,
                    f"messages.{i}: no call of the message before has the id {message.tool_call_id!r}",
                    param=f"messages.{i}.tool_call_id",
                )
            results.append((waiting.index(message.tool_call_id), {"role": "tool", "content": _text(message.content)}))
            continue
        messages += _sorted(results)
        results = []
        if isinstance(message, Answer):
            waiting = [call.id for call in message.tool_calls or []]
            messages.append({"role": "assistant", "content": _said(message, i)})
        else:
            waiting = []
            role = "user" if message.role == "user" else "system"
            messages.append({"role": role, "content": _text(message.content)})
    messages += _sorted(results)
    if request.tools and request.tool_choice != "none":
        text = tools_text([tool.model_dump(exclude_unset=True) for tool in request.tools])
        lead = messages.pop(0)["content"].strip() if messages and messages[0]["role"] == "system" else ""
        messages.insert(0, {"role": "system", "content": "\n\n".join(part for part in (lead, text) if part)})
    return messages


def _sorted(results: list[tuple[int, Message]]) -> list[Message]:
    return [message for _, message in sorted(results, key=lambda result: result[0])]


def _said(message: Answer, place: int) -> str:
    """An earlier answer with its reasoning before and its calls after it."""
    try:
        calls = calls_of([call.function.model_dump() for call in message.tool_calls or []])
    except BadRecord as error:
        raise Wrong(400, f"messages.{place}: {error.detail}", param=f"messages.{place}.tool_calls") from None
    said = "\n".join(part for part in (_text(message.content).strip(), *calls) if part)
    why = (message.reasoning_content or "").strip()
    return f"<think>\n{why}\n</think>\n\n{said}" if why else said


def _text(content: Content | None) -> str:
    if isinstance(content, list):
        return "".join(part.text for part in content)
    return content or ""


def _begun(request: ChatRequest) -> str:
    """How an answer begins that has to be a call: the model cannot say anything else then. It ends where a token does
    that the model has learnt, so without the blank before the arguments."""
    choice = request.tool_choice
    if isinstance(choice, ChosenTool):
        return f'<tool_call>\n{{"name": {json.dumps(choice.function.name)}, "arguments":'
    return '<tool_call>\n{"name": "' if choice == "required" else ""
