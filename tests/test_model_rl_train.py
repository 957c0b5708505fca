"""The rl worker as it runs: what it learns, that it can be killed, and that ranks and micro-batches change nothing."""

import json
import math
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from rl_helpers import WORDS, run_spec, unsure_dir
from safetensors.torch import load_file
from spec_helpers import train
from test_model_train import finish, start, torchrun
from token_helpers import new_model, tokenizer_dir

from model.generation.rewarder import Rewarder
from model.network.reward import save_reward, with_score
from model.running.setup import Ranks
from model.training.rl_loop import Pointless
from pipeline.pages.report.learning import learning


def metrics(spec):
    return [json.loads(line) for line in (Path(spec.out) / "_run" / "metrics.jsonl").read_text().splitlines()]


def weights(spec):
    return load_file(Path(spec.out) / "model.safetensors")


LEARNS = {
    "dapo": {"steps": 12},
    "ppo": {"steps": 8, "beta": 0.01},
}


@pytest.mark.parametrize("algorithm", LEARNS)
def test_what_is_rewarded_becomes_likelier(algorithm, tmp_path):
    spec = run_spec(tmp_path, algorithm=algorithm, eval_samples=4, prompts=8, checkpoint_every=20, **LEARNS[algorithm])
    result = train(spec, Ranks(spec.how))
    rows = metrics(spec)
    steps = [row for row in rows if "loss" in row]
    if algorithm == "ppo":
        assert steps[3]["value_loss"] < steps[0]["value_loss"]  # four passes over one rollout
    else:
        assert result["val_pass_1"] > rows[0]["val_pass_1"] + 0.2
    assert len(steps) == spec.steps and all(row["truncated"] <= 1 and row["entropy"] >= 0 for row in steps)
    assert max(row["sampler_gap"] for row in steps if row["step"] % spec.updates == 1 or spec.updates == 1) < 1e-4
    saved = json.loads((tmp_path / "_run" / "result.json").read_text())
    assert saved["before_pass_4"] >= saved["before_pass_1"] and 0 <= saved["before_exact_low"] <= saved["before_exact"]
    assert "value_head" not in weights(spec)
    said = [json.loads(line) for line in (tmp_path / "_run" / "samples.jsonl").read_text().splitlines()]
    assert {"question", "wanted", "said", "reward", "exact"} <= set(said[0])
    after = [json.loads(line) for line in (tmp_path / "_run" / "heldout-after.jsonl").read_text().splitlines()]
    told = learning(tmp_path, 6)
    assert [row[0] for row in told.table.rows][:3] == ["solved, greedy answers", "pass@1, sampled", "pass@4"]
    assert 1 <= len(told.answers) <= 6 and {"question", "before", "said", "wanted", "right"} <= set(told.answers[0])
    assert [name for name, _ in told.curves] == ["reward", "length", "entropy"]
    assert len(after) == 8 and sum(row["right"] for row in after) / 8 == result["val_exact"]


def test_killed_in_the_middle_it_ends_with_the_same_bits(tmp_path):
    """Two updates a rollout, with the initial model: a kill between them does the rollout again."""
    own = {"algorithm": "grpo", "beta": 0.05, "num_iterations": 2, "eval_samples": 1, "steps": 10}
    whole, killed = (run_spec(tmp_path / name, **own) for name in ("whole", "killed"))
    finish(start(whole), whole)
    told = tmp_path / "killed" / "_run"  # an attempt before that ended without a checkpoint
    told.mkdir(parents=True, exist_ok=True)
    for name in ("metrics.jsonl", "samples.jsonl"):
        (told / name).write_text('{"step": 0, "loss": 1.0}\n{"step": 1, "lo')
    process = start(killed)
    log = tmp_path / "killed" / "_run" / "metrics.jsonl"
    while process.poll() is None and not (log.is_file() and '"step": 5,' in log.read_text()):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "_run" / "result.json").exists()
    finish(start(killed), killed)
    assert "resumed at step" in (tmp_path / "killed" / "_run" / "log").read_text()
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "killed/model.safetensors").read_bytes()
    same = [(tmp_path / name / "_run" / "samples.jsonl").read_bytes() for name in ("whole", "killed")]
    assert same[0] == same[1]
    timeless = [
        [{k: v for k, v in row.items() if k in ("step", "loss", "kl", "reward", "val_exact")} for row in metrics(spec)]
        for spec in (whole, killed)
    ]
    assert timeless[0] == timeless[1]


SHARING = {"deepspeed": {"engine": "deepspeed", "zero_stage": 2}, "fsdp2": {"engine": "fsdp2"}}


