"""What may be asked for, as OpenAI's API names it, with the options of sampling that llama.cpp and vLLM add.

A field that is not here is refused by name, because a misspelt option would otherwise be of no effect. Fields that
clients send by habit and that change nothing of the answer are taken and not used.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_SAMPLES = 16
MOST_STOPS = 16
Name = Annotated[str, Field(min_length=1, max_length=256)]
Stop = Annotated[str, Field(min_length=1, max_length=512)]
BiasedId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class Asked(BaseModel):
    """Types are kept as JSON has them (``"1"`` is no number, ``true`` neither), and so are limits of floats."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Unused(Asked):
    """Taken and not used: they steer OpenAI's service, or the memory of an engine, and not what is said."""

    user: str | None = Field(None, description="not used")
    metadata: dict[str, Any] | None = Field(None, description="not used")
    store: bool | None = Field(None, description="not used: nothing is kept")
    service_tier: str | None = Field(None, description="not used")
    safety_identifier: str | None = Field(None, description="not used")
    prompt_cache_key: str | None = Field(None, description="not used: equal beginnings are always reused")


class StreamOptions(Asked):
    """What a stream holds beside the answer."""

    include_usage: bool | None = Field(None, description="a last chunk with the numbers of tokens")
    include_obfuscation: bool | None = Field(None, description="not used")


class SamplingAsked(Unused):
    """How tokens are chosen. What is left out is the model's own default (``generation_config.json``)."""

    model: Name = Field(description="one of the ids of /v1/models")
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy")
    top_p: float | None = Field(None, gt=0, le=1, description="draw from the likeliest tokens of this share")
    top_k: int | None = Field(None, ge=-1, le=2**31 - 1, description="draw from the likeliest K tokens; 0 or -1 is off")
    min_p: float | None = Field(None, ge=0, le=1, description="least likelihood as a share of the likeliest token's")
    repetition_penalty: float | None = Field(None, ge=0.01, le=10, description="1 is off")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="equal seeds give equal answers")
    n: int | None = Field(None, ge=1, le=MOST_SAMPLES, description="answers")
    stop: Annotated[list[Stop], Field(max_length=MOST_STOPS)] | Stop | None = Field(
        None, description="strings before which an answer ends"
    )
    max_tokens: int | None = Field(None, ge=1, le=2**31 - 1, description="longest answer in tokens")
    min_tokens: int | None = Field(None, ge=0, le=2**31 - 1, description="tokens before which nothing ends an answer")
    ignore_eos: bool | None = Field(None, description="go on behind the model's own end; for measurements")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: Annotated[dict[BiasedId, Bias], Field(max_length=1024)] | None = Field(
        None, description="what is added to the logits of tokens, by their ids"
    )

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class TextPart(Asked):
    """A part of a content."""

    type: Literal["text"]
    text: str


Content = str | list[TextPart]


class Instruction(Asked):
    """What the model is told before the conversation."""

    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class Question(Asked):
    """What the user says."""

    role: Literal["user"]
    content: Content
    name: str | None = None


class CalledFunction(Asked):
    """Name and arguments (JSON) of a call."""

    name: Name
    arguments: str


class ToolCall(Asked):
    """A call that the model made earlier."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class Answer(Asked):
    """What the model said earlier."""

    role: Literal["assistant"]
    content: Content | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    name: str | None = None
    refusal: str | None = None
    audio: None = None
    annotations: list[Any] | None = None
    function_call: None = None


class Result(Asked):
    """What a tool returned."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: str | None = None


Message = Annotated[Instruction | Question | Answer | Result, Field(discriminator="role")]


class Function(Asked):
    """A function that may be called; ``parameters`` is a JSON schema."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Asked):
    """A tool; only functions are known."""

    type: Literal["function"]
    function: Function


class ChosenFunction(Asked):
    """The name of a function."""

    name: str


class ChosenTool(Asked):
    """The tool that has to be called."""

    type: Literal["function"]
    function: ChosenFunction


class JsonSchema(Asked):
    """A named JSON schema; what it cannot be held to is refused, ``strict`` or not."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Asked):
    """What an answer has to be: any text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _agree(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("type json_schema needs the field json_schema, and no other type does")
        return self


class ChatRequest(SamplingAsked):
    """A conversation that the model goes on with."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=2048)]
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31 - 1, description="the newer name of max_tokens")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20, description="alternatives beside each token")
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    continue_final_message: bool | None = Field(
        None, description="go on with the assistant's last message; what it says is not said again"
    )
    add_generation_prompt: bool | None = Field(None, description="false with continue_final_message, else true")
    modalities: list[Literal["text"]] | None = None
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="auto forgets the oldest exchanges when the model's window is full; disabled refuses"
    )

    @model_validator(mode="after")
    def _agree(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise ValueError("max_tokens and max_completion_tokens say different things")
        goes_on = bool(self.continue_final_message)
        if self.add_generation_prompt not in (None, not goes_on):
            raise ValueError("add_generation_prompt is false with continue_final_message, and true without")
        if goes_on and (not isinstance(self.messages[-1], Answer) or self.messages[-1].tool_calls):
            raise ValueError("continue_final_message needs a last message of the assistant, without calls")
        if goes_on and self.tool_choice not in (None, "none", "auto"):
            raise ValueError("a call that is forced begins an answer; continue_final_message has one already")
        names = [tool.function.name for tool in self.tools or []]
        if len(set(names)) < len(names):
            raise ValueError("two tools have the same name")
        if self.tool_choice not in (None, "none", "auto") and not names:
            raise ValueError("tool_choice needs tools")
        if self.response_format and self.response_format.type != "text":
            if self.tools and self.tool_choice != "none":
                raise ValueError("response_format and tools say different things of what an answer is")
            if self.min_tokens or self.ignore_eos:
                raise ValueError("response_format says when an answer ends: not min_tokens, nor ignore_eos")
        if isinstance(self.tool_choice, ChosenTool) and self.tool_choice.function.name not in names:
            raise ValueError("tool_choice names a function that is not among the tools")
        return self


Prompts = (
    str
    | Annotated[list[str], Field(min_length=1, max_length=MOST_SAMPLES)]
    | Annotated[list[TokenId], Field(min_length=1)]
    | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=MOST_SAMPLES)]
)


class CompletionRequest(SamplingAsked):
    """A text, or token ids, that the model goes on with; several prompts are answered in their order."""

    prompt: Prompts
    logprobs: int | None = Field(None, ge=0, le=20, description="alternatives beside each token")
    echo: Literal[False] | None = Field(None, description="not supported")
    best_of: Literal[1] | None = Field(None, description="not supported: use n")
    suffix: Literal[""] | None = Field(None, description="not supported")

    @model_validator(mode="after")
    def _agree(self) -> CompletionRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        return self
