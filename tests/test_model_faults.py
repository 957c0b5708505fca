"""Faults of single ranks under the real launcher: one is killed, one hangs; both end readable, leave nothing behind,
and resume to the bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from spec_helpers import spec as make
from test_model_data import write_tokens

from model.specs.base import dump
from model.specs.train import TrainSpec
from pipeline.config.resources import Resources
from tasks.running import processes
from tasks.running.failure import WorkerFailed
from tasks.running.launch import launch


def ranks_of(out: Path) -> dict[int, psutil.Process]:
    """The living training processes that write into ``out``, by rank."""
    found = {}
    for process in psutil.process_iter():
        try:
            line, rank = process.cmdline(), process.environ().get("RANK")
            if (
                rank is not None
                and str(out / "_run" / "spec.json") in line
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found[int(rank)] = process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def train(spec: TrainSpec, fault: signal.Signals | None = None, step: int = 0, ranks: int = 2) -> dict:
    """Train on two ranks under torchrun; rank 1 gets ``fault`` once ``step`` is reported."""
    on, hit = Resources(nproc=ranks, device="cpu", threads=1, no_progress_seconds=300), []

    def report(record: dict) -> None:
        if fault and not hit and record["step"] >= step:
            hit.append(record["step"])
            os.kill(ranks_of(Path(spec.out))[1].pid, fault)
            if fault == signal.SIGSTOP:
                on.__dict__["no_progress_seconds"] = 2  # from now on: starting up takes longer than that

    return launch("model.pretrain", dump(spec), Path(spec.out), on, report)


def test_after_a_killed_and_a_hung_rank_the_same_bytes_and_another_number_of_ranks_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "POLL_SECONDS", 0.05)
    monkeypatch.setenv("PIPELINE_GRACE_SECONDS", "1")
    monkeypatch.setenv("PIPELINE_HOME", str(tmp_path / "home"))
    write_tokens(
        tmp_path / "text", [[*range(3 + i % 40, 60), 0] for i in range(200)], None, "text", 64, [[*range(3, 60), 0]] * 4
    )
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text('{"added_tokens": []}')
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text("{}")
    shape = {"dim": 64, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 96}
    base = {
        "data": str(tmp_path / "text"),
        "tokenizer": str(tmp_path / "tokenizer"),
        "model": shape,
        "seq_len": 64,
        "dtype": "fp32",
        "batch_tokens": 512,
        "threads": 1,
        "steps": 120,
        "checkpoint_every": 10,
        "compile": "off",
    }
    whole, broken, other = (make(**base | {"out": str(tmp_path / name)}) for name in ("whole", "broken", "other"))
    undisturbed = threading.Thread(target=train, args=(whole,))
    undisturbed.start()

    with pytest.raises(WorkerFailed, match=r"model.pretrain failed on rank 1: killed by signal 9") as killed:
        train(broken, signal.SIGKILL, 15)
    assert killed.value.reason == "signal" and not ranks_of(tmp_path / "broken")
    with pytest.raises(WorkerFailed, match=r"made no progress(.|\n)*run again to resume") as hung:
        train(broken, signal.SIGSTOP, 40)
    assert hung.value.reason == "no_progress" and not ranks_of(tmp_path / "broken")
    assert train(broken)["steps"] == 120
    undisturbed.join()

    log = (tmp_path / "broken" / "_run" / "logs" / "launcher.log").read_text()
    assert log.count("resumed at step") == 2
    ours, theirs = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("broken", "whole"))
    assert ours == theirs
    curves = [
        [json.loads(line) for line in (tmp_path / name / "_run" / "metrics.jsonl").open()]
        for name in ("broken", "whole")
    ]
    assert [(r["step"], r.get("loss")) for r in curves[0]] == [(r["step"], r.get("loss")) for r in curves[1]]

    shutil.copytree(tmp_path / "broken" / "_run" / "checkpoints", tmp_path / "other" / "_run" / "checkpoints")
    shutil.rmtree(tmp_path / "other" / "_run" / "checkpoints" / "step-00000120")
    assert train(other, ranks=1)["steps"] == 120
    assert "resumed at step 110" in (tmp_path / "other" / "_run" / "logs" / "launcher.log").read_text()
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "other")]
    for name in weights[0]:
        torch.testing.assert_close(weights[1][name], weights[0][name], atol=5e-3, rtol=0)
