"""Checkpoints: other data, damage, strangers; and specs that are refused."""

from __future__ import annotations

import json
import os

import pytest
import torch
from spec_helpers import train
from test_model_train import MODEL, Alone, curve, make_spec, weights
from test_model_train import tokens as tokens

from model.running.checkpoint import CheckpointMismatch, Checkpoints, Piece


def test_a_checkpoint_of_other_data_is_refused_and_a_damaged_one_passed_over(tokens, tmp_path) -> None:
    spec = make_spec(tokens, tmp_path, steps=9)
    train(spec, Alone())
    newest = sorted((tmp_path / "_run" / "checkpoints").iterdir())[-1]
    os.truncate(newest / "__0_0.distcp", 10)
    before = weights(spec)
    train(spec, Alone())
    assert weights(spec) == before
    with pytest.raises(ValueError, match="another spec"):
        train(make_spec(tokens, tmp_path, steps=9, seed=1), Alone())


def test_a_checkpoint_of_a_stranger_runs_no_code(tmp_path) -> None:
    checkpoints, values = Checkpoints(tmp_path, 2, {}), torch.arange(4.0)
    checkpoints.save([Piece("a", 0, 4, values)], {"step": 1, "val_loss": None})
    checkpoints.wait()
    read = torch.zeros(4)
    assert checkpoints.load([Piece("a", 0, 4, read)])["step"] == 1 and torch.equal(read, values)
    trap = tmp_path / "trap"
    index = tmp_path / "step-00000001" / ".metadata"
    index.write_bytes(b"cos\nsystem\n(S'touch " + str(trap).encode() + b"'\ntR.")
    state = json.loads((index.parent / "state.json").read_text())
    (index.parent / "state.json").write_text(
        json.dumps(state | {"files": state["files"] | {".metadata": len(index.read_bytes())}})
    )
    with pytest.raises(CheckpointMismatch, match=r"system has no place"):
        checkpoints.load([Piece("a", 0, 4, read)])
    assert not trap.exists()


def test_wrong_specs_are_refused_by_name(tokens, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"optim\.lr_: unknown key"):
        make_spec(tokens, tmp_path, optim={"lr_": 1})
    with pytest.raises(ValueError, match="holds chat tokens, pretrain needs text"):
        train(make_spec(tokens, tmp_path, data=str(tokens / "chat")), Alone())
    with pytest.raises(ValueError, match="smaller than the tokenizer's"):
        train(make_spec(tokens, tmp_path, model=MODEL | {"vocab_size": 5}), Alone())


def test_experts_train(tokens, tmp_path) -> None:
    moe = MODEL | {"experts": 4, "experts_per_token": 2}
    result = train(make_spec(tokens, tmp_path, model=moe, steps=20, checkpoint_every=100), Alone())
    first = curve(make_spec(tokens, tmp_path))[1]
    assert result["train_loss"] < first - 1
