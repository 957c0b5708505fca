"""Commands on the store: garbage collection keeps what runs need."""

import fcntl
import json
import re

import pytest

from flows import curate, inspect
from pipeline.config.tree import load
from storage.digest import sha256_file
from storage.store import Store


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_HOME", str(tmp_path))
    return tmp_path


def artifact(place, stage, key, inputs=(), run="r", sources=()):
    store = Store(place / "store")
    (store.partial(stage, key) / "a.txt").write_text(stage + key)
    listed = [{"name": s, "stage": s, "key": k, "digest": "d"} for s, k in inputs]
    return store.publish(
        stage,
        key,
        {"inputs": listed, "created": "2026", "seconds": 1.0, "run": run, "metrics": {}, "sources": list(sources)},
    )


def events(place, run, *entries):
    directory = place / "runs" / run
    directory.mkdir(parents=True)
    (directory / "events.jsonl").write_text(
        "".join(json.dumps({"event": e, "stage": s, "key": k}) + "\n" for e, s, k in entries)
    )
    return directory


def test_gc_keeps_what_kept_failed_and_living_runs_reach(place, capsys):
    for key in ("a1", "a2", "a3"):
        artifact(place, "clean", key)
    artifact(place, "shard", "b1", [("clean", "a1")])
    events(place, "2026-1", ("stage_finished", "clean", "a3"))
    alive = events(place, "2026-2", ("stage_finished", "clean", "a2"))
    events(place, "2026-3", ("stage_finished", "shard", "b1"), ("stage_started", "pretrain", "c1"))
    for name in ("pretrain/c1.partial", "pretrain/c2.partial", "clean/a1.damaged-1"):
        (place / "store" / name).mkdir(parents=True)
    with open(alive / "alive", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        inspect.collect(keep=1, dry_run=True)
        assert "would delete clean/a3" in capsys.readouterr().out and (place / "store/clean/a3").is_dir()
        inspect.collect(keep=1, dry_run=False)
    left = sorted(str(p.relative_to(place / "store")) for p in (place / "store").glob("*/*") if p.is_dir())
    assert left == ["clean/a1", "clean/a2", "pretrain/c1.partial", "shard/b1"]
    inspect.collect(keep=1, dry_run=False)
    assert not (place / "store/clean/a2").exists(), "the run is over"


def test_a_file_of_a_source_is_traced_withdrawn_and_given_back(place, tmp_path, capsys):
    store, book = Store(place / "store"), tmp_path / "one.txt"
    book.write_text("a book")
    file = {"path": "deep/one.txt", "bytes": 6, "sha256": sha256_file(book)}
    given = {
        "name": "sources",
        "stage": "source",
        "key": "",
        "digest": "e",
        "sources": [{"name": "books", "digest": "d"}],
    }
    told = {"created": "2026", "seconds": 1.0, "run": "r", "metrics": {}, "sources": given["sources"]}
    (store.partial("ingest", "i1") / "a.txt").write_text("x")
    store.publish("ingest", "i1", {"inputs": [given], **told}, [{"name": "books", "digest": "d", "files": [file]}])
    artifact(place, "clean", "c1", [("ingest", "i1")], sources=given["sources"])
    for what in ("books/deep/one.txt", str(book), file["sha256"][:12]):
        assert inspect.lineage(what, down=True, as_json=False) == 0
        out = capsys.readouterr().out
        assert f"books: deep/one.txt  6 bytes, sha256 {file['sha256']}" in out and "clean/c1" in out
    assert inspect.show("ingest/i1", as_json=False) == 0 and "deep/one.txt" in capsys.readouterr().out
    assert curate.invalidate("no/such/file.txt", "x") == 2
    assert curate.invalidate("books/deep/one.txt", "not ours") == 0
    assert "the file with sha256" in capsys.readouterr().out and "not ours" in store.examine("clean", "c1").why
    assert curate.undo("books/deep/one.txt") == 0 and store.ready("clean", "c1") is not None


def test_every_option_is_explained():
    lines = inspect.explain_config(load("tiny")).splitlines()
    assert "sft.lora.rank = 0   # Width of an adapter; 0 trains all weights" in lines and len(lines) > 150
    assert not [line for line in lines if not re.fullmatch(r"[\w.]+ = .+   # .{8,}", line)]
