"""MiniMind's weight files: the shape is found from the tensors, logits are those of transformers, and training goes on
from them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from spec_helpers import train
from test_model_data import write_tokens
from test_model_train import Alone, make_spec

from model.network.hf_config import check_weights
from model.network.transformer import Transformer, initialize
from model.network.weights import _split_experts, load_model, read_config, save_model, widen
from model.specs.shape import ModelConfig

SHAPE = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "rope_theta": 1e6,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}


def theirs(kind: str):
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    if kind == "minimind3":
        return Qwen3ForCausalLM(
            Qwen3Config(**SHAPE | {"num_attention_heads": 4, "head_dim": 16, "rms_norm_eps": 1e-6})
        ).eval()
    return LlamaForCausalLM(LlamaConfig(**SHAPE, rms_norm_eps=1e-5)).eval()


@pytest.mark.parametrize(
    "kind, prefix, resume",
    [("minimind3", "", False), ("minimind3", "_orig_mod.", True), ("minimind2", "module.", False)],
)
def test_the_shape_is_read_from_the_tensors_and_logits_are_transformers(
    kind: str, prefix: str, resume: bool, tmp_path
) -> None:
    model = theirs(kind)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.half())
    state = {prefix + name: value.half() for name, value in model.state_dict().items()}
    torch.save(
        {"model": state, "optimizer": {"state": {}}, "step": 3} if resume else state,
        path := tmp_path / "pretrain_64.pth",
    )
    ours = load_model(path)
    qk_norm, heads = {"minimind3": (True, 4), "minimind2": (False, 8)}[kind]
    assert (ours.config.qk_norm, ours.config.heads, ours.config.kv_heads, ours.config.tied) == (qk_norm, heads, 2, True)
    ids = torch.randint(0, 128, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), model(ids).logits, atol=2e-5, rtol=1e-4)


def test_experts_are_read_and_saved_as_qwen3_moe(tmp_path) -> None:
    config = ModelConfig(
        vocab_size=128,
        dim=64,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=16,
        ffn=96,
        max_seq_len=32768,
        rope_theta=1e6,
        experts=4,
        experts_per_token=1,
        expert_ffn=96,
    )
    model = Transformer(config)
    initialize(model, 0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.add(0.02).half())
    torch.save(
        {k: v.half() for k, v in _split_experts(dict(model.named_parameters())).items()},
        path := tmp_path / "pretrain_64_moe.pth",
    )
    for refuse in (load_model, check_weights):
        with pytest.raises(ValueError, match=r'write \{"num_experts_per_tok": 1\}.* into .*pretrain_64_moe\.json'):
            refuse(path)
    path.with_suffix(".json").write_text('{"num_experts_per_tok": 1}')
    check_weights(path)
    ours, ids = load_model(path), torch.arange(30)[None]
    assert ours.config == config
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), model(ids))
    save_model(ours, tmp_path / "saved")
    assert read_config(tmp_path / "saved").experts_per_token == 1


def test_what_is_no_minimind_file_is_refused(tmp_path) -> None:
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "code.pth").write_bytes(pickle.dumps(Path))
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    torch.save({"model.layers.0.mlp.shared_experts.0.up_proj.weight": torch.zeros(2)}, tmp_path / "shared.pth")
    why = {
        "text": "not a file of tensors",
        "code": "not a file of tensors",
        "other": "not weights of a MiniMind",
        "shared": "shared experts",
    }
    for name, message in why.items():
        with pytest.raises(ValueError, match=message):
            load_model(tmp_path / f"{name}.pth")


@pytest.fixture
def tokens(tmp_path) -> Path:
    write_tokens(tmp_path / "text", [[*range(3, 60), 0]] * 60, None, "text", 128, [[*range(3, 60), 0]] * 4)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 1}}}))
    return tmp_path


def test_training_goes_on_from_a_weights_file_or_a_hugging_face_directory(tokens, tmp_path) -> None:
    torch.save({k: v.half() for k, v in theirs("minimind3").state_dict().items()}, path := tmp_path / "pretrain_64.pth")
    first = train(make_spec(tokens, tmp_path / "first", init=str(path), steps=15), Alone())
    assert read_config(tmp_path / "first") == read_config(path)
    theirs("minimind3").save_pretrained(tmp_path / "hf")
    again = train(make_spec(tokens, tmp_path / "again", init=str(tmp_path / "hf"), steps=15), Alone())
    assert again["train_loss"] == pytest.approx(first["train_loss"], rel=0.05)  # the same weights but for fp16
    more = train(make_spec(tokens, tmp_path / "more", init=str(tmp_path / "first"), steps=15), Alone())
    assert more["train_loss"] < first["train_loss"]


def test_another_tokenizer_than_the_initial_models_is_refused(tokens, tmp_path) -> None:
    theirs("minimind3").save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 1, "b": 2}}}))
    with pytest.raises(
        ValueError,
        match=r"1 of the initial model's 2 tokens have other ids or none, first 'b'; set tokenizer.existing=",
    ):
        train(make_spec(tokens, tmp_path / "x", init=str(tmp_path / "hf")), Alone())


@pytest.mark.parametrize("tied", [True, False])
def test_an_initial_model_gets_rows_for_the_tokens_that_its_tokenizer_was_given(tokens, tmp_path, tied) -> None:
    config = ModelConfig(vocab_size=128, dim=64, layers=2, heads=4, kv_heads=2, ffn=96, max_seq_len=64, tied=tied)
    model = Transformer(config)
    initialize(model, 0)
    save_model(model, tmp_path / "first")
    vocab = {chr(0x4E00 + i): i for i in range(128)} | {"\u4e05\u4e06": 128, "\u4e05\u4e06\u4e07": 129}
    merges = ["\u4e05 \u4e06", "\u4e05\u4e06 \u4e07"]
    (tokens / "tokenizer" / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": vocab, "merges": merges}, "added_tokens": []})
    )
    wide = widen(model, 131, tokens / "tokenizer")
    for old, new in zip(
        (model.model.embed_tokens.weight, model.head), (wide.model.embed_tokens.weight, wide.head), strict=True
    ):
        assert (
            torch.equal(new[:128], old)
            and torch.equal(new[128], (old[5] + old[6]) / 2)
            and torch.equal(new[129], (new[128] + old[7]) / 2)
        )
        torch.testing.assert_close(new[130], old.mean(0))
    write_tokens(tmp_path / "text", [[*range(3, 60), 129, 130, 0]] * 60, None, "text", 131, [[*range(3, 60), 0]] * 4)
    result = train(
        make_spec(
            tmp_path, tmp_path / "out", init=str(tmp_path / "first"), tokenizer=str(tokens / "tokenizer"), steps=15
        ),
        Alone(),
    )
    assert read_config(tmp_path / "out").vocab_size == 131 and result["train_loss"] < 5
