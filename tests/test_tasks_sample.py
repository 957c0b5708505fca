"""The model's own answers become preference pairs: judged by every judge, the same for any number of processes, and
gone on with after a kill."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from token_helpers import FACTS, taught_dir

from model.network.reward import save_reward, with_score
from model.network.weights import load_model
from model.sample import run
from pipeline.config.resources import Resources
from pipeline.config.sample import SampleSection
from pipeline.config.tree import ConfigError, load
from pipeline.data.jsonl import read_jsonl
from pipeline.sampling.disturbed import plain, subject_of
from pipeline.sampling.openai_judge import JudgeFailed, compare_all
from pipeline.sampling.pairs import Judged, by_rule, pairs_of
from pipeline.sampling.prompts import choose_prompts
from pipeline.sources.teaching import teaching_chats
from storage.store import Artifact
from tasks.running.sources import asked
from tasks.sample import sample

CPU = torch.device("cpu")


def chats(many=1):
    """The four facts, ``many`` times with another number behind the question."""
    for i in range(many):
        for question, answer in FACTS.items():
            talk = [{"role": "user", "content": question + (f" {i}" if i else "")}]
            yield {
                "messages": [*talk, {"role": "assistant", "content": answer}],
                "source": "s",
                "path": "p",
                "line": i + 1,
            }


def artifact(stage, path):
    return Artifact(stage, "k", "d", Path(path))


class Quiet:
    name = "sample"

    def __init__(self) -> None:
        self.seen: list = []

    def __call__(self, done, total, unit) -> None:
        self.seen.append((done, total, unit))

    def training(self, metrics) -> None:
        self.seen.append((metrics["step"], metrics["total_steps"], "prompts"))

    note = print


@pytest.fixture(scope="module")
def asking(tmp_path_factory):
    """The chats that are asked, as the chats stage leaves them."""
    root = tmp_path_factory.mktemp("chats")
    (root / "records.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats(12)), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def made(asking, tmp_path_factory):
    """The stage, on two ranks."""
    out, report = tmp_path_factory.mktemp("sample"), Quiet()
    cfg = SampleSection(answers=4, temperature=1.5, max_new_tokens=16, batch=16, seed=3)
    on = Resources(nproc=2, device="cpu", threads=1)
    metrics = sample.fn(cfg, artifact("sft", taught_dir()), artifact("chats", asking), on=on, out=out, report=report)
    return cfg, out, metrics, report


def test_best_and_worst_answers_become_pairs_and_ties_are_counted(made) -> None:
    _, out, metrics, report = made
    records = list(read_jsonl(out / "records.jsonl"))
    stats = json.loads((out / "stats.json").read_text())
    assert stats["docs_in"] == metrics["records"] == 48 and metrics["answers"] + metrics["answers_empty"] == 4 * 48
    assert stats["docs_out"] == len(records) == metrics["pairs"] == 48 - sum(stats["dropped"].values())
    assert stats["dropped"]["tie"] > 0 and {s["rule"] for s in read_jsonl(out / "samples.jsonl")} >= {"tie"}
    assert metrics["score_worst"] < metrics["score_mean"] < metrics["score_best"]
    for record in records:
        assert set(record) == {"prompt", "chosen", "rejected", "scores", "source", "path", "line", "id"}
        prompt = next(p for p in choose_prompts(chats(12), 99, 0) if p["messages"] == record["prompt"])
        assert by_rule("keywords", prompt, record["chosen"]) == 1 and record["scores"] == [1.0, 0.0]
        assert by_rule("keywords", prompt, record["rejected"]) == 0
    assert report.seen[-1] == (48, 48, "prompts")


def worker(made, out):
    spec = json.loads((made[1] / "_run" / "spec.json").read_text()) | {"out": str(out)}
    (out / "_run").mkdir(parents=True)
    return spec


def answers(out):
    return {path.name: path.read_bytes() for path in sorted((out / "_run" / "answers").glob("*"))}


def test_one_process_that_is_killed_and_started_again_says_what_two_ranks_said(made, tmp_path) -> None:
    spec = worker(made, tmp_path / "killed")
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    command = [sys.executable, "-m", "model.sample", "--spec", str(tmp_path / "spec.json")]
    first = tmp_path / "killed" / "_run" / "answers" / "shard-000000.jsonl"
    with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        while not first.is_file():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    written = first.stat().st_mtime_ns
    run(spec, 0, 1, CPU)
    assert answers(tmp_path / "killed") == answers(made[1]) and len(answers(made[1])) == 3
    assert first.stat().st_mtime_ns == written, "a finished shard is not done again"
    assert json.loads((tmp_path / "killed" / "_run" / "result.json").read_text()) == {"prompts": 48, "shards": 3}


def test_a_reward_model_scores_the_answers_and_the_reference(made, tmp_path) -> None:
    judge = with_score(load_model(taught_dir()))
    judge.score.data.normal_(generator=torch.Generator().manual_seed(0))
    save_reward(judge, tmp_path / "reward", taught_dir())
    spec = worker(made, tmp_path / "scored") | {"rewarder": str(tmp_path / "reward"), "reference": True, "answers": 2}
    run(spec, 0, 1, CPU)
    rows = [row for path in sorted((tmp_path / "scored" / "_run" / "answers").glob("*")) for row in read_jsonl(path)]
    assert all(len(row["rewards"]) == 3 and len(row["answers"]) == 2 for row in rows)
    same = [row for row in rows if row["answers"][0] == row["answers"][1]]
    assert same and all(row["rewards"][0] == row["rewards"][1] for row in same)


def test_the_rules_of_the_judges() -> None:
    prompt = {"messages": [], "reference": "So it is 6.\n#### 42", "keywords": [], "source": "", "path": "", "line": 1}
    assert by_rule("exact", prompt, "It must be 42.0") == 1 and by_rule("exact", prompt, "6") == 0
    plain = {**prompt, "reference": "A token."}
    assert by_rule("exact", plain, "a token") == 1 and by_rule("exact", plain, "a token is a token") == 0
    taught = choose_prompts(teaching_chats(), 10_000, 0)
    assert len(taught) > 1000 and all(p["keywords"] and by_rule("keywords", p, p["reference"]) for p in taught)
    assert len(choose_prompts(teaching_chats(), 7, 0)) == 7
    assert choose_prompts(teaching_chats(), 7, 0) != choose_prompts(teaching_chats(), 7, 1)


def test_pairs_are_the_best_with_the_worst_and_of_equal_ones_the_first() -> None:
    judged = [Judged(text, score) for text, score in (("b", 1.0), ("a", 3.0), ("b", 1.0), ("c", 3.0), ("d", 2.0))]
    assert [(x.text, y.text) for x, y in pairs_of(judged, 2, 0.0)] == [("a", "b"), ("c", "d")]
    assert [(x.text, y.text) for x, y in pairs_of(judged, 4, 1.0)] == [("a", "b")]
    assert pairs_of(judged[1:2], 3, 0.0) == [] and pairs_of([], 1, 0.0) == []


class Endpoint(http.server.BaseHTTPRequestHandler):
    """Prefers the longest answer; for questions with "order" it prefers what comes first."""

    asked: ClassVar[list] = []
    refuse: ClassVar[list] = []

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, self.headers.get("Authorization"), request))
        if self.refuse:
            self.send_response(self.refuse.pop())
            self.end_headers()
            self.wfile.write(b"not now")
            return
        text = request["messages"][1]["content"]
        shown = {line[1]: len(line) for line in text.splitlines() if line.startswith("[")}
        order = list(shown) if "order" in text else sorted(shown, key=lambda letter: -shown[letter])
        body = json.dumps({"choices": [{"message": {"content": f"{order[0]} {order[-1]}"}}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Endpoint.asked, Endpoint.refuse = [], []
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_an_endpoint_judges_in_both_orders_and_is_asked_once(endpoint, tmp_path) -> None:
    cfg = SampleSection(answers=3, judge="openai", judge_model="judge", judge_url=endpoint, judge_parallel=2)
    prompts = [{"messages": [{"role": "user", "content": q}]} for q in ("clear", "order", "same")]
    own = [["no", "rather long", "middle"], ["x", "yy", "zzz"], ["as ever", "as ever"]]
    Endpoint.refuse = [429]
    seen = Quiet()
    scores = compare_all(cfg, prompts, own, tmp_path, seen)
    assert scores == [[-1.0, 1.0, 0.0], [0.0] * 3, [0.0] * 2], "what depends on the order is a tie"
    assert len(Endpoint.asked) == 5 and seen.seen[-1] == (3, 3, "prompts judged")
    path, key, request = Endpoint.asked[-1]
    assert (path, key, request["model"]) == ("/v1/chat/completions", "Bearer secret", "judge")
    assert compare_all(cfg, prompts, own, tmp_path, seen) == scores and len(Endpoint.asked) == 5
    Endpoint.refuse = [401]
    with pytest.raises(JudgeFailed, match=r"answered 401: not now; see sample\.judge_url"):
        compare_all(cfg, [{"messages": []}], [["new", "newer"]], tmp_path, seen)


def test_a_config_that_cannot_judge_is_refused(monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    for wrong, said in (
        (["sample.answers=1"], "leaves nothing to compare"),
        (["sample.answers=2", "sample.judge=openai"], "needs judge_model"),
        (["sample.answers=2", "sample.judge=openai", "sample.judge_model=m"], "needs a key in the variable"),
        (["sample.answers=2", "sample.judge=reward"], "give reward.sources too"),
        (["sample.answers=2", "sft.sources=[]", "dpo.sources=[]"], "sample.answers  preferences are learnt by a chat"),
    ):
        with pytest.raises(ConfigError, match=said):
            asked("tiny", wrong)
    assert load("gpu").sample.answers == 0 and not asked("gpt-teacher")[1].samples
    own = SampleSection(answers=2, judge="openai", judge_model="m", judge_url="http://here/v1")
    assert own.identity() == own.model_copy(update={"judge_url": "http://there/v1"}).identity()


def test_disturbed_prompts_hold_the_subject_among_other_words_and_never_an_exam_s_question() -> None:
    talks = teaching_chats()
    prompts = choose_prompts(talks, 0, 0, many=2)
    known = {chat["messages"][0]["content"] for chat in talks}
    assert len(prompts) > 500 and not known & {p["messages"][0]["content"] for p in prompts}
    tuning = next(p for p in prompts if p["reference"].startswith("Supervised fine-tuning continues"))
    assert "supervised fine-tuning" in tuning["messages"][0]["content"].casefold() and tuning["keywords"]
    assert prompts == choose_prompts(talks, 0, 0, many=2) != choose_prompts(talks, 0, 1, many=2)
    taken = {plain(p["messages"][0]["content"]) for p in prompts[::2]}
    left = choose_prompts(talks, 0, 0, 2, taken)
    assert not taken & {plain(p["messages"][0]["content"]) for p in left} and len(left) == len(prompts) - len(taken)
    assert subject_of(["What is a loss mask for?", "Explain the loss mask."]) == "loss mask"
    assert subject_of(["什么是分词器？", "分词器是什么？"]) == "分词器" and subject_of(["cat", "concat"]) == ""
    assert asked("tiny", ["sample.answers=2"])[1].unasked is None
    assert asked("tiny", ["sample.answers=2", "sample.disturbed=1"])[1].unasked == asked("tiny")[1].exams
