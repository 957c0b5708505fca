"""Two machines of a Ray cluster (two raylets with processes of their own) train what one machine with as many ranks
trains, with a shared folder and without; a machine that dies, and what is said of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import threading
import time
from pathlib import Path

import psutil
import pytest
from spec_helpers import spec as make
from test_model_data import write_tokens
from test_storage_s3 import KEY
from test_storage_s3 import s3 as s3
from test_storage_s3 import server as server

from model.specs.base import dump
from pipeline.config.resources import Resources
from storage.places import ROOT
from storage.store import open_store
from tasks.running import cluster as clustering
from tasks.running import processes
from tasks.running.failure import WorkerFailed
from tasks.running.launch import launch
from tasks.running.processes import stop_all

WORKER = """
import json, os, sys, time
spec = json.load(open(sys.argv[sys.argv.index("--spec") + 1]))
if spec["do"] == "score":
    assert os.path.exists(os.path.join(spec["data"], "manifest.json"))
    os.mkdir(os.path.join(spec["out"], "answers"))
    open(os.path.join(spec["out"], "answers", "all.jsonl"), "w").write(os.environ["PIPELINE_HOME"])
    result = {"read": open(os.path.join(spec["exams"], "a.txt")).read()}
    json.dump(result, open(os.path.join(spec["out"], "_run", "result.json"), "w"))
    sys.exit()
open(os.path.join(spec["out"], "rank%s.pid" % os.environ["RANK"]), "w").write(str(os.getpid()))
if spec["do"] == "fail" and os.environ["RANK"] == "1":
    raise KeyError("tokens")
time.sleep(300)
"""


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    """A cluster of two machines with one processor each; ``start(**env)`` starts another, ``kill(machine)`` takes its
    power."""
    import ray
    from ray.cluster_utils import Cluster

    place = tmp_path_factory.mktemp("modules")
    (place / "sleeper.py").write_text(WORKER)
    env = {"PYTHONPATH": os.pathsep.join((str(ROOT), str(place))), "PIPELINE_GRACE_SECONDS": "1", "PIPELINE_HOME": ""}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**env, "RAY_USAGE_STATS_ENABLED": "0"}.items():
            patch.setenv(name, value)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})

        def start(cpus=1, **more):
            return cluster.add_node(num_cpus=cpus, env_vars=env | more)

        def kill(machine):
            for raylet in machine.all_processes["raylet"]:
                below = psutil.Process(raylet.process.pid).children(recursive=True)
                for process in [psutil.Process(raylet.process.pid), *below]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
            cluster.remove_node(machine, allow_graceful=False)

        cluster.start, cluster.kill, cluster.second = start, kill, start()
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(clustering, "LOST_SECONDS", 1.0)
    monkeypatch.setenv("PIPELINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIPELINE_GRACE_SECONDS", "1")


@pytest.fixture
def training(tmp_path):
    """``train(name, steps, **resources)`` gives the trained model's bytes."""
    write_tokens(
        tmp_path / "text", [[*range(3 + i % 40, 60), 0] for i in range(200)], None, "text", 64, [[*range(3, 60), 0]] * 4
    )
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text('{"added_tokens": []}')
    spec = {
        "data": str(tmp_path / "text"),
        "tokenizer": str(tmp_path / "tokenizer"),
        "model": {"dim": 64, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 96},
        "seq_len": 64,
        "batch_tokens": 512,
        "threads": 1,
    }

    def train(name: str, steps: int, report=lambda record: None, every: int = 0, data=None, **resources) -> bytes:
        on = Resources(device="cpu", checkpoint_every=every, **{"threads": 1, **resources})
        engine = on.how().engine
        own = dump(make(**spec | {"out": str(tmp_path / name), "steps": steps, "engine": engine, "zero_stage": 1}))
        own["how"]["checkpoint_every"] = every
        own["data"] = str(data or own["data"])
        launch("model.pretrain", own, tmp_path / name, on, report)
        return (tmp_path / name / "model.safetensors").read_bytes()

    train.text = tmp_path / "text"
    return train


def test_two_machines_train_what_one_does_though_one_dies_and_another_goes_on(tmp_path, machines, training) -> None:
    alone = training("alone", 60, nproc=2, parallel="fsdp2")
    steps: list[int] = []

    def report(record) -> None:
        steps.append(record["step"])
        if record["step"] > 10 and machines.second is not None:
            machines.kill(machines.second)
            machines.second = None

    with pytest.raises(WorkerFailed) as failure:
        training("lost", 60, report, 5, nnodes=2, engine="ray", parallel="fsdp2")
    assert failure.value.reason == "nodes" and "lost machine 1 (" in str(failure.value)
    assert "run the same command again" in str(failure.value) and steps[-1] < 60
    machines.second = machines.start()
    assert training("lost", 60, nnodes=2, engine="ray", parallel="fsdp2") == alone
    logs = tmp_path / "lost" / "_run" / "logs"
    assert "resumed at step" in (logs / "launcher.log").read_text()
    commands = [line for line in (logs / "node-1.log").read_text().splitlines() if line.startswith("$ ")]
    assert len(commands) == 2 and all("torch.distributed.run" in command for command in commands)
    state = json.loads((tmp_path / "lost" / "_run" / "checkpoints" / "step-00000060" / "state.json").read_text())
    assert {"__0_0.distcp", "__1_0.distcp"} < set(state["files"])


