"""``pipeline diff`` and ``pipeline why``: the first cause comes first, and what merely follows says so."""

import hashlib
import json

import pytest

from flows import compare
from storage.store import Store


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_HOME", str(tmp_path))
    return tmp_path


class Home:
    """Writes artifacts and runs as the pipeline leaves them."""

    def __init__(self, place):
        self.place, self.store, self.runs = place, Store(place / "store"), {}

    def artifact(self, run, stage, section, inputs=(), text=None, code="c1", sources=None, metrics=None):
        """Publish an artifact of ``run``; its key follows from what made it."""
        listed = [{"name": i["stage"], **i} for i in inputs]
        listings = []
        if sources:
            digests = [{"name": n, "digest": json.dumps(files)} for n, files in sources.items()]
            digest = json.dumps(digests)
            listed.append({"name": "sources", "stage": "source", "key": "", "digest": digest, "sources": digests})
            listings = [
                {
                    "name": n,
                    "digest": json.dumps(files),
                    "files": [{"path": p, "bytes": 1, "sha256": d} for p, d in files.items()],
                }
                for n, files in sources.items()
            ]
        identity = {
            "stage": stage,
            "version": 1,
            "code": {f"tasks/{stage}.py": code},
            "libs": {},
            "section": section,
            "inputs": {i["name"]: i["digest"] for i in listed},
        }
        key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
        known = self.store.record((stage, key))
        if known is None:
            (self.store.partial(stage, key) / "a.txt").write_text(text or json.dumps(identity))
            known = self.store.publish(
                stage,
                key,
                {
                    "inputs": listed,
                    "created": f"2026-01-0{len(self.runs) + 1}",
                    "seconds": 1.0,
                    "run": run,
                    "metrics": {},
                    "sources": [],
                    "identity": identity,
                },
                listings,
            )
            known = self.store.record((stage, key))
        entry = {"name": stage, "state": "ran", "key": key, "digest": known["digest"], "metrics": metrics or {}}
        self.runs.setdefault(run, []).append(entry)
        return {"stage": stage, "key": key, "digest": known["digest"]}

    def ended(self, run, **config):
        directory = self.place / "runs" / run
        directory.mkdir(parents=True)
        about = {"preset": "mine", "config": {"resources": config}, "git": {"commit": "0" * 40}}
        (directory / "run.json").write_text(json.dumps(about))
        (directory / "summary.json").write_text(json.dumps({"stages": self.runs[run]}))


@pytest.fixture
def two(place):
    """Two runs: a file of the corpus changed, clean's option changed too, and dedup's bytes came out the same."""
    home = Home(place)
    for run, files, width, score in (
        ("20260101-0000", {"a.txt": "1", "b.txt": "2"}, 40, 0.5),
        ("20260102-0000", {"a.txt": "1", "b.txt": "3", "c.txt": "4"}, 41, 0.75),
    ):
        raw = home.artifact(run, "ingest", {}, sources={"books": files}, metrics={"docs_out": len(files)})
        clean = home.artifact(run, "clean", {"min_width": width}, [raw])
        language = home.artifact(run, "language", {}, [clean], text="the same")
        base = home.artifact(run, "pretrain", {"optim": {"lr": 1e-3}}, [language])
        home.artifact(run, "evaluate", {}, [base], metrics={"base.choices": score, "base.choices.n": 20})
        home.ended(run, nproc=len(files))
    return home


def test_two_runs_differ_by_their_first_cause_and_the_rest_follows(two, capsys):
    assert compare.diff("20260101-0000", "20260102-0000", as_json=False) == 0
    out = capsys.readouterr().out
    lines = [line.strip() for line in out.splitlines()]
    assert "ingest         source books: 1 file added (c.txt), 1 file changed (b.txt)" in lines
    assert "clean          clean.min_width: 40 → 41" in lines
    assert "language       but the bytes are the same" in lines
    assert "2 stages are the same artifact in both." in lines
    assert (
        lines.index("clean          clean.min_width: 40 → 41") > 3 and "pretrain" not in out.split("same artifact")[0]
    )
    assert "resources.nproc  2 → 3" in out and "base.choices  0.5 → 0.75  +0.25" in out and "choices.n" not in out


def test_one_name_is_compared_with_the_run_before_it_as_json(two, capsys):
    assert compare.diff("20260102-0000", None, as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["a"] == "20260101-0000" and [c["stage"] for c in told["stages"]] == ["ingest", "clean", "language"]
    assert [c["what"] for c in told["stages"]] == ["caused", "caused", "same bytes"]
    assert compare.diff("20260101-0000", None, as_json=False) == 2, "nothing before it"
    assert compare.diff("nope", "20260101-0000", as_json=False) == 2
    assert "nope  is no run" in capsys.readouterr().err


def test_why_follows_an_input_back_to_what_somebody_changed(two, capsys):
    assert compare.why("language", None, as_json=False) == 0
    out = capsys.readouterr().out
    assert "language of run 20260102-0000" in out
    told = [line.split(maxsplit=1) for line in out.splitlines()[2:]]
    assert told == [
        ["ingest", "source books: 1 file added (c.txt), 1 file changed (b.txt)"],
        ["clean", "clean.min_width: 40 → 41"],
    ]
    assert compare.why("ingest", "20260101-0000", as_json=False) == 0
    assert "is the first artifact of ingest" in capsys.readouterr().out
    assert compare.why("nope", None, as_json=False) == 2
    assert "stages are ingest" in capsys.readouterr().err


def test_a_plan_is_priced_by_estimate_where_no_build_compares_and_says_what_it_does_not_know(place, monkeypatch):
    from flows.price import bill
    from pipeline.config.tree import load
    from tasks.running.plan import Planned

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    config = load("gpt2-124m", ["resources.nproc=4"])
    planned = [
        Planned("clean", "miss", [], seconds=1e6),
        Planned("pretrain", "miss", []),
        Planned("sft", "depends", [], seconds=7200.0),
        Planned("dpo", "hit", [], seconds=100.0),
    ]
    told = bill(planned, config, 2.0, "h100")
    assert list(told.hours) == ["pretrain"] and told.unknown == ["sft"], "a CPU's earlier time prices no GPU"
    assert 0.5 < told.hours["pretrain"] < 20 and told.cost == 2.0 * told.hours["pretrain"]
    assert bill(planned, config, 2.0, "a100").hours["pretrain"] > told.hours["pretrain"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    told = bill(planned, config, 1.0, "h100")
    assert told.hours["sft"] == 2.0 * 4 and not told.unknown
    assert told.lines()[-1].startswith("GPU time costs ")
    assert bill([planned[3]], config, 1.0, "h100").lines() == ["No GPU stage would run: nothing to pay."]
