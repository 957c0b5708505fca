"""Answers compared with those of the model before by an endpoint that speaks OpenAI's API."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pipeline.config.evaluation import EvaluateSection
from pipeline.config.tree import ConfigError, load
from pipeline.evaluation.judged import judge_answers
from pipeline.sampling.openai_judge import JudgeFailed
from tasks.running.sources import given


class Judge(BaseHTTPRequestHandler):
    """Prefers the answer that says noon; of two that both or neither do always the one shown first."""

    asked = 0

    def do_POST(self):
        if "nowhere" in self.path:
            return self.send_error(404)
        type(self).asked += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        first, second = body["messages"][1]["content"].split("[A]")[1].split("[B]")
        verdict = "B A" if "noon" in second and "noon" not in first else "A B"
        reply = json.dumps({"choices": [{"message": {"content": verdict}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *args):
        pass


@pytest.fixture
def judge():
    server = HTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def test_a_verdict_that_changes_with_the_order_is_a_tie_and_nothing_is_asked_twice(judge, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    place = {"source": "mine", "path": "f", "line": 1, "question": "When is high tide?", "answer": "At noon."}
    said = [
        {"base": "Never.", "sft": "At noon."},
        {"base": "Never.", "sft": "Perhaps."},
        {"base": "At noon.", "sft": "Soon."},
        {"base": "Same.", "sft": "Same."},
    ]
    rows = [{**place, "id": f"{i}", "set": "heldout", "said": one} for i, one in enumerate(said)]
    rows.append({**rows[0], "id": "taught", "set": "training"})
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "scores.json").write_text(json.dumps({"base": {}, "sft": {}}))
    cfg = EvaluateSection(judge_model="m", judge_url=judge, judge_parallel=2)
    flat = judge_answers(cfg, tmp_path, ["base", "sft"], lambda *_: None)
    verdicts = [json.loads(line) for line in (tmp_path / "judged.jsonl").read_text().splitlines()]
    assert [row["sft"] for row in verdicts] == [1.0, 0.5, 0.0, 0.5]
    assert flat["sft.judged"] == 0.5 and flat["sft.judged.n"] == 4 and flat["sft.judged.low"] < 0.5
    assert json.loads((tmp_path / "scores.json").read_text())["sft"]["judged"]["at_chance"]
    gone = EvaluateSection(judge_model="m", judge_url=f"{judge}/nowhere", judge_parallel=1)
    (tmp_path / "_run" / "judge").rename(tmp_path / "kept")
    with pytest.raises(JudgeFailed, match=r"(?s)answered 404.*see evaluate\.judge_url"):
        judge_answers(gone, tmp_path, ["base", "sft"], lambda *_: None)
    (tmp_path / "_run" / "judge").rmdir()
    (tmp_path / "kept").rename(tmp_path / "_run" / "judge")
    before = Judge.asked
    assert judge_answers(cfg, tmp_path, ["base", "sft"], lambda *_: None) == flat and Judge.asked == before


def test_a_judge_without_a_key_is_refused_before_anything_runs(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"evaluate\.judge_model .*OPENAI_API_KEY.*evaluate\.judge_url"):
        given(load("tiny", ["evaluate.judge_model=m"]))
