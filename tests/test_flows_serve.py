"""The server as OpenAI's own client meets it."""

import json

import jsonschema
import openai
import pytest
import torch
from serve_helpers import ASKED, BRIEF, CALL, TOOLS, Running, skilled_dir
from token_helpers import FACTS

from model.tokens.chat import ChatTokenizer

QUESTION = [{"role": "user", "content": "什么是词元？"}]
FACT = FACTS["什么是词元？"]


@pytest.fixture(scope="module")
def server():
    running = Running({"m": skilled_dir()})
    yield running
    running.close()


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def test_a_conversation_is_answered_whole(client):
    answer = client.chat.completions.create(model="m", messages=QUESTION)
    assert answer.choices[0].message.content == FACT and answer.choices[0].finish_reason == "stop"
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion" and answer.model == "m"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 20


def test_a_stream_has_one_role_one_id_whole_characters_usage_and_an_end(client, server):
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model="m", messages=QUESTION, stream=True, stream_options=options))
    assert len({chunk.id for chunk in chunks}) == 1 and len({chunk.created for chunk in chunks}) == 1
    spoken = [chunk for chunk in chunks if chunk.choices]
    assert [chunk.choices[0].delta.role for chunk in spoken] == ["assistant"] + [None] * (len(spoken) - 1)
    pieces = [chunk.choices[0].delta.content or "" for chunk in spoken]
    assert "".join(pieces) == FACT and len(pieces) > 5 and not any("\ufffd" in piece for piece in pieces)
    assert [chunk.choices[0].finish_reason for chunk in spoken][-2:] == [None, "stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 5
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert server.events(model="m", messages=QUESTION)[-1]["choices"][0]["finish_reason"] == "stop"


def test_n_answers_differ_and_a_seed_repeats_them(client):
    def drawn(seed):
        made = client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "Say"}], n=3, seed=seed, temperature=1.5, max_tokens=12
        )
        return [choice.message.content for choice in made.choices]

    first = drawn(5)
    assert len(set(first)) == 3 and drawn(5) == first and drawn(6) != first
    chunks = client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "Say"}],
        n=3,
        seed=5,
        temperature=1.5,
        max_tokens=12,
        stream=True,
    )
    said = ["", "", ""]
    for chunk in chunks:
        said[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert said == first


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 2, "top_p": 0.9, "frequency_penalty": 1}])
def test_logprobs_are_the_models_own_however_tokens_are_drawn(client, server, options):
    made = client.chat.completions.create(
        model="m", messages=QUESTION, logprobs=True, top_logprobs=3, max_tokens=8, seed=1, **options
    )
    scored = made.choices[0].logprobs.content
    engine = server.engines["m"].engine
    prompt = engine.tokenizer.prompt(QUESTION)
    by_bytes = {bytes(engine.spelling(i)[1]): i for i in range(450)}
    ids = [by_bytes[bytes(one.bytes)] for one in scored]
    with torch.no_grad():
        own = torch.log_softmax(engine.model(torch.tensor([prompt + ids]))[0, len(prompt) - 1 : -1].float(), -1)
    for one, token, row in zip(scored, ids, own, strict=True):
        assert one.logprob == pytest.approx(float(row[token]), abs=1e-3)
        assert [t.logprob for t in one.top_logprobs] == pytest.approx(row.topk(3).values.tolist(), abs=1e-3)
    said = b"".join(bytes(one.bytes) for one in scored)
    assert said.decode("utf-8", "ignore").startswith(made.choices[0].message.content.split("\ufffd")[0])
    likeliest = [one.logprob == one.top_logprobs[0].logprob for one in scored]
    assert all(likeliest) is (options["temperature"] == 0)


def test_tools_are_called_answered_and_streamed(client):
    made = client.chat.completions.create(model="m", messages=[ASKED], tools=TOOLS)
    message = made.choices[0].message
    assert made.choices[0].finish_reason == "tool_calls" and message.content == "Let me look."
    assert [(c.function.name, json.loads(c.function.arguments)) for c in message.tool_calls] == [("depth", {"pier": 1})]
    call = message.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": "2"}
    after = client.chat.completions.create(
        model="m", messages=[ASKED, message.model_dump(exclude_none=True), result], tools=TOOLS
    )
    assert after.choices[0].message.content == "Two." and after.choices[0].message.tool_calls is None

    name, arguments, ids, said, finish = "", "", set(), "", None
    for chunk in client.chat.completions.create(model="m", messages=[ASKED], tools=TOOLS, stream=True):
        delta, finish = chunk.choices[0].delta, chunk.choices[0].finish_reason or finish
        said += delta.content or ""
        for part in delta.tool_calls or []:
            assert part.index == 0
            ids |= {part.id} - {None}
            name, arguments = name + (part.function.name or ""), arguments + (part.function.arguments or "")
    assert (name, json.loads(arguments), said, finish) == ("depth", {"pier": 1}, "Let me look.", "tool_calls")
    assert len(ids) == 1


