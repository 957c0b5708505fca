"""A server of small models for tests, in this process and on a free port, and a model that calls tools and reasons."""

import functools
import json
import socket
import tempfile
import threading
from pathlib import Path

import httpx
import uvicorn
from token_helpers import FACTS, new_model, tokenizer_dir

from flows.serving.app import Face, create
from flows.serving.gate import Rules
from flows.serving.local import Local
from flows.serving.metrics import Metrics
from flows.serving.served import Found, Models, Served
from flows.serving.talks import Limits
from model.serving.engine import Engine

TOOLS = [{"type": "function", "function": {"name": "depth"}}]
CALL = {"id": "c1", "type": "function", "function": {"name": "depth", "arguments": '{"pier": 1}'}}
ASKED = {"role": "user", "content": "How deep?"}
BRIEF = {"role": "user", "content": "Depth!"}
TALKS = [
    *([{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in FACTS.items()),
    [{"role": "user", "content": "Think!"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nTwo."}],
    [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "1 2 3 4 5 6 7 8 9 STOP 10 11 12"}],
]


@functools.cache
def skilled_dir():
    """A model that knows FACTS, thinks when it is told to, and calls the tool of TOOLS; a window of 320 tokens."""
    import torch
    import torch.nn.functional as F

    from model.network.weights import save_model
    from model.tokens.chat import ChatTokenizer
    from pipeline.formats.messages import fold

    chat, model = ChatTokenizer.load(tokenizer_dir()), new_model(max_seq_len=320)
    called = [ASKED, {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL]}]
    result = [{"role": "tool", "content": "2", "tool_call_id": "c1"}, {"role": "assistant", "content": "Two."}]
    brief = [BRIEF, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    talks = [*TALKS, *(fold(talk, tools=TOOLS) for talk in (brief, called, [*called, *result]))]
    batches = [_padded([chat.chat(talk) for talk in part]) for part in (talks[:-3], talks[-3:])]  # by length
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(70):
        optimizer.zero_grad()
        for ids, mask in batches:
            F.cross_entropy(model(ids)[:, :-1][mask], ids[:, 1:][mask]).backward()
        optimizer.step()
    path = Path(tempfile.mkdtemp(prefix="skilled-"))
    save_model(model, path, tokenizer_dir())
    return path


@functools.cache
def babbling_dir():
    """A model that never ends by itself, with a window of 16,384 tokens."""
    from model.network.weights import save_model

    path = Path(tempfile.mkdtemp(prefix="babbling-"))
    save_model(new_model(max_seq_len=16_384), path, tokenizer_dir())
    return path


def _padded(rows):
    """Ids and what is learnt of rows of (ids, mask)."""
    import torch

    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([i + [0] * (longest - len(i)) for i, _ in rows])
    return ids, torch.tensor([m + [0] * (longest - len(m)) for _, m in rows])[:, 1:] > 0


class Running:
    """A server that answers until it is closed. ``models``: directories by name; a list is one that a test may
    change."""

    def __init__(self, models, *, slots=8, rules=None, limits=None, poll=0.05, backend=None, **face):
        self.metrics = Metrics()
        limits = limits or Limits()
        if backend is None:
            served = [
                Served(name, functools.partial(_found, place), functools.partial(Engine, slots=slots))
                for name, place in models.items()
            ]
            backend = Local(Models(served, self.metrics), limits, self.metrics, poll)
            self.engines = {one.name: one for one in served}
        app = create(backend, self.metrics, Face(rules or Rules(largest=limits.bytes), **face))
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=10))
        self.thread = threading.Thread(target=self.server.run, args=([sock],), daemon=True)
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            self.thread.join(0.01)
        self.http = httpx.Client(base_url=self.url, timeout=60)

    def post(self, path="/v1/chat/completions", **body):
        """POST JSON; the response."""
        return self.http.post(path, json=body)

    def ask(self, text, **more):
        """One user's message to the only model; the parsed answer."""
        answer = self.post(model=more.pop("model", "m"), messages=[{"role": "user", "content": text}], **more)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def events(self, path="/v1/chat/completions", **body):
        """The parsed events of a stream, without [DONE], which has to be the last one."""
        with self.http.stream("POST", path, json={**body, "stream": True}) as answer:
            assert answer.status_code == 200, answer.read()
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
        assert lines.pop() == "data: [DONE]"
        return [json.loads(line[6:]) for line in lines]

    def idle(self):
        """Whether no slot is taken and nothing waits."""
        return all(not m["running"] and not m["waiting"] for m in self.http.get("/health").json()["models"].values())

    def close(self):
        self.http.close()
        self.server.should_exit = True
        self.thread.join(30)


def _found(place):
    path = place[-1] if isinstance(place, list) else place
    return Found(Path(path), str(path), "")
