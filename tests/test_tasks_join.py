"""Two local "nodes" with real processes: one calls, `pipeline join` takes part, and they train what one node with as
many ranks trains."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from spec_helpers import spec as make
from test_model_data import write_tokens

from model.specs.base import dump
from pipeline.config.resources import Resources
from tasks.running import launch as launching
from tasks.running import nodes
from tasks.running.failure import WorkerFailed
from tasks.running.launch import launch, stop_all
from tasks.running.nodes import free_port


def test_two_nodes_train_to_the_bytes_of_one_node_with_as_many_ranks(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(launching, "POLL_SECONDS", 0.1)
    monkeypatch.setenv("PIPELINE_HOME", str(tmp_path / "home"))
    write_tokens(
        tmp_path / "text", [[*range(3 + i % 40, 60), 0] for i in range(200)], None, "text", 64, [[*range(3, 60), 0]] * 4
    )
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text('{"added_tokens": []}')
    shape = {"dim": 64, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 96}
    spec = {
        "data": str(tmp_path / "text"),
        "tokenizer": str(tmp_path / "tokenizer"),
        "model": shape,
        "seq_len": 64,
        "dtype": "fp32",
        "batch_tokens": 512,
        "threads": 1,
        "steps": 6,
        "compile": "off",
        "engine": "fsdp2",
    }

    def train(name: str, **resources) -> bytes:
        """The trained model's bytes."""
        launch(
            "model.pretrain",
            dump(make(**spec | {"out": str(tmp_path / name)})),
            tmp_path / name,
            Resources(device="cpu", threads=1, **resources),
            lambda record: None,
        )
        return (tmp_path / name / "model.safetensors").read_bytes()

    joined = subprocess.Popen(
        [sys.executable, "-u", "-m", "flows.cli", "join"],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert "ready to join" in joined.stdout.readline()
        alone = train("alone", nproc=2)
        for launcher in ("torchrun", "deepspeed"):
            assert train(launcher, nnodes=2, rdzv_endpoint=f"127.0.0.1:{free_port()}", launcher=launcher) == alone
            assert "node 1 of 2" in joined.stdout.readline() and joined.stdout.readline().endswith(": done\n")
            command = (tmp_path / launcher / "_run" / "logs" / "node-1.log").read_text().splitlines()[0]
            assert ("torch.distributed.run" if launcher == "torchrun" else "--no_ssh") in command
            held = json.loads(
                (tmp_path / launcher / "_run" / "checkpoints" / "step-00000006" / "state.json").read_text()
            )["files"]
            assert {"__0_0.distcp", "__1_0.distcp"} < set(held)
        assert not list((tmp_path / "home" / "nodes").iterdir())
    finally:
        joined.terminate()
        joined.wait(30)


WORKER = """
import json, os, sys, time
spec = json.load(open(sys.argv[sys.argv.index("--spec") + 1]))
open(os.path.join(spec["out"], "rank%s.pid" % os.environ["RANK"]), "w").write(str(os.getpid()))
if spec["do"] == "fail" and os.environ["RANK"] == "1":
    sys.exit(7)
time.sleep(300)
"""


@pytest.fixture
def called(tmp_path, monkeypatch):
    """``call(**resources)`` runs a stage of sleeping ranks on two nodes and gives its failure; ``notes`` has what it
    said meanwhile."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "sleeper.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    monkeypatch.setenv("PIPELINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIPELINE_GRACE_SECONDS", "1")
    for module, name, value in (
        (launching, "POLL_SECONDS", 0.1),
        (launching, "LOST_SECONDS", 1.0),
        (nodes, "SILENCE_SECONDS", 8.0),
        (nodes, "NOTE_SECONDS", 0.5),
    ):
        monkeypatch.setattr(module, name, value)
    notes: list[str] = []

    def call(do: str = "sleep", **resources) -> WorkerFailed:
        on = Resources(device="cpu", nnodes=2, rdzv_endpoint=f"127.0.0.1:{free_port()}", **resources)
        with pytest.raises(WorkerFailed) as failure:
            launch("sleeper", {"out": str(tmp_path), "do": do}, tmp_path, on, lambda record: None, note=notes.append)
        assert not list((tmp_path / "home" / "nodes").iterdir())
        return failure.value

    call.notes, call.place = notes, tmp_path
    return call


def joining(place: Path) -> subprocess.Popen:
    """`pipeline join` on "another machine"."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "flows.cli", "join"],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)


def test_a_node_that_nobody_starts_is_told_early_with_its_knob(called) -> None:
    failure = called(join_seconds=1)
    assert (
        failure.reason == "nodes"
        and "1 of 1 other node(s) missing" in str(failure)
        and "joined: none yet" in str(failure)
    )
    assert (
        "resources.join_seconds" in str(failure)
        and "pipeline join" in str(failure)
        and not (called.place / "_run" / "logs" / "launcher.log").exists()
    )
    assert len(called.notes) >= 2 and "giving up in" in called.notes[0] and "PIPELINE_HOME" in called.notes[0]


def test_stopping_ends_the_wait_for_nodes(called) -> None:
    threading.Timer(0.7, stop_all).start()
    assert called(join_seconds=0).reason == "stopped"


def test_an_address_that_is_taken_is_refused(called) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(ValueError, match=r"rdzv_endpoint: cannot listen at port"),
    ):
        launch(
            "sleeper",
            {},
            called.place,
            Resources(device="cpu", nnodes=2, rdzv_endpoint=f"127.0.0.1:{other.getsockname()[1]}"),
            lambda record: None,
        )


def test_a_node_whose_ranks_fail_before_the_first_step_ends_the_others_soon(called) -> None:
    joined = joining(called.place)
    try:
        failure = called("fail")
        assert (
            failure.reason == "nodes"
            and "node 1 (" in str(failure)
            and "its ranks ended with exit code" in str(failure)
            and "node-1.log" in str(failure)
        )
        assert not psutil.pid_exists(int((called.place / "rank0.pid").read_text()))
    finally:
        joined.terminate()
        joined.wait(30)


def test_a_node_that_is_killed_before_the_first_step_is_noticed(called) -> None:
    joined = joining(called.place)

    def kill() -> None:
        wait_for((called.place / "rank1.pid").exists)
        os.kill(joined.pid, signal.SIGKILL)

    threading.Thread(target=kill).start()
    failure = called()
    joined.wait(30)
    assert failure.reason == "nodes" and "node 1 (" in str(failure) and "has not been heard of" in str(failure)
    wait_for(lambda: not any(psutil.pid_exists(int((called.place / f"rank{r}.pid").read_text())) for r in (0, 1)))
