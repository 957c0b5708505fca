"""Another engine behind the same face: llama.cpp itself, and a server that speaks vLLM's dialect of OpenAI's API."""

import socket
import time

import openai
import pytest
from serve_helpers import Running, babbling_dir, skilled_dir
from token_helpers import FACTS, taught_dir

from flows.serving.gate import Rules
from flows.serving.metrics import Metrics
from flows.serving.talks import Limits
from flows.serving.upstream import Upstream

QUESTION = [{"role": "user", "content": "什么是词元？"}]


def front(url, kind, names=(), **face):
    return Running({}, backend=Upstream(url, kind, names, Limits(queue=2), Metrics(), "theirs"), **face)


@pytest.fixture(scope="module")
def engine():
    running = Running({"m": skilled_dir(), "long": babbling_dir()}, rules=Rules(key="theirs"))
    yield running
    running.close()


def test_answers_streams_and_errors_of_another_server_pass_with_our_key_before_it(engine):
    server = front(engine.url, "vllm", rules=Rules(key="ours"))
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="ours", max_retries=0)
    assert {model.id for model in client.models.list()} == {"m", "long"}
    assert (
        client.chat.completions.create(model="m", messages=QUESTION).choices[0].message.content == FACTS["什么是词元？"]
    )
    chunks = list(client.chat.completions.create(model="m", messages=QUESTION, stream=True, temperature=0))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == FACTS["什么是词元？"]
    with pytest.raises(openai.NotFoundError, match="vllm: no model 'x'"):
        client.chat.completions.create(model="x", messages=QUESTION)
    with pytest.raises(openai.BadRequestError, match="temprature"):
        client.chat.completions.create(model="m", messages=QUESTION, extra_body={"temprature": 1})
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="theirs").models.list()
    open_streams = [
        client.completions.create(model="long", prompt=[9], max_tokens=16_000, stream=True) for _ in range(2)
    ]
    with pytest.raises(openai.RateLimitError):
        client.completions.create(model="m", prompt="x")
    for stream in open_streams:
        stream.close()
    ours = {"Authorization": "Bearer theirs"}
    for _ in range(500):  # whoever leaves the face leaves the engine too
        if not any(m["running"] for m in engine.http.get("/health", headers=ours).json()["models"].values()):
            break
        time.sleep(0.02)
    else:
        raise AssertionError("the engine still speaks to nobody")
    server.close()


def test_an_engine_that_is_not_there_is_said(engine):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        server = front(f"http://127.0.0.1:{taken.getsockname()[1]}/v1", "llama.cpp")
        for answer in (server.http.get("/health"), server.post(model="m", messages=QUESTION)):
            assert answer.status_code == 503 and "does not answer" in answer.json()["error"]["message"]
        server.close()


def test_llama_cpp_itself_answers_behind_the_face(tmp_path):
    pytest.importorskip("cyllama")
    from cyllama.llama.server.python import PythonServer, ServerConfig
    from safetensors.numpy import load_file

    from model.network.hf_config import to_hf
    from model.network.transformer import Transformer
    from pipeline.release.gguf_export import write_gguf

    config = to_hf(Transformer.from_dir(taught_dir()).config)
    tensors = load_file(taught_dir() / "model.safetensors")
    write_gguf(tensors, config, taught_dir(), tmp_path / "m.gguf", "f16")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with PythonServer(ServerConfig(model_path=str(tmp_path / "m.gguf"), port=port, n_ctx=128, model_alias="m")):
        server = front(f"http://127.0.0.1:{port}", "llama.cpp", ["m"])
        answer = server.post(model="m", messages=QUESTION, max_tokens=30, temperature=0, repetition_penalty=1.0)
        assert answer.status_code == 200 and answer.json()["choices"][0]["message"]["role"] == "assistant"
        assert [m["id"] for m in server.http.get("/v1/models").json()["data"]] == ["m"]
        server.close()
