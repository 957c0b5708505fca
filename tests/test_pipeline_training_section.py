"""The pretraining section: what the depth dial stands for, and what it refuses."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from model.network.hf_config import to_hf
from model.running.estimate.memory import matrices
from model.specs.sft import SftSpec
from model.specs.shape import ModelConfig
from model.specs.train import OptimConfig, TrainSpec
from pipeline.config.training import PretrainSection, compute_optimal
from pipeline.config.tree import ConfigError, load
from pipeline.tokens.bpe import to_tokenizers
from tasks.training import spec_of


def test_the_dial_reaches_known_sizes_and_grows_evenly() -> None:
    twelve = PretrainSection(depth=12)
    model = twelve.model
    assert (model.dim, model.layers, model.heads, model.ffn, twelve.batch_tokens) == (
        768,
        12,
        12,
        2048,
        2**19,
    )  # GPT-2 small, nanochat's d12
    assert PretrainSection(depth=4).model == ModelConfig(dim=256, layers=4, heads=4, kv_heads=2, ffn=704)
    assert PretrainSection(depth=4).optim.lr == 6e-3 and PretrainSection(depth=16).optim.lr == 3e-3
    sections = [PretrainSection(depth=d) for d in range(1, 40)]
    assert all(s.steps * s.batch_tokens == pytest.approx(20 * matrices(s.model), rel=0.12) for s in sections[1:])
    for name in ("batch_tokens", "steps"):
        assert all(getattr(a, name) <= 2 * getattr(b, name) for a, b in pairwise(sections)), name
    assert all(a.optim.lr >= b.optim.lr and a.batch_tokens <= b.batch_tokens for a, b in pairwise(sections))
    assert all(s.batch_tokens >= s.seq_len and s.model.dim % s.model.heads == 0 for s in sections)


def test_the_dial_is_the_same_as_its_values_written_out() -> None:
    dialled = PretrainSection(depth=6, tokens_per_parameter=5)
    values = compute_optimal(6, 5)
    written = PretrainSection(
        model=ModelConfig(**values.pop("model")), optim=OptimConfig(**values.pop("optim")), **values
    )
    assert dialled.identity() == written.identity() and "depth" not in written.identity()
    assert PretrainSection.model_validate(dialled.model_dump()) == dialled
    assert (
        PretrainSection(depth=6, model=ModelConfig(rope_theta=5e5)).model.rope_theta == 5e5
    )  # what it does not derive stays free


@pytest.mark.parametrize(
    "override, named",
    [
        ("pretrain.model.layers=3", "model.layers"),
        ("pretrain.optim.lr=1", "optim.lr"),
        ("pretrain.steps=7", "steps"),
        ("pretrain.batch_tokens=8192", "batch_tokens"),
    ],
)
def test_a_value_that_the_dial_derives_is_refused(override: str, named: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"pretrain  depth = 6 derives {named} itself; leave that out, or set depth = 0"
    ):
        load("depth", ["pretrain.depth=6", override])


def test_the_preset_turns_with_the_dial_and_others_say_what_is_in_the_way() -> None:
    small, large = (load("depth", [f"pretrain.depth={d}", "pretrain.optim.decay=0.5"]).pretrain for d in (4, 20))
    assert (
        small.model.layers == 4
        and large.model.dim == 1280
        and large.model.head_size == 128
        and large.optim.decay == 0.5
    )
    with pytest.raises(ConfigError, match=r"derives model\.dim"):
        load("gpt2-124m", ["pretrain.depth=20"])
    with pytest.raises(ConfigError, match="greater than or equal to 0"):
        load("depth", ["pretrain.depth=-1"])


def test_initial_weights_enter_the_key_by_content_and_reach_the_worker(tmp_path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(to_hf(ModelConfig(vocab_size=300))))
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    one, two = (load("tiny", [f"pretrain.init={tmp_path / name}"]) for name in ("one", "two"))
    assert one.pretrain.identity() == two.pretrain.identity() != load("tiny").pretrain.identity()
    assert "model" not in one.pretrain.identity() and "init" not in load("tiny").pretrain.identity()
    (tmp_path / "two" / "model.safetensors").write_bytes(b"other weights")
    assert one.pretrain.identity() != two.pretrain.identity()
    spec = spec_of(
        TrainSpec, one.pretrain, one.resources, data=tmp_path, tokenizer=tmp_path, out=tmp_path, init=tmp_path / "one"
    )
    assert spec.init == str(tmp_path / "one") and spec.model is None
    fresh = load("tiny")
    assert (
        spec_of(
            TrainSpec, fresh.pretrain, fresh.resources, data=tmp_path, tokenizer=tmp_path, out=tmp_path, init=None
        ).model
        == fresh.pretrain.model
    )
    with pytest.raises(ConfigError, match=r"pretrain\.init  .*no folder with a config\.json"):
        load("tiny", [f"pretrain.init={tmp_path / 'three'}"])
    assert (
        load("tiny", [f"pretrain.init={tmp_path / 'one'}", "pretrain.steps=0", "pretrain.epochs=0"]).pretrain.epochs
        == 0
    )
    with pytest.raises(ConfigError, match="nothing would be learnt"):
        load("tiny", ["pretrain.steps=0", "pretrain.epochs=0"])
    with pytest.raises(ConfigError, match="give one of them"):
        load("depth", [f"pretrain.init={tmp_path / 'one'}"])


def test_a_teacher_enters_the_key_by_content_and_shares_its_tokenizer(tmp_path) -> None:
    for name, token in (("one", "<|a|>"), ("two", "<|a|>"), ("other", "<|b|>")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(to_hf(ModelConfig(vocab_size=300))))
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
        to_tokenizers([], [token]).save(str(tmp_path / name / "tokenizer.json"))
    one, two = (
        load(
            "tiny", ["sft.replay=0", f"sft.distill.teacher={tmp_path / name}", f"tokenizer.existing={tmp_path / 'one'}"]
        )
        for name in ("one", "two")
    )
    assert one.sft.identity() == two.sft.identity() != load("tiny").sft.identity()
    spec = spec_of(SftSpec, one.sft, one.resources, data=tmp_path, tokenizer=tmp_path, out=tmp_path, init=tmp_path)
    assert spec.distill.teacher == str(tmp_path / "one") and str(tmp_path) not in str(spec.identity())
    (tmp_path / "two" / "model.safetensors").write_bytes(b"other weights")
    assert one.sft.identity() != two.sft.identity()
    with pytest.raises(ConfigError, match=r"^sft\.distill\.teacher  .*one vocabulary: set tokenizer\.existing="):
        load("tiny", [f"sft.distill.teacher={tmp_path / 'one'}"])
    with pytest.raises(ConfigError, match="1 of the teacher's 257 tokens have other ids"):
        load("tiny", [f"sft.distill.teacher={tmp_path / 'other'}", f"tokenizer.existing={tmp_path / 'one'}"])
    with pytest.raises(ConfigError, match=r"sft\.distill  .*no such file"):
        load("tiny", [f"sft.distill.teacher={tmp_path / 'none'}", f"tokenizer.existing={tmp_path / 'one'}"])
    with pytest.raises(ConfigError, match="rank must not be negative"):
        load("tiny", ["dpo.lora.rank=-1"])
