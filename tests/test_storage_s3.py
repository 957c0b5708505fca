"""Many machines on one bucket, against a real S3 server over HTTP: hits, half uploads, damage, outages, leases."""

import logging
import os
import socket
import threading
import time

import boto3
import pytest
from moto.server import ThreadedMotoServer
from stage_helpers import built, states

from storage.bucket import Bucket, ObjectPlace
from storage.champions import Champions, champion
from storage.lease import Lease
from storage.s3 import S3Store
from storage.store import Store, StoreError, open_store
from storage.withdrawal import rule_for

KEY = "k" * 32


@pytest.fixture(scope="module")
def server():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3(server, monkeypatch, request):
    """A new bucket, the environment of a machine that uses it, and a client to look into it."""
    env = {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "PIPELINE_STORE": f"s3://bucket-{abs(hash(request.node.name)) % 10**8}/team/a",
        "NO_PROXY": "127.0.0.1",
    }
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.bucket = env["PIPELINE_STORE"].split("/")[2]
    client.create_bucket(Bucket=client.bucket)
    client.env = env
    return client


def names(s3):
    return [o["Key"].removeprefix("team/a/") for o in s3.list_objects_v2(Bucket=s3.bucket).get("Contents", [])]


def publish(store, text="hello", stage="clean"):
    with store.lease(stage, KEY):
        (store.partial(stage, KEY) / "sub").mkdir(exist_ok=True)
        (store.partial(stage, KEY) / "sub" / "a.txt").write_text(text)
        return store.publish(stage, KEY, {"inputs": [], "created": "2026", "run": "r"})


def test_a_second_machine_gets_every_hit(tmp_path, player, s3):
    one, two = tmp_path / "one", tmp_path / "two"
    made = player(one, s3.env)
    assert set(states(made).values()) == {"ran"}
    plan = player(two, s3.env, plan=True)
    assert [p[1] for p in plan] == ["hit"] * 3 and "not here yet" in plan[0][2][0] and not list(two.glob("store/*/*"))
    again = player(two, s3.env)
    assert set(states(again).values()) == {"cached"} and built(two) == []
    for name, (_, key, digest) in again["stages"].items():
        place = two / "store" / name / key
        assert (
            digest == made["stages"][name][2]
            and (place / "sub" / "word.txt").is_file()
            and (place / "prefect.json").is_file()
        )
        assert (place / "_run" / "note.json").is_file() and not (place / "_run" / "checkpoints").exists()
    assert not [n for n in names(s3) if "checkpoints" in n or n.endswith(".lease")]


def test_two_machines_build_a_key_once(tmp_path, player, s3):
    one, two, other = tmp_path / "one", tmp_path / "two", player.another()
    player.start(one, s3.env | {"SLOW": "3"})
    while not any(one.glob("store/first/*.partial")):  # the second machine comes while the first one is at work
        time.sleep(0.05)
    other.start(two, s3.env | {"SLOW": "3"})
    results = [player.finish(), other.finish()]
    assert sorted(built(one) + built(two)) == ["first", "second", "third"]
    assert any("is building this already" in line for r in results for line in r["notes"])


def test_half_an_upload_is_no_hit_and_is_completed(tmp_path, s3):
    publish(open_store(tmp_path / "one"))
    s3.delete_object(Bucket=s3.bucket, Key=f"team/a/clean/{KEY}/lineage.json")
    two = open_store(tmp_path / "two")
    assert two.ready("clean", KEY) is None and two.examine("clean", KEY).why == ""
    assert open_store(tmp_path / "one").ready("clean", KEY) is not None, "it has it, and uploads what is missing"
    assert two.ready("clean", KEY).path.is_relative_to(tmp_path / "two")


