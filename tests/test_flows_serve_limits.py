"""The categories of llama.cpp's server tests beside those of test_flows_serve.py: slots, context, security, faults; and
a model that takes over while others speak."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from conftest import ROOT
from serve_helpers import Running, babbling_dir, skilled_dir
from token_helpers import FACTS, taught_dir

from flows.cli import main
from flows.serving.command import _bound, found
from flows.serving.gate import Rules
from flows.serving.talks import Limits
from storage.champions import Champions
from storage.store import Store

LONG = {"model": "m", "prompt": [9, 10, 11], "max_tokens": 16_000}
HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def babbler():
    running = Running({"m": babbling_dir()}, slots=2, limits=Limits(queue=2, bytes=20_000))
    yield running
    running.close()


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.02)


def test_more_requests_than_slots_are_answered_as_each_alone():
    server = Running({"m": taught_dir()}, slots=2)
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda q: server.ask(q)["choices"][0]["message"]["content"], [*FACTS, *FACTS]))
    assert said == [*FACTS.values(), *FACTS.values()] and server.idle()
    text = server.http.get("/metrics").text
    assert 'pipeline_serve_requests_total{path="/v1/chat/completions",status="200"} 8.0' in text
    assert 'pipeline_serve_running{model="m"} 0.0' in text and "pipeline_serve_first_token_seconds_bucket" in text
    server.close()


def test_a_full_queue_says_when_to_come_again_and_whoever_leaves_makes_room(babbler):
    client = openai.OpenAI(base_url=babbler.url + "/v1", api_key="x", max_retries=0)
    open_streams = [client.completions.create(**LONG, stream=True) for _ in range(4)]
    next(iter(open_streams[0]))
    with pytest.raises(openai.RateLimitError) as caught:
        client.completions.create(**LONG)
    assert int(caught.value.response.headers["retry-after"]) >= 1 and caught.value.code == "queue_full"
    assert babbler.http.get("/health").json()["models"]["m"] == {"running": 2, "waiting": 2, "slots": 2}
    for stream in open_streams:
        stream.close()
    until(babbler.idle)
    assert 'pipeline_serve_cut_total{model="m"}' in babbler.http.get("/metrics").text


@pytest.mark.parametrize("tokens", [2, 8_000])  # while it answers, and while it reads
def test_a_client_that_leaves_before_its_whole_answer_frees_the_slot(tokens, babbler):
    body = json.dumps({"model": "m", "prompt": [9] * tokens, "max_tokens": 8_000}, separators=(",", ":")).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with socket.create_connection(("127.0.0.1", int(babbler.url.rpartition(":")[2]))) as sock:
        sock.sendall(head.encode() + b"\r\n\r\n" + body)
        until(lambda: not babbler.idle())
    until(babbler.idle)  # long before 8,000 tokens


def test_what_takes_too_long_ends_with_an_error():
    server = Running({"m": babbling_dir()}, slots=2, limits=Limits(seconds=0.3))
    answer = server.post("/v1/completions", **LONG)
    assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"
    events = server.events("/v1/completions", **LONG)
    assert events[-1]["error"]["code"] == "timeout"
    until(server.idle)
    server.close()


def test_an_answer_ends_with_the_window_and_what_does_not_fit_is_said_or_forgotten():
    server = Running({"m": taught_dir()})
    length = server.post("/v1/completions", model="m", prompt=[9] * 120, max_tokens=500).json()
    assert length["choices"][0]["finish_reason"] == "length" and length["usage"]["total_tokens"] == 128
    old = [{"role": role, "content": "so many words " * 8} for role in ("user", "assistant")]
    talk = [*old, *old, {"role": "user", "content": "什么是词元？"}]
    refused = server.post(model="m", messages=talk)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    fitted = server.post(model="m", messages=talk, truncation="auto").json()
    assert fitted["choices"][0]["message"]["content"] == FACTS["什么是词元？"] and fitted["forgotten"] == 4
    forever = server.post(model="m", messages=[{"role": "user", "content": "word " * 500}], truncation="auto")
    assert forever.status_code == 400
    ids = server.post("/v1/completions", model="m", prompt=[450])
    assert ids.status_code == 400 and ids.json()["error"]["param"] == "prompt"
    server.close()


KEY = {"Authorization": "Bearer secret"}


def test_a_key_guards_all_but_the_page_and_health():
    server = Running({"m": taught_dir()}, rules=Rules(key="secret"))
    for path in ("/v1/models", "/metrics", "/lineage/m"):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            assert server.http.get(path, headers=headers).status_code == 401, (path, headers)
    assert server.post(**HELLO).status_code == 401
    for path in ("/", "/health", "/openapi.json"):
        assert server.http.get(path).status_code == 200
        head = server.http.head(path)  # as load balancers ask
        assert head.status_code == 200 and not head.content
    assert "begins at /v1" in server.http.get("/chat/completions", headers=KEY).json()["error"]["message"]
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="secret", max_retries=0)
    assert client.chat.completions.create(**HELLO).choices
    with pytest.raises(openai.AuthenticationError, match="wrong"):
        client.with_options(api_key="other").models.list()
    server.close()


def test_other_pages_cannot_use_a_server_on_this_machine(babbler):
    server = Running({"m": taught_dir()}, rules=Rules(hosts={"127.0.0.1", "localhost"}))
    assert server.http.get("/v1/models", headers={"Host": "evil.example:80"}).status_code == 403
    assert server.http.get("/v1/models", headers={"Host": "localhost"}).status_code == 200
    plain = server.http.post("/v1/chat/completions", content=b"{}", headers={"Content-Type": "text/plain"})
    assert plain.status_code == 415
    origin = {"Origin": "https://elsewhere.example"}
    assert "access-control-allow-origin" not in server.http.get("/v1/models", headers=origin).headers
    server.close()
    page = babbler.http.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy and "frame-ancestors 'none'" in policy
    assert "http://" not in page.text.replace("http://www.w3.org/", "") and "https://" not in page.text
    friendly = Running({"m": taught_dir()}, cors=["https://elsewhere.example"], compare='"><script>x')
    assert friendly.http.get("/v1/models", headers=origin).headers["access-control-allow-origin"] == origin["Origin"]
    assert "<script>x" not in friendly.http.get("/").text
    friendly.close()


def test_bodies_that_are_too_large_or_no_json_are_refused(babbler):
    text = {"model": "m", "messages": [{"role": "user", "content": "x" * 30_000}]}
    assert babbler.post(**text).status_code == 413
    chunked = babbler.http.post(
        "/v1/completions", content=(b" " * 5000 for _ in range(10)), headers={"Content-Type": "application/json"}
    )
    assert chunked.status_code == 413
    for body in (
        b"",
        b"[" * 9000,
        b'{"model": NaN}',
        b"\xff",
        b'{"model":"m","prompt":"\\ud800"}',
        b'{"model":"m","prompt":"x","metadata":{"a":["\\udc00"]}}',
        b"[]",
        b"1e999",
    ):
        answer = babbler.http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400 and answer.json()["error"]["message"], body
    assert babbler.http.get("/v1/nothing").json()["error"]["type"] == "not_found_error"
    assert babbler.http.get("/v1/completions").status_code == 405


def test_a_model_that_fails_ends_its_requests_and_answers_the_next(monkeypatch):
    server = Running({"m": taught_dir()})
    engine = server.engines["m"].engine

    def broken():
        raise RuntimeError("no memory")

    monkeypatch.setattr(engine._generator, "step", broken)
    answer = server.post(**HELLO)
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "model_error"
    assert server.ask("什么是词元？")["choices"][0]["message"]["content"] == FACTS["什么是词元？"] and server.idle()
    server.close()


def test_a_new_champion_takes_over_and_no_request_is_lost():
    places = [babbling_dir()]
    server = Running({"m": places}, slots=4)
    begun, events = threading.Event(), []

    def listen():
        with server.http.stream("POST", "/v1/completions", json={**LONG, "max_tokens": 300, "stream": True}) as answer:
            for line in answer.iter_lines():
                events.append(line)
                begun.set()

    before = server.engines["m"].engine
    talking = threading.Thread(target=listen)
    talking.start()
    assert begun.wait(20)
    places.append(skilled_dir())
    until(lambda: server.engines["m"].engine is not before)
    assert server.ask("什么是词元？")["choices"][0]["message"]["content"] == FACTS["什么是词元？"]
    talking.join(60)
    assert "data: [DONE]" in events and '"finish_reason":"length"' in "".join(events)
    until(lambda: not before._thread.is_alive())
    assert 'pipeline_serve_model_changes_total{model="m"} 1.0' in server.http.get("/metrics").text
    places.append(ROOT / "tests")  # no model: the old one goes on
    time.sleep(0.3)
    assert server.ask("什么是词元？")["choices"]
    server.close()


def test_a_presets_name_means_its_champion(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_HOME", str(tmp_path))
    monkeypatch.delenv("PIPELINE_STORE", raising=False)
    store = Store(tmp_path / "store")
    for name in ("a", "b"):
        (store.partial("sft", name * 32) / "config.json").write_text(name)
        record = {"inputs": [], "sources": [], "created": "2026", "run": f"run-{name}"}
        model = {"stage": "sft", "key": name * 32, "digest": store.publish("sft", name * 32, record).digest}
        decision = {"preset": "tiny", "action": "promote", "model": model, "moved": True, "before": None}
        rest = {"conditions": [], "scores": {}, "evaluated": "", "run": "", "created": ""}
        Champions(store).add({**decision, **rest})
        champion = found("tiny", "tiny", False)
        assert champion.artifact == f"sft/{name * 32}" and champion.about.startswith("the champion, sft/")
    assert found(f"sft/{'a' * 32}", "tiny", False).directory.name == "a" * 32
    with pytest.raises(LookupError, match="no preset"):
        found("other", "other", False)


def test_the_command_serves_until_it_is_told_to_end_and_ends_what_it_has_begun(tmp_path):
    command = [sys.executable, "-m", "flows.cli", "serve", str(babbling_dir()), "--port", "0", "--host", "127.0.0.1"]
    env = {**os.environ, "PIPELINE_HOME": str(tmp_path), "PIPELINE_API_KEY": "k"}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
    line = next(line for line in process.stderr if line.startswith("http://"))
    url, headers, name = line.split()[0], {"Authorization": "Bearer k"}, babbling_dir().name
    body = {**LONG, "model": name, "max_tokens": 300, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, headers=headers, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        rest = list(lines)
    assert "data: [DONE]" in rest and '"length"' in "".join(rest)
    assert process.wait(20) == 0, process.stderr.read()
    process.stderr.close()


def test_the_socket_sends_each_token_at_once():
    with _bound("127.0.0.1", 0) as sock:  # asyncio turns Nagle's algorithm off where it sees TCP, and not at protocol 0
        assert sock.proto == socket.IPPROTO_TCP


@pytest.mark.parametrize("words", [["no-such"], [], ["x", "--backend", "vllm"], ["x", "--upstream", "http://a"]])
def test_what_cannot_be_served_is_said_in_a_line(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PIPELINE_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as end:
        main(["serve", *words, "--port", "0"])
    assert end.value.code == 2 and capsys.readouterr().err.splitlines()[-1].startswith("error: ")