def test_a_call_can_be_forced_and_tools_can_be_left_out(client):
    chosen = {"type": "function", "function": {"name": "depth"}}
    for choice in ("required", chosen):
        made = client.chat.completions.create(model="m", messages=[BRIEF], tools=TOOLS, tool_choice=choice)
        call = made.choices[0].message.tool_calls[0].function
        assert (call.name, json.loads(call.arguments)) == ("depth", {"pier": 1})
    none = client.chat.completions.create(model="m", messages=QUESTION, tools=TOOLS, tool_choice="none")
    assert none.choices[0].message.content == FACT


def test_reasoning_has_a_field_of_its_own(client, server):
    thought = [{"role": "user", "content": "Think!"}]
    message = client.chat.completions.create(model="m", messages=thought).choices[0].message
    assert (message.reasoning_content, message.content) == ("hm", "Two.")
    deltas = [event["choices"][0]["delta"] for event in server.events(model="m", messages=thought)]
    assert "".join(d.get("reasoning_content", "") for d in deltas) == "hm"
    assert "".join(d.get("content", "") for d in deltas) == "Two."


@pytest.mark.parametrize("stop", ["STOP", [" 9 STOP", "12"], ["P 1", "zzz"], "7 8", "1 2 3 4 5 6 7 8 9 STOP 10 11 12"])
def test_a_stop_string_ends_an_answer_and_no_part_of_it_is_shown(client, stop):
    words = "1 2 3 4 5 6 7 8 9 STOP 10 11 12"
    strings = [stop] if isinstance(stop, str) else stop
    wanted = min((words.partition(one)[0] for one in strings), key=len)
    counting = [{"role": "user", "content": "Count."}]
    made = client.chat.completions.create(model="m", messages=counting, stop=stop)
    assert (made.choices[0].message.content, made.choices[0].finish_reason) == (wanted, "stop")
    said = ""
    for chunk in client.chat.completions.create(model="m", messages=counting, stop=stop, stream=True):
        said += chunk.choices[0].delta.content or ""
        assert wanted.startswith(said)
    assert said == wanted


def test_an_answer_is_held_to_json_of_a_schema_however_it_is_drawn(client, monkeypatch):
    fields = {"name": {"enum": ["词元", "loss"]}, "depth": {"type": "integer", "minimum": 0, "maximum": 99}}
    closed = {"type": "object", "properties": fields, "required": ["name", "depth"], "additionalProperties": False}
    schema = {**closed, "properties": {**fields, "more": {"type": "array", "maxItems": 2, "items": closed}}}
    form = {"type": "json_schema", "json_schema": {"name": "pier", "schema": schema, "strict": True}}
    for drawn in ({"temperature": 0, "logprobs": True}, {"temperature": 2, "n": 3, "seed": 1, "top_p": 0.9}):
        penalties = {"presence_penalty": 2, "extra_body": {"repetition_penalty": 10}}
        made = client.chat.completions.create(
            model="m", messages=QUESTION, response_format=form, max_tokens=200, **drawn, **penalties
        )
        for choice in made.choices:
            assert choice.finish_reason == "stop"
            jsonschema.validate(json.loads(choice.message.content), schema)
    assert len({choice.message.content for choice in made.choices}) > 1
    stream = client.chat.completions.create(
        model="m", messages=QUESTION, response_format={"type": "json_object"}, max_tokens=12, stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream).startswith("{")
    monkeypatch.setattr("flows.serving.prompts.installed", lambda: False)
    with pytest.raises(openai.BadRequestError, match=r"lacks: pip install 'full-pipeline\[json\]'"):
        client.chat.completions.create(model="m", messages=QUESTION, response_format=form)


def test_an_answer_that_was_begun_is_gone_on_with(client):
    begun = [*QUESTION, {"role": "assistant", "content": FACT[:3]}]
    goes_on = {"continue_final_message": True, "add_generation_prompt": False}
    made = client.chat.completions.create(model="m", messages=begun, extra_body=goes_on)
    assert made.choices[0].message.content == FACT[3:]
    for wrong in ({"messages": QUESTION}, {"extra_body": {**goes_on, "add_generation_prompt": True}}):
        with pytest.raises(openai.BadRequestError, match="continue_final_message"):
            client.chat.completions.create(**{"model": "m", "messages": begun, "extra_body": goes_on, **wrong})


def test_a_bias_brings_tokens_or_keeps_them_away(client):
    def made(**more):
        return client.completions.create(model="m", prompt=[9, 10], max_tokens=4, logprobs=1, **more).choices[0]

    usual, forced = made(), made(logit_bias={"60": 100})
    assert len(set(forced.logprobs.tokens)) == 1 and forced.text != usual.text
    assert max(forced.logprobs.token_logprobs) < -1  # the model's own, without the bias
    assert 60 in ChatTokenizer.load(skilled_dir()).encode(forced.logprobs.tokens[0])
    assert made(logit_bias={"60": -100}).text == usual.text


