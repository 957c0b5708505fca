"""Another engine behind the same face: llama.cpp itself, and a server that speaks vLLM's dialect of OpenAI's API."""

import json
import socket
import subprocess
import sys
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
FACT = FACTS["什么是词元？"]


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
    assert client.chat.completions.create(model="m", messages=QUESTION).choices[0].message.content == FACT
    chunks = list(client.chat.completions.create(model="m", messages=QUESTION, stream=True, temperature=0))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == FACT
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


LLAMA_CPP = """
import sys, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.model_alias, p.n_ctx, p.n_parallel = sys.argv[1], ["m"], 256, 2
p.hostnames, p.port, p.n_gpu_layers, p.warmup, p.cpuparams.n_threads = ["127.0.0.1"], 0, 0, False, 1
server = xllamacpp.Server(p)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


def test_llama_cpp_s_own_server_answers_behind_the_face_as_our_engine_does(tmp_path):
    from safetensors.numpy import load_file

    from model.network.hf_config import to_hf
    from model.network.transformer import Transformer
    from pipeline.release.gguf_export import write_gguf

    config = to_hf(Transformer.from_dir(taught_dir()).config)
    write_gguf(load_file(taught_dir() / "model.safetensors"), config, taught_dir(), tmp_path / "m.gguf", "f16")
    command = [sys.executable, "-c", LLAMA_CPP, str(tmp_path / "m.gguf")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        server = front(process.stdout.readline().strip(), "llama.cpp", ["m"])
        try:
            client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
            assert [model.id for model in client.models.list()] == ["m"]
            whole = client.chat.completions.create(model="m", messages=QUESTION, temperature=0, max_tokens=40)
            assert whole.choices[0].message.content == FACT and whole.choices[0].finish_reason == "stop"
            assert whole.usage.completion_tokens
            options = {"repetition_penalty": 1.0, "min_p": 0.0, "top_k": 1}
            chunks = list(
                client.chat.completions.create(
                    model="m", messages=QUESTION, temperature=1, stream=True, extra_body=options
                )
            )
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == FACT
            form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": ["one", "two"]}}}
            held = client.chat.completions.create(
                model="m", messages=QUESTION, max_tokens=80, temperature=0, response_format=form
            )
            assert json.loads(held.choices[0].message.content) in ("one", "two")
            with pytest.raises(openai.BadRequestError, match=r"llama\.cpp: .*context"):
                client.completions.create(model="m", prompt=[5] * 500)
        finally:
            server.close()
            process.stdin.close()
            process.kill()
