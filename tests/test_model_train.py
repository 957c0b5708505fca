"""The training worker as real processes: stopped in every way and started again, alone, under torchrun and under
DeepSpeed."""

from __future__ import annotations

import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from spec_helpers import PLAIN, train
from spec_helpers import spec as make
from test_model_data import write_tokens

from model.running.checkpoint import Checkpoints, Piece
from model.running.setup import Ranks
from model.specs.base import dump
from model.specs.train import TrainSpec
from model.training.loop import SKIP_LIMIT, Diverged, Loop, Plan
from model.training.spikes import LEAST, WINDOW, SpikeGuard
from model.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
MODEL = {"dim": 64, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 96}
VOCAB = 128


@pytest.fixture(scope="session")
def tokens(tmp_path_factory) -> Path:
    """Small token datasets of the three kinds, learnable: counting sequences."""
    root, r = tmp_path_factory.mktemp("tokens"), random.Random(0)

    def turn(shift: int, start: int) -> tuple[list[int], list[int]]:
        question, answer = [1, *range(start, start + 6)], [start + shift + i for i in range(r.randrange(3, 12))] + [2]
        return question + answer, [0] * len(question) + [1] * len(answer)

    def write(name: str, kind: str, count: int, make) -> None:
        parts = [x for _ in range(count) for x in make()]
        ids, masks = [p[0] for p in parts], [p[1] for p in parts]
        cut = len(parts) - len(parts) // 10 // 2 * 2
        marks = (None, None) if kind == "text" else (masks[:cut], masks[cut:])
        write_tokens(root / name, ids[:cut], marks[0], kind, VOCAB, ids[cut:], marks[1])

    write("text", "text", 200, lambda: [([*range(s := r.randrange(3, 60), s + r.randrange(5, 40)), 0], [])])
    write("chat", "chat", 150, lambda: [turn(20, r.randrange(3, 60))])
    write("pairs", "pairs", 80, lambda: [turn(20, s := r.randrange(3, 60)), turn(40, s)])
    (root / "tokenizer").mkdir()
    (root / "tokenizer" / "tokenizer.json").write_text('{"added_tokens": []}')
    (root / "tokenizer" / "tokenizer_config.json").write_text("{}")
    return root


def make_spec(tokens: Path, out: Path, objective: str = "pretrain", **fields) -> TrainSpec:
    data = {"pretrain": "text", "sft": "chat", "dpo": "pairs"}[objective]
    base = {
        "data": str(tokens / data),
        "tokenizer": str(tokens / "tokenizer"),
        "out": str(out),
        "seq_len": 64,
        "batch_tokens": 512,
        "threads": 1,
        "steps": 40,
        "checkpoint_every": 3,
        "optim": {"lr": 3e-3},
    }
    if "init" not in fields:
        base["model"] = MODEL
    return make(objective, **base | fields)


def start(spec: TrainSpec, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    run = Path(spec.out) / "_run"
    run.mkdir(parents=True, exist_ok=True)
    (run / "spec.json").write_text(json.dumps(dump(spec)))
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    if PLAIN["device"] == "cpu":
        env |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    log = open(run / "log", "ab")  # noqa: SIM115 - lives as long as the process
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, f"model.{spec.NAME}", "--spec", str(run / "spec.json")],
        env=env,
        cwd=ROOT,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def torchrun(ranks: int) -> tuple[str, ...]:
    if PLAIN["device"] == "cuda" and torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} GPUs: two ranks of NCCL cannot share one")
    return ("torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m")


def finish(process: subprocess.Popen, spec: TrainSpec) -> dict:
    code = process.wait(240)
    assert code == 0, (Path(spec.out) / "_run" / "log").read_text()[-3000:]
    return json.loads((Path(spec.out) / "_run" / "result.json").read_text())


def interrupt(process: subprocess.Popen, spec: TrainSpec, step: int, number: int) -> int:
    """Send a signal to all of a run's processes once ``step`` is logged; the launcher's exit code."""
    metrics = Path(spec.out) / "_run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.is_file() or f'"step": {step},' not in metrics.read_text():
        assert process.poll() is None and time.monotonic() < deadline, (Path(spec.out) / "_run" / "log").read_text()[
            -3000:
        ]
        time.sleep(0.01)
    os.killpg(process.pid, number)
    return process.wait(60)