def test_engines_ranks_and_micro_batches_change_nothing_but_rounding(tmp_path):
    own = {
        "algorithm": "cispo",
        "beta": 0.05,
        "num_mini_batches": 2,
        "eval_samples": 1,
        "steps": 4,
        "num_generations": 4,
    }
    alone, parts = (run_spec(tmp_path / str(n), micro_batch=n, **own) for n in (8, 1))
    for spec in (alone, parts):
        train(spec, Ranks(spec.how))
    shared = [run_spec(tmp_path / name, micro_batch=2, **how, **own) for name, how in SHARING.items()]
    running = [start(spec, torchrun(2)) for spec in shared]
    for process, spec in zip(running, shared, strict=True):
        finish(process, spec)
    for name, value in weights(alone).items():
        for other in (parts, *shared):
            assert torch.allclose(value, weights(other)[name], atol=2e-5), name


def test_adapters_alone_are_trained_and_the_model_without_them_is_the_reference(tmp_path):
    spec = run_spec(tmp_path, algorithm="gspo", beta=0.1, lora={"rank": 4}, eval_samples=1, steps=4)
    train(spec, Ranks(spec.how))
    rows = [row for row in metrics(spec) if "loss" in row and row["kl"] + row["entropy"] > 0]
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6) and rows[-1]["kl"] > 0
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    before = load_file(unsure_dir()[0] / "model.safetensors")
    assert torch.equal(weights(spec)["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert not torch.equal(
        weights(spec)["model.layers.0.self_attn.q_proj.weight"], before["model.layers.0.self_attn.q_proj.weight"]
    )


def test_the_reward_model_is_a_reward_like_others(tmp_path, monkeypatch):
    save_reward(with_score(new_model()), tmp_path / "judge", tokenizer_dir())
    judge, own = str(tmp_path / "judge"), {"rewards": {"model": 1.0, "exact": 0.5}, "eval_samples": 1, "steps": 1}
    spec = run_spec(tmp_path / "run", reward_model=judge, **own)
    train(spec, Ranks(spec.how))
    said = [json.loads(line) for line in (tmp_path / "run" / "_run" / "samples.jsonl").read_text().splitlines()]
    asked = [[{"role": "user", "content": row["question"]}] for row in said]
    scores = Rewarder.from_dir(judge).of_answers(asked, [row["said"] for row in said])
    assert [row["model"] for row in said] == pytest.approx(scores, abs=1e-4)
    assert all(row["reward"] == pytest.approx(row["model"] + 0.5 * row["exact"]) for row in said)
    without = run_spec(tmp_path / "none", **own)
    with pytest.raises(ValueError, match=r"reward\.sources"):
        train(without, Ranks(without.how))
    monkeypatch.setattr(Rewarder, "of_answers", lambda self, asked, said: [math.nan] * len(said))
    damaged = run_spec(tmp_path / "damaged", reward_model=judge, **own)
    with pytest.raises(ValueError, match=r"scores are not finite .*reward\.optim\.lr"):
        train(damaged, Ranks(damaged.how))


def test_a_reward_that_never_differs_fails_and_says_what_to_change(tmp_path):
    spec = run_spec(tmp_path, rewards={"keywords": 1.0}, patience=2, eval_samples=1)
    with pytest.raises(Pointless, match=r"first 2 rollouts .* same \(reward 0 .*rl\.num_generations, now 8"):
        train(spec, Ranks(spec.how))


def test_problems_that_are_too_easy_or_too_hard_are_left_out(tmp_path, capsys):
    spec = run_spec(tmp_path, filter_samples=8, min_pass_rate=0.2, max_pass_rate=0.9, eval_samples=1, steps=1)
    train(spec, Ranks(spec.how))
    kept = int(capsys.readouterr().out.split(" of 8 problems are solved")[0].split()[-1])
    assert 0 < kept < 8
    assert len(list((tmp_path / "_run").glob("pass-rates-*.npy"))) == 1
    hopeless = run_spec(tmp_path / "none", filter_samples=2, min_pass_rate=0.99, eval_samples=1, rewards={"exact": 1.0})
    (tmp_path / "hard").mkdir()
    for name in ("train", "val"):
        row = {"messages": [{"role": "user", "content": "?"}], "answer": "zeta", "lang": "en", "task": "t", "id": "1"}
        (tmp_path / "hard" / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "hard" / "meta.json").write_bytes((unsure_dir()[1] / "meta.json").read_bytes())
    object.__setattr__(hopeless, "data", str(tmp_path / "hard"))
    with pytest.raises(ValueError, match=r"rl\.min_pass_rate"):
        train(hopeless, Ranks(hopeless.how))


def test_answers_that_do_not_fit_the_model_are_refused(tmp_path):
    spec = run_spec(tmp_path, max_completion_length=120, seq_len=144, batch_tokens=144)
    with pytest.raises(ValueError, match=r"more than the model reads \(128\); lower rl\.max_completion_length"):
        train(spec, Ranks(spec.how))
    assert set(WORDS) == {"alpha", "beta", "gamma", "delta"}