@pytest.mark.parametrize("harm", ["other bytes", "shorter", "gone"])
def test_damage_in_the_bucket_is_found_before_it_is_used(tmp_path, s3, harm):
    publish(open_store(tmp_path / "one"))
    name = f"team/a/clean/{KEY}/sub/a.txt"
    if harm == "gone":
        s3.delete_object(Bucket=s3.bucket, Key=name)
    else:
        s3.put_object(Bucket=s3.bucket, Key=name, Body=b"hellO" if harm == "other bytes" else b"hell")
    lines = []
    two = open_store(tmp_path / "two", lines.append)
    assert two.ready("clean", KEY) is None and "is damaged in s3://" in lines[0]
    assert not [p for p in (tmp_path / "two" / "clean").iterdir() if p.is_dir()]
    publish(two)
    assert open_store(tmp_path / "three").ready("clean", KEY) is not None


def test_a_download_goes_on_where_it_was_broken_off(tmp_path, s3):
    publish(open_store(tmp_path / "one"))
    half = tmp_path / "two" / "clean" / f"{KEY}.download" / "sub"
    half.mkdir(parents=True)
    (half / "a.txt").write_text("hel")
    store = open_store(tmp_path / "two")
    assert (store.ready("clean", KEY).path / "sub" / "a.txt").read_text() == "hello" and store.verify(
        "clean", KEY
    ) == []


def test_an_unreachable_bucket_is_an_error_and_nothing_runs(tmp_path, player, s3, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}"
    for env in (
        {"AWS_ENDPOINT_URL": closed},
        {"PIPELINE_STORE": "s3://no-such-bucket/x"},
        {"PIPELINE_STORE": "/not/s3"},
    ):
        answer = player(tmp_path / "home", s3.env | env)
        assert "StoreError" in answer["error"] and "PIPELINE_STORE" in answer["error"] and not built(tmp_path / "home")
    store = open_store(tmp_path / "one")
    publish(store)
    monkeypatch.setenv("AWS_ENDPOINT_URL", closed)
    with pytest.raises(StoreError, match="cannot read"):
        open_store(tmp_path / "two").examine("clean", KEY)


def test_an_upload_that_fails_keeps_the_artifact_and_is_made_up_for(tmp_path, s3, monkeypatch):
    store = open_store(tmp_path / "one")
    with monkeypatch.context() as broken:
        broken.setattr(store.bucket, "upload", lambda path, name: (_ for _ in ()).throw(StoreError("the cable is out")))
        with pytest.raises(StoreError, match="kept on this machine"):
            publish(store)
    assert not [n for n in names(s3) if n.endswith("lineage.json")]
    assert store.ready("clean", KEY) is not None and open_store(tmp_path / "two").ready("clean", KEY) is not None