def weights(spec: TrainSpec) -> bytes:
    return (Path(spec.out) / "model.safetensors").read_bytes()


def curve(spec: TrainSpec) -> dict[int, float]:
    lines = [json.loads(line) for line in (Path(spec.out) / "_run" / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: r["loss"] for r in lines if "loss" in r}


@pytest.fixture(scope="session")
def base(tokens, tmp_path_factory) -> TrainSpec:
    """A small pretrained model, trained without a stop."""
    spec = make_spec(tokens, tmp_path_factory.mktemp("base"))
    result = finish(start(spec), spec)
    assert result["val_loss"] < 3.5 and result["val_bits_per_byte"] == pytest.approx(
        result["val_loss"] / math.log(2) / 3, rel=0.02
    )
    assert result["steps"] == 40 and result["tokens"] == 40 * 512
    return spec


@pytest.mark.parametrize("dtype, kills", [("fp32", (4, 17)), ("bf16", (4,))])
def test_killed_pretraining_resumes_to_the_same_bits_and_curve(dtype: str, kills, base, tokens, tmp_path) -> None:
    steps, whole = {"fp32": 40, "bf16": 8}[dtype], base  # a CPU without units for bf16 takes its time
    if dtype == "bf16":
        whole = make_spec(tokens, tmp_path / "whole", dtype=dtype, steps=steps)
        finish(start(whole), whole)
    spec = make_spec(tokens, tmp_path / "killed", dtype=dtype, steps=steps)
    for step in kills:
        assert interrupt(start(spec), spec, step, signal.SIGKILL) == -signal.SIGKILL
    finish(start(spec), spec)
    assert weights(spec) == weights(whole)
    assert curve(spec) == curve(whole)


def bytes_per_target(data: Path) -> float:
    """What meta.json says a validation target spells."""
    return json.loads((data / "meta.json").read_text())["splits"]["val"]["bytes"] / (
        data / "val.mask.bin"
    ).read_bytes().count(1)


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_sft_and_dpo_stopped_by_sigterm_checkpoint_and_resume_to_the_same_bits(
    objective: str, base, tokens, tmp_path
) -> None:
    more = {"nll_weight": 0.1} if objective == "dpo" else {}
    specs = [
        make_spec(tokens, tmp_path / name, objective, init=base.out, checkpoint_every=1000, **more)
        for name in ("whole", "stopped")
    ]
    whole, stopped = start(specs[0]), start(specs[1])
    assert interrupt(stopped, specs[1], 7, signal.SIGTERM) == 143
    assert len(list((Path(specs[1].out) / "_run" / "checkpoints").glob("step-*"))) == 1
    results = [finish(whole, specs[0]), finish(start(specs[1]), specs[1])]
    assert weights(specs[0]) == weights(specs[1]) and curve(specs[0]) == curve(specs[1])
    first = next(json.loads(line) for line in (Path(specs[0].out) / "_run" / "metrics.jsonl").open())
    assert first["step"] == 0 and results[0]["val_loss"] < first["val_loss"]
    if objective == "dpo":
        assert first["val_margin"] == pytest.approx(0, abs=1e-3) and results[0]["val_accuracy"] > 0.9
        bits_per_token = results[0]["val_chosen_nll"] / results[0]["val_chosen_tokens"] / math.log(2)
        assert results[0]["val_bits_per_byte"] == pytest.approx(bits_per_token / bytes_per_target(tokens / "pairs"))
        assert 0 < results[0]["val_bits_per_byte"] < 8


def test_two_killed_ranks_of_deepspeed_resume_to_the_bit_and_another_number_goes_on(tokens, tmp_path) -> None:
    how = {"engine": "deepspeed", "offload": True, "dtype": "fp32", "steps": 16}  # ddp: test_model_faults.py
    specs = {name: make_spec(tokens, tmp_path / name, **how) for name in ("whole", "killed")}
    whole = start(specs["whole"], torchrun(2))
    interrupt(start(specs["killed"], torchrun(2)), specs["killed"], 8, signal.SIGKILL)
    finish(whole, specs["whole"])
    other = make_spec(tokens, tmp_path / "other", dtype="fp32", steps=16)
    shutil.copytree(Path(specs["killed"].out) / "_run" / "checkpoints", tmp_path / "other" / "_run" / "checkpoints")
    alone = start(other)
    finish(start(specs["killed"], torchrun(2)), specs["killed"])
    finish(alone, other)
    assert weights(specs["whole"]) == weights(specs["killed"])
    assert_close(specs["whole"], other)


@pytest.mark.parametrize("first, then", [("fsdp2", "deepspeed")])
def test_sharded_experts_train_like_one_rank_and_the_other_engine_goes_on_from_a_shard_each(
    first: str, then: str, tokens, tmp_path
) -> None:
    # the balance loss is one of each micro-batch; of one row each they are the same on any number of ranks
    moe = {
        "model": MODEL | {"experts": 4, "experts_per_token": 2},
        "dtype": "fp32",
        "steps": 9,
        "zero_stage": 3,
        "micro_batch": 1,
    }
    sharded, alone = (
        make_spec(tokens, tmp_path / "sharded", engine=first, **moe),
        make_spec(tokens, tmp_path / "alone", **moe),
    )
    other = start(alone)
    interrupt(start(sharded, torchrun(2)), sharded, 5, signal.SIGKILL)
    assert len(list((Path(sharded.out) / "_run" / "checkpoints" / "step-00000003").glob("*.distcp"))) == 2
    finish(start(replace(sharded, how=replace(sharded.how, engine=then)), torchrun(2)), sharded)
    finish(other, alone)
    assert_close(sharded, alone)


def assert_close(one: TrainSpec, two: TrainSpec) -> None:
    """Weights equal but for the order of sums."""
    ours, theirs = (load_file(Path(spec.out) / "model.safetensors") for spec in (one, two))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=5e-3, rtol=0)


