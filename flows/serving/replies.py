"""What is answered, as OpenAI's API has it; the schema in /openapi.json is made of these."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from flows.serving.body import Body

Finish = Literal["stop", "length", "tool_calls"]


class ErrorBody(BaseModel):
    """What is wrong: a sentence, a kind, the field, and a word that programs can go by."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """The form of every answer that is not 2xx."""

    error: ErrorBody


class Usage(BaseModel):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Alternative(BaseModel):
    """A token that could stand here; ``bytes`` are those of its text."""

    token: str
    bytes: list[int]
    logprob: float


class TokenLogprob(Alternative):
    """A token that was said."""

    top_logprobs: list[Alternative]


class ChatLogprobs(BaseModel):
    """Of every token that was said, end marks aside."""

    content: list[TokenLogprob]


class CalledFunction(BaseModel):
    """Name and arguments; these are JSON as the model wrote it."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call that the caller is asked to make."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(BaseModel):
    """One of ``n`` answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatReply(BaseModel):
    """Answers to a conversation. ``forgotten``: messages left out by ``truncation: auto``."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    forgotten: int


class TextLogprobs(BaseModel):
    """Of every token that was said; ``text_offset`` counts characters of the answer."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class TextChoice(BaseModel):
    """One continuation; those of the first prompt come first."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Finish


class TextReply(BaseModel):
    """Continuations of texts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage


class ModelFacts(BaseModel):
    """What the page shows of a model. ``window``: tokens that it reads at most, prompt and answer together."""

    window: int | None = None
    parameters: int | None = None
    artifact: str | None = None
    about: str | None = None
    lineage: str | None = None
    defaults: dict[str, float] | None = None


class Model(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    facts: ModelFacts | None = None


class Models(BaseModel):
    """All that are served."""

    object: Literal["list"]
    data: list[Model]


class Health(BaseModel):
    """``status`` is ok once every model is there; ``running`` and ``waiting`` count answers."""

    status: Literal["ok"]
    models: dict[str, Body]
