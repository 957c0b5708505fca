"""Adapters and teachers: against peft and plain torch, under every engine, stopped and resumed."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file
from spec_helpers import train
from test_model_train import MODEL, Alone, assert_close, curve, finish, interrupt, make_spec, start, torchrun, weights
from test_model_train import tokens as tokens
from torch.distributed.checkpoint import FileSystemReader
from transformers import AutoModelForCausalLM

from model.objectives.distill import distillation
from model.specs.train import TrainSpec
from model.training import loss

LORA = {"rank": 4, "alpha": 6.0}


@pytest.fixture(scope="module")
def base(tokens, tmp_path_factory) -> TrainSpec:
    spec = make_spec(tokens, tmp_path_factory.mktemp("base"), dtype="fp32", optim={"lr": 3e-3})
    train(spec, Alone())
    return spec


@pytest.fixture(scope="module")
def adapted(base, tokens, tmp_path_factory) -> TrainSpec:
    spec = make_spec(
        tokens, tmp_path_factory.mktemp("adapted"), "sft", init=base.out, lora=LORA, dtype="fp32", steps=12
    )
    finish(start(spec), spec)
    return spec


def test_the_adapter_is_pefts_and_the_model_is_the_base_with_it(base, adapted) -> None:
    ids = torch.randint(3, 100, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(base.out)(ids).logits
        theirs = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base.out), Path(adapted.out) / "adapter"
        )(ids).logits
        ours = AutoModelForCausalLM.from_pretrained(adapted.out)(ids).logits
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    assert (plain - ours).abs().max() > 0.01
    first = next(json.loads(line) for line in (Path(adapted.out) / "_run" / "metrics.jsonl").open())
    assert curve(adapted)[12] < 0.9 * curve(adapted)[1] and first["step"] == 0


def test_only_the_targets_change_and_little_is_kept_for_them(base, tokens, tmp_path) -> None:
    spec = make_spec(tokens, tmp_path, "sft", init=base.out, lora=LORA | {"targets": "attention"}, steps=3)
    train(spec, Alone())
    before, after = (load_file(Path(path) / "model.safetensors") for path in (base.out, spec.out))
    changed = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"q_proj", "k_proj", "v_proj", "o_proj"}
    saved = (
        FileSystemReader(sorted((tmp_path / "_run" / "checkpoints").iterdir())[-1]).read_metadata().state_dict_metadata
    )
    assert len(saved) == 3 * 2 * 4 * 2 and all(
        ".lora_" in name for name in saved
    )  # values and two moments of A and B, four matrices, two layers


def test_a_killed_adapter_training_resumes_to_the_bit(base, tokens, tmp_path) -> None:
    specs = [
        make_spec(tokens, tmp_path / name, "dpo", init=base.out, lora=LORA, steps=25) for name in ("whole", "killed")
    ]
    whole = start(specs[0])
    assert interrupt(start(specs[1]), specs[1], 8, signal.SIGKILL) == -signal.SIGKILL
    finish(whole, specs[0])
    finish(start(specs[1]), specs[1])
    assert weights(specs[0]) == weights(specs[1]) and curve(specs[0]) == curve(specs[1])


@pytest.mark.parametrize("how", [{"engine": "fsdp2"}, {"engine": "deepspeed", "zero_stage": 3}])
def test_sharded_adapters_train_like_one_rank(how: dict, base, adapted, tokens, tmp_path) -> None:
    spec = make_spec(tokens, tmp_path, "sft", init=base.out, lora=LORA, dtype="fp32", steps=12, **how)
    finish(start(spec, torchrun(2)), spec)
    assert_close(spec, adapted)


@pytest.mark.parametrize("known, share, temperature", [(50, 0.5, 1.5), (40, 1.0, 1.0), (60, 0.25, 3.0)])
def test_distillation_is_the_formula_whatever_the_teacher_knows(
    known: int, share: float, temperature: float, monkeypatch
) -> None:
    monkeypatch.setitem(loss.CHUNK, "cpu", 13)
    g = torch.Generator().manual_seed(0)
    h, head, taught, teacher = (
        torch.randn(shape, generator=g) for shape in ((30, 16), (50, 16), (30, 24), (known, 24))
    )
    targets, weight = torch.randint(0, 40, (30,), generator=g), torch.rand(30, generator=g)
    weight[::4] = 0
    theirs = [h.clone().requires_grad_(), head.clone().requires_grad_()]
    logits, both = theirs[0] @ theirs[1].t(), min(known, 50)
    nll = F.cross_entropy(logits, targets, reduction="none")
    soft = [F.log_softmax(x[:, :both] / temperature, -1) for x in (logits, taught @ teacher.t())]
    divergence = F.kl_div(*soft, reduction="none", log_target=True).sum(-1) * temperature**2
    expected = (((1 - share) * nll + share * divergence) * weight).sum()
    expected.backward()
    ours = [h.clone().requires_grad_(), head.clone().requires_grad_()]
    total, sums = distillation(*ours, taught, teacher, targets, weight, share, temperature)
    total.backward()
    kept = weight > 0
    torch.testing.assert_close(
        (total, sums), (expected.detach(), torch.stack((nll[kept].sum(), divergence[kept].sum())).detach())
    )
    torch.testing.assert_close([p.grad for p in ours], [p.grad for p in theirs])


def test_a_student_comes_closer_to_its_teacher_than_without_one(base, tokens, tmp_path) -> None:
    teacher = make_spec(tokens, tmp_path / "teacher", "sft", init=base.out, steps=40)
    train(teacher, Alone())
    small = make_spec(tokens, tmp_path / "small", model=MODEL | {"dim": 32, "ffn": 48}, steps=20)
    train(small, Alone())
    results = {}
    for weight in (0.01, 0.9):
        spec = make_spec(
            tokens,
            tmp_path / f"student-{weight}",
            "sft",
            init=small.out,
            steps=30,
            distill={"teacher": teacher.out, "weight": weight},
        )
        results[weight] = train(spec, Alone())
        first = next(json.loads(line) for line in (Path(spec.out) / "_run" / "metrics.jsonl").open())
        assert (
            results[weight]["val_divergence"] < 0.7 * first["val_divergence"]
            and results[weight]["val_bits_per_byte"] > 0
        )
    assert results[0.9]["val_divergence"] < results[0.01]["val_divergence"]
    same = make_spec(
        tokens,
        tmp_path / "same",
        "sft",
        init=teacher.out,
        steps=1,
        distill={"teacher": teacher.out},
        lora=LORA,
        dtype="fp32",
    )
    assert train(same, Alone())["val_divergence"] < 0.05


def test_a_teacher_of_other_tokens_is_refused(base, tokens, tmp_path) -> None:
    small = make_spec(tokens, tmp_path, "sft", init=base.out, distill={"teacher": base.out})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"content": "<x>", "id": 3}]}))
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "other" / name).write_bytes((Path(base.out) / name).read_bytes())
    with pytest.raises(ValueError, match="1 of the teacher's 1 tokens have other ids"):
        train(replace(small, distill=replace(small.distill, teacher=str(tmp_path / "other"))), Alone())
    with pytest.raises(ValueError, match="give init"):
        make_spec(tokens, tmp_path, "sft", lora=LORA, model=MODEL, init=None)
    with pytest.raises(ValueError, match="distill: unknown key"):
        make_spec(tokens, tmp_path, "dpo", init=base.out, distill={"teacher": base.out})
