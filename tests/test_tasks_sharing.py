"""A training that was cut off on one machine goes on on another, from the checkpoints in the bucket, to the same
bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from spec_helpers import spec as make
from test_model_data import write_tokens
from test_storage_s3 import KEY, names
from test_storage_s3 import s3 as s3
from test_storage_s3 import server as server

from model.specs.base import dump
from pipeline.config.resources import Resources
from storage.places import ROOT
from storage.store import StoreError, open_store
from storage.unfinished import Unfinished
from tasks.running import processes, sharing
from tasks.running.launch import launch

STEPS = 300
MACHINE = """
import json, sys
from pathlib import Path
from pipeline.config.resources import Resources
from tasks.running import sharing
from tasks.running.launch import launch
sharing.LOOK_SECONDS = 0.1
spec, out = json.loads(sys.argv[1]), Path(sys.argv[2])
launch("model.pretrain", spec, out, Resources(device="cpu", threads=1), lambda record: None)
"""


@pytest.fixture
def spec(tmp_path, monkeypatch):
    """``spec(out)``: a small training."""
    monkeypatch.setattr(processes, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(sharing, "LOOK_SECONDS", 0.1)
    monkeypatch.setenv("PIPELINE_GRACE_SECONDS", "2")
    rows = [[*range(3 + i % 40, 60), 0] for i in range(200)]
    write_tokens(tmp_path / "text", rows, None, "text", 64, [[*range(3, 60), 0]] * 4)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text('{"added_tokens": []}')

    def of(out: Path) -> dict:
        made = make(
            data=str(tmp_path / "text"),
            tokenizer=str(tmp_path / "tokenizer"),
            model={"dim": 32, "layers": 1, "heads": 2, "kv_heads": 2, "ffn": 48},
            out=str(out),
            steps=STEPS,
            threads=1,
            checkpoint_every=20,
        )
        return dump(made)

    return of


def train(spec: dict, notes: list[str] | None = None) -> bytes:
    out = Path(spec["out"])
    said = (lambda line: None) if notes is None else notes.append
    launch("model.pretrain", spec, out, Resources(device="cpu", threads=1), lambda record: None, note=said)
    return (out / "model.safetensors").read_bytes()


def test_a_killed_machines_training_is_finished_by_another_to_the_bit(tmp_path, spec, s3, monkeypatch) -> None:
    undisturbed = train(spec(tmp_path / "undisturbed"))
    one, two = (open_store(tmp_path / home / "store") for home in ("one", "two"))
    first = spec(one.partial("pretrain", KEY))
    machine = subprocess.Popen(
        [sys.executable, "-c", MACHINE, json.dumps(first), first["out"]],
        env=os.environ | {"PIPELINE_HOME": str(tmp_path / "one"), "PYTHONPATH": str(ROOT)},
    )
    there = one.unfinished("pretrain", KEY)
    while not there.names():
        assert machine.poll() is None, "it ended before a checkpoint was in the bucket"
        time.sleep(0.02)
    machine.kill()
    machine.wait()
    monkeypatch.setenv("PIPELINE_HOME", str(tmp_path / "two"))
    second, notes = spec(two.partial("pretrain", KEY)), []
    newest = there.names()[-1]
    assert train(second, notes) == undisturbed
    assert "was brought from s3://" in notes[0] and newest.partition(".")[0] in notes[0]
    run = Path(second["out"]) / "_run"
    assert f"resumed at step {int(newest[5:13])} of {STEPS}" in (run / "logs" / "launcher.log").read_text()
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == list(range(1, STEPS + 1)), "the curve has what the first machine measured"
    assert 1 <= len(there.names()) <= 2 and any(".unfinished/" in name for name in names(s3))
    two.publish("pretrain", KEY, {"inputs": [], "created": "2026", "run": "r"})
    assert not any(".unfinished/" in name for name in names(s3))


def test_a_bucket_that_fails_is_told_and_stops_nothing(tmp_path, spec, s3, monkeypatch) -> None:
    store = open_store(tmp_path / "one" / "store")
    monkeypatch.setenv("PIPELINE_HOME", str(tmp_path / "one"))

    def broken(*_) -> None:
        raise StoreError("the cable is out")

    monkeypatch.setattr(Unfinished, "send", broken)
    monkeypatch.setattr(Unfinished, "names", broken)
    notes: list[str] = []
    assert train(spec(store.partial("pretrain", KEY)), notes)
    assert "no checkpoint was brought" in notes[0] and any("do not reach the bucket" in note for note in notes[1:])
    assert len(notes) == 2


def test_what_is_not_whole_or_leads_out_is_not_brought_and_gc_takes_the_forgotten(tmp_path, s3) -> None:
    store = open_store(tmp_path / "store")
    there, folder = store.unfinished("pretrain", KEY), tmp_path / "step-00000004"
    folder.mkdir()
    (folder / "a.distcp").write_bytes(b"12345")
    (folder / "state.json").write_text(json.dumps({"files": {"a.distcp": 5, "b.distcp": 3}, "id": "ab"}))
    there.send(folder, "step-00000004.ab", [])
    assert not there.complete(folder, "step-00000004.ab") and there.names() == [], "another machine's part is missing"
    there.bucket.put(f"{there.base}step-00000004.ab/b.distcp", b"678")
    assert there.complete(folder, "step-00000004.ab") and there.names() == ["step-00000004.ab"]
    assert (there.bring("step-00000004.ab", tmp_path / "here") / "b.distcp").read_bytes() == b"678"
    there.bucket.put(f"{there.base}step-00000004.ab/b.distcp", b"6")
    with pytest.raises(ValueError, match=r"b\.distcp has 1 bytes in the bucket, not 3"):
        there.bring("step-00000004.ab", tmp_path / "there")
    there.bucket.put(f"{there.base}step-00000009.cd/state.json", b'{"files": {"../../out": 1}}')
    with pytest.raises(ValueError, match="is no file of a checkpoint"):
        there.bring("step-00000009.cd", tmp_path / "there")
    assert store.forgotten(14) == [] and [f.base for f in store.forgotten(-1)] == [there.base]
    there.remove()
    assert there.names() == [] and names(s3) == []