def test_an_answer_may_have_a_shortest_length_and_no_end_of_its_own(client):
    def made(**more):
        return client.chat.completions.create(model="m", messages=QUESTION, max_tokens=60, extra_body=more)

    usual, longer, endless = made(), made(min_tokens=40), made(ignore_eos=True, stop=[FACT[:2]])
    assert usual.usage.completion_tokens < 40 <= longer.usage.completion_tokens
    assert longer.choices[0].message.content.startswith(FACT)
    assert endless.choices[0].message.content == "" and endless.choices[0].finish_reason == "stop"
    kept = made(ignore_eos=True, stop=[FACT[:2]], min_tokens=40)  # nor does a stop string end it before
    assert kept.choices[0].message.content.startswith(FACT)


def test_texts_are_continued(client, server):
    made = client.completions.create(model="m", prompt=["alpha", "数据"], max_tokens=5, n=2, temperature=1, seed=1)
    assert [c.index for c in made.choices] == [0, 1, 2, 3] and all(c.finish_reason for c in made.choices)
    assert made.object == "text_completion" and 0 < made.usage.completion_tokens <= 20
    ids = [9, 10, 11]
    whole = client.completions.create(model="m", prompt=ids, max_tokens=6, logprobs=2)
    logprobs = whole.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) <= 6
    pieces = list(client.completions.create(model="m", prompt=ids, max_tokens=6, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
    assert len(client.completions.create(model="m", prompt="alpha").choices[0].text) < 200  # sixteen tokens at most


def test_models_are_listed_with_what_they_are(client):
    listed = client.models.list().data
    assert [model.id for model in listed] == ["m"] and listed[0].facts["window"] == 320
    assert client.models.retrieve("m").id == "m"
    with pytest.raises(openai.NotFoundError, match="no model 'x'"):
        client.models.retrieve("x")


def test_what_is_wrong_is_an_exception_of_the_client_that_names_the_field(client, server):
    def wrong(kind, param, **body):
        with pytest.raises(kind) as caught:
            client.chat.completions.create(**{"model": "m", "messages": QUESTION, **body})
        assert caught.value.body["param"] == param and caught.value.body["message"], caught.value.body

    wrong(openai.NotFoundError, "model", model="gpt-4")
    wrong(openai.BadRequestError, "temperature", temperature=3)
    wrong(openai.BadRequestError, "temperature", temperature="0.5")
    wrong(openai.BadRequestError, "repetition_penalty", extra_body={"repetition_penalty": 5e-324})  # 0 in fp32
    assert client.chat.completions.create(model="m", messages=QUESTION, temperature=5e-324).choices
    wrong(openai.BadRequestError, "n", n=0)
    wrong(openai.BadRequestError, "max_tokens", max_tokens=-1)
    wrong(openai.BadRequestError, "messages", messages=[])
    wrong(openai.BadRequestError, "messages.0.role", messages=[{"role": "boss", "content": "x"}])
    wrong(openai.BadRequestError, "temprature", extra_body={"temprature": 1})
    wrong(openai.BadRequestError, "response_format", response_format={"type": "json_schema"})
    odd = {"name": "odd", "schema": {"type": "nonsense"}}
    place = "response_format.json_schema.schema"
    wrong(openai.BadRequestError, place, response_format={"type": "json_schema", "json_schema": odd})
    wrong(openai.BadRequestError, "min_tokens", max_tokens=5, extra_body={"min_tokens": 6})
    wrong(openai.BadRequestError, "logit_bias", logit_bias={"450": 10})
    wrong(openai.BadRequestError, "logit_bias.9", logit_bias={"9": 101})
    wrong(openai.BadRequestError, "messages", messages=[{"role": "user", "content": "word " * 500}])
    wrong(
        openai.BadRequestError,
        "messages.0.tool_call_id",
        messages=[{"role": "tool", "tool_call_id": "x", "content": "2"}],
    )
    with pytest.raises(openai.NotFoundError, match="embeddings are not served"):
        client.embeddings.create(model="m", input="x")
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]
    with pytest.raises(openai.BadRequestError, match="text"):
        client.chat.completions.create(model="m", messages=image)
    assert (
        server.http.post("/v1/chat/completions", content=b"{", headers={"content-type": "application/json"}).json()[
            "error"
        ]["code"]
        == "invalid_json"
    )


def test_fields_that_clients_send_by_habit_are_taken(client):
    made = client.chat.completions.create(
        model="m", messages=[{"role": "developer", "content": [{"type": "text", "text": ""}]}, *QUESTION], user="u",
        metadata={"a": "b"}, store=False, parallel_tool_calls=True, logit_bias={}, response_format={"type": "text"},
    )  # fmt: skip
    assert made.choices[0].message.content == FACT


def test_results_may_come_in_any_order_and_calls_keep_theirs(server):
    calls = [{**CALL, "id": name} for name in ("a", "b")]
    results = [{"role": "tool", "tool_call_id": name, "content": name} for name in ("b", "a")]
    from flows.serving.prompts import normal
    from flows.serving.requests import ChatRequest

    request = ChatRequest.model_validate(
        {"model": "m", "messages": [ASKED, {"role": "assistant", "tool_calls": calls}, *results]}
    )
    assert [m["content"] for m in normal(request) if m["role"] == "tool"] == ["a", "b"]