def test_machines_that_share_only_a_bucket_train_with_zero_and_resume_from_it(
    tmp_path, machines, training, s3, monkeypatch
) -> None:
    alone = training("alone", 40, nproc=2, launcher="deepspeed")
    own = [machines.start(PIPELINE_HOME=str(tmp_path / f"disk{i}"), cpus=2, **s3.env) for i in range(2)]
    store = open_store(tmp_path / "home" / "store")
    with store.lease("shard", KEY):
        shutil.copytree(training.text, store.partial("shard", KEY), dirs_exist_ok=True)
        data = store.publish("shard", KEY, {"inputs": [], "created": "2026", "run": "r"}).path
    name = store.partial("pretrain", KEY).relative_to(tmp_path)
    steps: list[int] = []

    def report(record) -> None:
        steps.append(record["step"])
        if record["step"] == 20:
            stop_all()

    how = {"every": 10, "data": data, "nnodes": 2, "engine": "ray", "launcher": "deepspeed", "threads": 2}
    with pytest.raises(WorkerFailed) as failure:
        training(name, 40, report, **how)
    assert failure.value.reason == "stopped"
    there = store.unfinished("pretrain", KEY).names()
    assert there and not list((tmp_path / name / "_run").glob("checkpoints/*")), "they lie on the machines' own disks"
    parts = [sorted(p.name for p in (tmp_path / f"disk{i}").rglob("*.distcp")) for i in range(2)]
    assert parts[0] and parts[1] and not set(parts[0]) & set(parts[1])
    assert training(name, 40, **how) == alone
    log = (tmp_path / name / "_run" / "logs" / "launcher.log").read_text()
    assert f"resumed at step {int(there[-1][5:13])} of 40" in log
    curve = [json.loads(line)["step"] for line in (tmp_path / name / "_run" / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(curve)) == list(range(1, 41))
    for machine in own[1:]:
        machines.kill(machine)
    scored = store.partial("evaluate", KEY)
    (scored / "_run" / "exams").mkdir()
    (scored / "_run" / "exams" / "a.txt").write_text("4 questions")
    spec = {"out": str(scored), "exams": str(scored / "_run" / "exams"), "data": str(data), "do": "score"}
    on = Resources(device="cpu", engine="ray", threads=2)
    assert launch("sleeper", spec, scored, on, lambda record: None, single=True) == {"read": "4 questions"}
    assert (scored / "answers" / "all.jsonl").read_text() == str(tmp_path / "disk0"), "made on the other machine's disk"
    machines.kill(own[0])


def run(tmp_path: Path, do: str, notes: list[str] | None = None, **resources) -> WorkerFailed:
    """A stage of sleeping ranks on the cluster, and its failure."""
    on = Resources(device="cpu", engine="ray", **{"nnodes": 2, **resources})
    said = (lambda line: None) if notes is None else notes.append
    with pytest.raises(WorkerFailed) as failure:
        launch("sleeper", {"out": str(tmp_path), "do": do}, tmp_path, on, lambda record: None, note=said)
    return failure.value


def gone(tmp_path: Path) -> bool:
    end = time.monotonic() + 30
    while pids := [p for path in tmp_path.glob("*.pid") if psutil.pid_exists(p := int(path.read_text()))]:
        if time.monotonic() > end:
            raise AssertionError(f"still running: {pids}")
        time.sleep(0.05)
    return True


def test_more_machines_than_there_are_is_told_with_what_there_is(tmp_path, machines, monkeypatch) -> None:
    monkeypatch.setattr(clustering, "NOTE_SECONDS", 0.1)
    notes: list[str] = []
    failure = run(tmp_path, "sleep", notes, nnodes=3, place_seconds=1)
    assert failure.reason == "nodes" and "wanted 3 machine(s) with 1 CPU free each" in str(failure)
    assert re.search(r"the cluster has \d+: ", str(failure)) and len(notes) >= 2
    assert "resources.place_seconds" in str(failure)


def test_a_rank_that_fails_on_the_other_machine_is_the_cause_and_ends_all(tmp_path, machines) -> None:
    failure = run(tmp_path, "fail")
    assert failure.reason == "exception" and "KeyError: 'tokens'" in str(failure) and "node-*.log" in str(failure)
    assert gone(tmp_path)


def test_stopping_ends_ranks_on_every_machine(tmp_path, machines) -> None:
    def stop() -> None:
        while len(list(tmp_path.glob("rank*.pid"))) < 2:
            time.sleep(0.05)
        stop_all()

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    assert run(tmp_path, "sleep").reason == "stopped" and gone(tmp_path)
    thread.join()


def test_the_commands_of_the_page_on_clusters_are_ones_that_there_are() -> None:
    from ray.scripts.scripts import cli
    from test_readme import commands

    from flows.parser import parsed, parser

    seen = set()
    for words in commands("docs/cluster.md"):
        seen.add(words[0])
        if words[0] == "pipeline":
            parsed(parser(), words[1:])
        elif words[0] == "ray":
            known = {name for option in cli.commands[words[1]].params for name in option.opts}
            assert {word.partition("=")[0] for word in words[2:]} <= known
    assert seen == {"pip", "ray", "pipeline"} and "symmetric-run" in cli.commands
