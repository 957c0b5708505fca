"""Commands on the store: garbage collection keeps what runs need."""

import fcntl
import json
import re

import pytest

from flows import collect, curate, inspect
from pipeline.config.tree import load
from storage.digest import sha256_file
from storage.store import Store
from tasks.running.cost import Facts, Work, expected


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
        collect.collect(keep=1, dry_run=True)
        assert "would delete clean/a3" in capsys.readouterr().out and (place / "store/clean/a3").is_dir()
        collect.collect(keep=1, dry_run=False)
    left = sorted(str(p.relative_to(place / "store")) for p in (place / "store").glob("*/*") if p.is_dir())
    assert left == ["clean/a1", "clean/a2", "pretrain/c1.partial", "shard/b1"]
    collect.collect(keep=1, dry_run=False)
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


def test_gc_keeps_pinned_runs_and_names_the_models_it_would_delete(place, capsys):
    for i, stage in enumerate(("sft", "dpo", "shard")):
        artifact(place, stage, f"k{i}", run=f"2026-{i}")
        directory = events(place, f"2026-{i}", ("stage_finished", stage, f"k{i}"))
        (directory / "run.json").write_text(json.dumps({"preset": "tiny", "overrides": [f"sft.epochs={i}"]}))
    (place / "runs/2026-1/pinned").touch()
    collect.collect(keep=0, dry_run=True)
    said = capsys.readouterr().out
    assert "would delete sft/k0  MODEL of run 2026-0: tiny sft.epochs=0" in said
    assert "dpo/k1" not in said and "would delete shard/k2\n" in said and str(place / "store") in said
    collect.collect(keep=0, dry_run=False)
    assert [p.parent.name for p in (place / "store").glob("*/*")] == ["dpo"]


def built(place, stage, key, section, seconds, inputs=(), metrics=None, **more):
    """An artifact with all that a plan reads of it."""
    store = Store(place / "store")
    (store.partial(stage, key) / "a.txt").write_text(key)
    record = {"inputs": list(inputs), "seconds": seconds, "metrics": metrics or {}, "created": "2026", "run": "r"}
    identity = {"section": section}
    return store.publish(stage, key, {**record, "identity": identity, "resources": {"device": "auto"}, **more})


def test_the_time_of_a_stage_grows_with_its_work_or_is_not_told(place):
    store, tiny = Store(place / "store"), load("tiny")
    sections = {name: getattr(tiny, name).identity() for name in ("ingest", "tokenizer", "pretrain", "sft")}
    source = {"name": "sources", "stage": "source", "key": "", "digest": "d"}
    text = [{"name": "mine", "digest": "d", "files": 1, "bytes": 1000}]
    built(place, "ingest", "i", sections["ingest"], 10.0, [{**source, "sources": text}])
    built(
        place,
        "tokenizer",
        "t",
        sections["tokenizer"],
        5.0,
        [{"name": "docs", "stage": "ingest", "key": "i", "digest": "d"}],
    )
    made = [{"name": "tokens", "stage": "tokenizer", "key": "t", "digest": "d"}]
    built(place, "pretrain", "p", sections["pretrain"], 100.0, made, {"steps": 200})

    def told(stage, **changed):
        facts = Facts(dict(sections), {"ingest": text})
        for name, values in changed.items():
            if name == "bytes":
                facts.sources["ingest"] = [{**text[0], "bytes": values}]
            else:
                facts.sections[name] = {**sections[name], **values}
        kinds = {"ingest": "documents", "tokenizer": "tokenizer"}
        work = Work(stage, kinds.get(stage, "model"), "chats" if stage == "sft" else "ingest")
        return expected(work, facts, tiny.resources, store.records(stage), store.lineage)

    assert told("ingest", bytes=3000) == 30.0 and told("tokenizer", bytes=3000) == 15.0
    assert told("ingest", bytes=3_000_000) is None, "three thousand times the work is another world"
    assert told("pretrain") == 100.0 and told("pretrain", pretrain={"steps": 400}) == 200.0
    assert told("pretrain", pretrain={"steps": 100, "batch_tokens": 16384}) == 100.0
    wide = {**sections["pretrain"]["model"], "layers": 8}
    assert 150 < told("pretrain", pretrain={"model": wide}) < 200
    assert told("pretrain", pretrain={"steps": 0, "epochs": 2}) is None
    assert told("sft") is None


def test_every_option_is_explained():
    lines = inspect.explain_config(load("tiny")).splitlines()
    assert (
        "sft.lora.rank = 0   # Width of an adapter; 0 trains all weights  [integer >= 0]" in lines and len(lines) > 150
    )
    assert not [line for line in lines if not re.fullmatch(r"[\w.]+ = .+   # .{8,}  \[.+\]", line)]
    kinds = {line.split(" = ")[0]: line.rpartition("  [")[2].rstrip("]") for line in lines}
    assert kinds["pretrain.optim.lr"] == "number > 0" and kinds["pretrain.optim.beta1"] == "number >= 0 and < 1"
    assert kinds["resources.launcher"] == 'one of "torchrun", "deepspeed"'
    assert kinds["shard.weights"] == "table of number >= 0 and <= 100 by name"
    assert kinds["export.verify"] == "true or false" and kinds["ingest.sources"] == "list of text, not empty"