class Alone(Ranks):
    """One rank inside the test's own process: no signal handler, no parent to watch."""

    def __init__(self) -> None:
        self.rank, self.world, self.device, self.orphan, self._signalled = 0, 1, torch.device("cpu"), False, False


def test_out_of_memory_halves_the_micro_batch_and_goes_on(tokens, tmp_path, monkeypatch, capsys) -> None:
    read = Loop.batch

    def tight(self, split, numbers, norm_by):
        if split == "train" and len(numbers) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return read(self, split, numbers, norm_by)

    whole = train(make_spec(tokens, tmp_path / "whole", steps=5, dtype="fp32"), Alone())
    monkeypatch.setattr(Loop, "batch", tight)
    halved = train(make_spec(tokens, tmp_path / "halved", steps=5, dtype="fp32"), Alone())
    assert "going on with 2" in capsys.readouterr().out
    assert halved["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-3)


def test_steps_that_are_not_finite_are_skipped_and_many_of_them_fail(tokens, tmp_path, monkeypatch) -> None:
    bad = {3, 4}
    measure = Loop._gradient

    def poisoned(self, rows, norm_by):
        sums = measure(self, rows, norm_by)
        if self.step in bad:
            self.engine.grad[0] = float("nan")
        return sums

    monkeypatch.setattr(Loop, "_gradient", poisoned)
    result = train(make_spec(tokens, tmp_path / "a", steps=10), Alone())
    assert result["skipped_steps"] == 2 and result["train_loss"] < 10
    bad.update(range(100))
    with pytest.raises(Diverged, match=r"lower optim\.lr"):
        train(make_spec(tokens, tmp_path / "b", steps=SKIP_LIMIT + 5), Alone())


@pytest.mark.parametrize("spike, skipped", [(6.0, 1), (0.0, 0)])
def test_an_update_of_a_gradient_spike_is_skipped_and_training_goes_on(
    spike: float, skipped: int, tokens, tmp_path, monkeypatch, capsys
) -> None:
    measure = Loop._gradient

    def spiked(self, rows, norm_by):
        sums = measure(self, rows, norm_by)
        if self.step == 45:
            self.engine.grad.mul_(1000)
        return sums

    monkeypatch.setattr(Loop, "_gradient", spiked)
    result = train(make_spec(tokens, tmp_path, steps=50, optim={"lr": 3e-3, "name": "adamw", "spike": spike}), Alone())
    assert result["skipped_steps"] == skipped and ("step 46: gradient norm" in capsys.readouterr().out) == bool(skipped)


def test_the_spike_guard_needs_company_and_follows_a_new_level() -> None:
    guard = SpikeGuard(6.0, torch.device("cpu"))
    noise = (1 + 0.1 * torch.randn(300, generator=torch.Generator().manual_seed(0))).abs()
    for norm in [100.0, *noise[: LEAST - 1]]:  # the first may be large
        guard.saw(torch.as_tensor(norm), guard.limit())
    assert guard.counts.tolist() == [0, 0, 0]
    for norm in noise[LEAST : LEAST + WINDOW]:
        guard.saw(norm, guard.limit())
    other = SpikeGuard(6.0, torch.device("cpu"))
    other.load(json.loads(json.dumps(guard.state())))
    assert other.limit() == guard.limit() == pytest.approx(1.6, abs=0.2)
    for norm in 5 * noise[:WINDOW]:  # not a spike but a new level: most of it is taken
        guard.saw(norm, guard.limit())
    assert 1 <= guard.counts[1] <= 5 and guard.limit() > 5
    guard.saw(torch.tensor(float("nan")), guard.limit())
    assert guard.counts[0] == guard.counts[2] == 1 and guard.limit().isfinite()


def test_the_batch_warms_up_from_a_quarter_and_an_epoch_stays_one(tokens, tmp_path) -> None:
    spec = make_spec(tokens, tmp_path, steps=0, epochs=2.0, optim={"batch_warmup": 0.5})
    rows = Trainer(spec, Alone()).read_data().train.rows
    plan = Plan(spec, rows)
    counts = [plan.rows(step) for step in range(plan.steps)]
    assert (
        counts[0] == 2
        and counts[-1] == 8
        and counts == sorted(counts)
        and counts[plan.steps // 2 :] == [8] * (plan.steps - plan.steps // 2)
    )
    assert sum(counts) == pytest.approx(2 * rows, abs=8)
    result = train(spec, Alone())
    assert result["tokens"] == sum(counts) * spec.seq_len


def test_the_newest_checkpoints_stay_and_the_one_that_validated_best(tokens, tmp_path) -> None:
    checkpoints = Checkpoints(tmp_path, 2, {})
    for step, val_loss in ((1, 3.0), (2, 2.0), (3, None), (4, 2.5), (5, None)):
        checkpoints.save([Piece("param:x", 0, 2, torch.zeros(2))], {"step": step, "val_loss": val_loss})
    checkpoints.wait()
    assert [path.name[-1] for path in checkpoints.whole()] == ["2", "4", "5"]
    spec = make_spec(tokens, tmp_path / "run", steps=10, eval_every=2, checkpoint_every=4, keep_checkpoints=1)
    train(spec, Alone())
    kept = [
        json.loads((path / "state.json").read_text())
        for path in sorted((tmp_path / "run" / "_run" / "checkpoints").iterdir())
    ]
    losses = {
        r["step"]: r["val_loss"]
        for r in map(json.loads, (tmp_path / "run" / "_run" / "metrics.jsonl").open())
        if "val_loss" in r
    }
    losses.pop(10)
    assert [k["step"] for k in kept] == [min(losses, key=losses.get), 10] and kept[0]["val_loss"] == min(
        losses.values()
    )


def test_a_full_disk_leaves_no_checkpoint_that_looks_whole(tokens, tmp_path, monkeypatch) -> None:
    spec, save, limits = (
        make_spec(tokens, tmp_path, steps=9),
        Checkpoints.save,
        resource.getrlimit(resource.RLIMIT_FSIZE),
    )

    def full(self, pieces, state):
        if state["step"] == 6:
            self.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        save(self, pieces, state)

    monkeypatch.setattr(Checkpoints, "save", full)
    try:
        with pytest.raises(OSError, match="free disk space"):
            train(spec, Alone())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in (tmp_path / "_run" / "checkpoints").iterdir()] == ["step-00000003"]
    monkeypatch.undo()
    train(spec, Alone())
    whole = make_spec(tokens, tmp_path / "whole", steps=9)
    train(whole, Alone())
    assert weights(spec) == weights(whole)