def test_a_lease_in_the_bucket_has_one_holder_and_outlives_no_machine(tmp_path, s3, monkeypatch):
    monkeypatch.setattr(ObjectPlace, "stale", 4.0)  # long enough for a holder to be seen alive on a busy machine
    monkeypatch.setattr(ObjectPlace, "poll", 0.05)
    place = ObjectPlace(open_store(tmp_path).bucket, "x.lease")
    assert place.create('{"host": "a lost machine", "pid": 1}') and place.create("again") is None
    holding, most = [], []

    def wait():
        with Lease(ObjectPlace(place.bucket, "x.lease")) as lease:
            holding.append(1)
            most.append(len(holding))
            lease.confirm()
            time.sleep(0.05)
            holding.pop()

    threads = [threading.Thread(target=wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [1, 1, 1, 1] and names(s3) == []


def test_a_server_without_conditional_writes_is_said_so(tmp_path, s3, monkeypatch):
    lines = []
    store = open_store(tmp_path, lines.append)
    plain = store.bucket.put
    monkeypatch.setattr(store.bucket, "put", lambda name, data, **condition: plain(name, data))
    store.check()
    assert isinstance(store, S3Store) and "conditional writes" in lines[0]
    publish(store)
    assert f"clean/{KEY}/lineage.json" in names(s3) and os.environ["PIPELINE_STORE"].startswith("s3://")


def test_a_withdrawal_on_one_machine_holds_on_all_and_is_undone_by_any(tmp_path, s3):
    one, two = open_store(tmp_path / "one"), open_store(tmp_path / "two")
    publish(one)
    rule = rule_for(two.everywhere(), f"clean/{KEY[:6]}", "a test set in it")
    two.withdrawals.add(rule)
    assert "a test set in it" in open_store(tmp_path / "one").examine("clean", KEY).why
    assert open_store(tmp_path / "three").ready("clean", KEY) is None
    open_store(tmp_path / "one").withdrawals.remove(rule["what"])
    assert open_store(tmp_path / "three").ready("clean", KEY) is not None


def test_gc_of_a_bucket_keeps_what_runs_of_any_machine_champions_and_young_artifacts_need(
    s3, tmp_path, monkeypatch, capsys
):
    from flows import collect
    from storage.store import open_store

    monkeypatch.setenv("PIPELINE_HOME", str(tmp_path / "here"))
    other, here = open_store(tmp_path / "there" / "store"), open_store(tmp_path / "here" / "store")
    for stage, key, inputs in (
        ("clean", "a", []),
        ("shard", "b", [("clean", "a")]),
        ("clean", "c", []),
        ("clean", "d", []),
        ("sft", "e", [("clean", "d")]),
        ("sft", "f", []),
    ):
        (other.partial(stage, key) / "x.txt").write_text(stage + key)
        listed = [{"name": s, "stage": s, "key": k, "digest": "x"} for s, k in inputs]
        other.publish(stage, key, {"inputs": listed, "created": "2020", "metrics": {}, "sources": []})
    other.note_run("20260101-0001", [("clean", "c")], pinned=False)
    other.note_run("20260102-0001", [("shard", "b")], pinned=False)
    other.note_run("20250101-0001", [("sft", "f")], pinned=True)
    s3.put_object(Bucket=s3.bucket, Key="team/a/runs/hostile.json", Body=b'{"nodes": "../.."}')
    ages = Bucket.ages
    monkeypatch.setattr(  # the server's clock, whatever the clock of a machine said when it made an artifact
        Bucket, "ages", lambda self, below: {n: a + 90_000 * ("sft/e" not in n) for n, a in ages(self, below).items()}
    )
    assert collect.collect(keep=1, dry_run=True, shared=True) == 0
    assert "would delete clean/c" in capsys.readouterr().out and ("clean", "c") in here.shared_places()
    assert collect.collect(keep=1, dry_run=False, shared=True) == 0
    assert "1 artifacts of s3://" in capsys.readouterr().out
    assert here.shared_places() == [("clean", "a"), ("clean", "d"), ("sft", "e"), ("sft", "f"), ("shard", "b")]
    assert here.examine("clean", "c").state == "absent" and here.ready("shard", "b")
    monkeypatch.delenv("PIPELINE_STORE")
    assert collect.collect(keep=1, dry_run=True, shared=True) == 2


def test_a_champion_is_that_of_all_machines_and_no_decision_is_lost_between_them(tmp_path, s3):
    def decision(run, key=KEY):
        model = {"stage": "sft", "key": key, "digest": "d" * 64}
        facts = {"conditions": [], "scores": {}, "evaluated": "", "run": run, "created": ""}
        return {"preset": "tiny", "action": "promote", "model": model, "moved": True, "before": None, **facts}

    one, two = (open_store(tmp_path / name) for name in ("one", "two"))
    Champions(Store(tmp_path / "one")).add(decision("before the bucket", "o" * 32))
    assert Champions(one).current("tiny")["run"] == "before the bucket" and Champions(two).current("tiny") is None
    publish(one, stage="sft")
    Champions(one).add(decision("r0"))
    assert (
        champion("tiny", two).is_relative_to(tmp_path / "two") and (champion("tiny", two) / "sub" / "a.txt").is_file()
    )
    writers = [
        threading.Thread(
            target=lambda place=place, name=name: [Champions(place).add(decision(f"{name}{i}")) for i in range(8)]
        )
        for place, name in ((one, "a"), (two, "b"))
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    runs = [d["run"] for d in Champions(two).history("tiny")]
    assert runs[:2] == ["before the bucket", "r0"] and sorted(runs[2:]) == [f"{n}{i}" for n in "ab" for i in range(8)]
    assert [r for r in runs if r[0] == "a"] == [f"a{i}" for i in range(8)] and Champions(one).presets() == ["tiny"]
