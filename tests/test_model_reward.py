"""The reward model: TRL's loss, a stock classifier on disk, exact resume, and what length alone explains."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from spec_helpers import spec as make
from spec_helpers import train
from token_helpers import new_model, tokenizer_dir

from model.generation.rewarder import Rewarder
from model.network.reward import load_reward, save_reward, with_score
from model.network.weights import save_model
from model.objectives.reward import BradleyTerry
from model.reward import compare
from model.running.setup import Ranks
from model.tokens.rows import Packed, read_split
from model.training.loop import Loop
from pipeline.config.tree import ConfigError
from pipeline.formats.bad import BadRecord
from pipeline.formats.preference import as_preference
from pipeline.tokens.ranked import encode_ranked
from tasks.running.sources import asked


def pairs(count=40):
    """The better answer says 数据 or token; half of the time it is the longer one."""
    for i in range(count):
        zh = i % 2 == 0
        good, bad = ("由数据炼成" if zh else "a token"), ("没有魔法" if zh else "do not panic")
        tail = "，数据。" * (i % 5) if zh else " and text" * (i % 5)
        yield {
            "prompt": [{"role": "user", "content": f"{'语言模型' if zh else 'What is text'} {i}?"}],
            "chosen": good + tail,
            "rejected": bad + ("" if i % 4 < 2 else tail + tail),
            "margin": 0.5 * (i % 3),
            **{"source": "s", "path": "p", "line": i},
        }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("ranked")
    counts = encode_ranked(pairs(), tokenizer_dir(), root / "data", max_tokens=128, val_share=0.25)
    assert counts["records"] == 40 and counts["val_sequences"] == 20 and "bytes_per_token" not in counts
    save_model(new_model(1), root / "init", tokenizer_dir())
    return root


def test_loss_and_gradient_are_trls(data, tmp_path) -> None:
    pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    ours = with_score(new_model(3))
    ours.score.data.normal_(generator=torch.Generator().manual_seed(0))
    save_reward(ours, tmp_path / "model", tokenizer_dir())
    split = read_split(data / "data", "train")
    pieces = [piece[:-1].tolist() for piece in np.split(split.tokens, split.offsets[1:-1])][:12]
    margins = np.load(data / "data" / "train.margin.npy")[:6]
    assert margins.any(), "pairs with a margin are among them"
    theirs = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", dtype=torch.float32),
        args=RewardConfig(
            output_dir=str(tmp_path), center_rewards_coefficient=0.02, bf16=False, use_cpu=True, report_to=[]
        ),
        train_dataset=Dataset.from_list(
            [
                {"chosen_ids": pieces[2 * i], "rejected_ids": pieces[2 * i + 1], "margin": float(m)}
                for i, m in enumerate(margins)
            ]
        ),
        processing_class=AutoTokenizer.from_pretrained(tmp_path / "model"),
    )
    value = theirs.compute_loss(theirs.model, theirs.data_collator([dict(row) for row in theirs.train_dataset]))
    value.backward()
    part = type(split)(
        split.tokens[: split.offsets[12]], split.offsets[:13], split.mask[: split.offsets[12]], 0, split.meta
    )
    rows = Packed(part, 128, together=2)
    spec = make("reward", data="d", tokenizer="t", out="o", init="m", seq_len=128, center=0.02)
    objective = BradleyTerry(copy.deepcopy(ours), spec, {"train": margins})
    own, sums = objective(objective.batch(rows.read(np.arange(rows.rows)), float(rows.units.sum()), 8, "train"))
    own.backward()
    assert own.item() == pytest.approx(value.item(), abs=1e-5) and sums[-1] == 6
    torch.testing.assert_close(objective.lm.score.grad, theirs.model.score.weight.grad[0], atol=1e-5, rtol=1e-4)
    gradients = objective.lm.model.embed_tokens.weight.grad, theirs.model.model.embed_tokens.weight.grad
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def worker(data, out, **options):
    optim = {"name": "adamw", "lr": 3e-3, "warmup": 0.1}
    where = {"data": str(data / "data"), "tokenizer": str(tokenizer_dir()), "init": str(data / "init"), "out": str(out)}
    return make("reward", **where, seq_len=128, batch_tokens=512, steps=24, optim=optim, threads=1, **options)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("reward") / "model"
    train(worker(data, out), Ranks(worker(data, out).how))
    return out


def test_it_learns_and_tells_its_accuracy_by_language_and_by_length(trained) -> None:
    result = json.loads((trained / "_run" / "result.json").read_text())
    table = json.loads((trained / "_run" / "accuracy.json").read_text())
    assert result["accuracy"] == table["accuracy"]["share"] >= 0.9 and result["accuracy.n"] == 10
    assert result["accuracy"] == pytest.approx(result["val_accuracy"])
    assert {"accuracy.zh", "accuracy.en", "accuracy.short", "accuracy.long", "longer_wins"} <= table.keys()
    assert table["accuracy.zh"]["n"] + table["accuracy.en"]["n"] == 10
    assert 0.2 <= result["longer_wins"] <= 0.8 and "val_bits_per_byte" not in result
    curve = [json.loads(line) for line in (trained / "_run" / "metrics.jsonl").open()]
    assert curve[0]["val_loss"] == pytest.approx(0.9, abs=0.4) and curve[-1]["val_loss"] < 0.5


@pytest.mark.parametrize("architecture", ["Qwen3", "Llama", "Qwen3Moe"])
def test_transformers_opens_it_with_equal_scores(architecture, tmp_path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    shape = {"Qwen3": {}, "Llama": {"qk_norm": False, "tied": False}, "Qwen3Moe": {"experts": 4, "expert_ffn": 64}}
    made = with_score(new_model(5, **shape[architecture]))
    made.score.data.normal_(generator=torch.Generator().manual_seed(1))
    save_reward(made, tmp_path, tokenizer_dir())
    theirs, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert type(theirs).__name__ == f"{architecture}ForSequenceClassification" and theirs.config.num_labels == 1
    assert not info["missing_keys"] and not info["unexpected_keys"]
    rewarder, tokenizer = Rewarder.from_dir(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    prompts = [[{"role": "user", "content": text}] for text in ("什么是词元？", "What is a token, and what is loss?")]
    said = ["词元是文本的最小单位。", "A token."]
    whole = [[*prompt, {"role": "assistant", "content": text}] for prompt, text in zip(prompts, said, strict=True)]
    batch = tokenizer.apply_chat_template(whole, return_dict=True, return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = theirs(**batch).logits[:, 0]
    torch.testing.assert_close(torch.tensor(rewarder.of_answers(prompts, said)), expected, atol=1e-4, rtol=1e-4)


def test_a_run_that_was_cut_off_ends_with_the_same_bits_with_adapters_too(data, trained, tmp_path, monkeypatch) -> None:
    class Cut(Exception):
        pass

    update = Loop._update

    def cut(loop):
        update(loop)
        if loop.step == 15:
            loop.checkpoints.wait()
            raise Cut

    spec = worker(data, tmp_path / "cut", checkpoint_every=6)
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_update", cut)
        with pytest.raises(Cut):
            train(spec, Ranks(spec.how))
    train(spec, Ranks(spec.how))
    assert (tmp_path / "cut" / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    adapted = worker(data, tmp_path / "lora", lora={"rank": 4})
    train(adapted, Ranks(adapted.how))
    whole, before = load_reward(tmp_path / "lora"), load_reward(trained)
    assert whole.score.any() and (tmp_path / "lora" / "adapter" / "adapter_config.json").is_file()
    assert torch.equal(whole.model.embed_tokens.weight, new_model(1).model.embed_tokens.weight), "frozen"
    assert not torch.equal(whole.model.embed_tokens.weight, before.model.embed_tokens.weight)


def test_length_alone_is_told_apart() -> None:
    scores, lengths = np.array([1.0, 0, 1, 0, 0, 1, 2, 2]), np.array([9, 5, 9, 5, 9, 5, 4, 4])
    table = compare(scores, lengths, ["en", "en", "zh", "zh"])
    assert table["accuracy"]["share"] == 0.625 and table["longer_wins"]["share"] == 0.875
    assert table["accuracy.longer_is_better"] == pytest.approx(
        {"share": 2 / 3, "low": 0.208, "high": 0.939, "n": 3}, abs=1e-3
    )
    assert "accuracy.shorter_is_better" not in table and table["accuracy.zh"]["share"] == 0.25


def test_only_a_reward_model_is_one(data, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"not a reward model: it has no score\.weight"):
        Rewarder.from_dir(data / "init")
    with pytest.raises(ValueError, match="a sequence is empty"):
        Rewarder(with_score(new_model()), None).scores([[1], []])


def test_a_margin_is_a_number() -> None:
    record = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert "margin" not in as_preference(record) and as_preference({**record, "margin": 2})["margin"] == 2.0
    with pytest.raises(BadRecord, match="margin is a number"):
        as_preference({**record, "margin": "much"})


def test_a_reward_model_needs_a_chat_model_and_shares_its_preferences() -> None:
    assert not asked("tiny")[1].ranks
    config, inputs = asked("tiny", ["reward.sources=teaching", "dpo.sources=[]"])
    assert inputs.ranks and not inputs.aligns and inputs.preferences and config.reward.sources == ["teaching"]
    with pytest.raises(ConfigError, match=r"reward\.sources  preferences are learnt by a chat model"):
        asked("tiny", ["reward.sources=teaching", "sft.sources=[]", "dpo.sources=[]"])
    with pytest.raises(ConfigError, match="a run has one set of preferences"):
        asked("tiny", ["reward.sources=teaching,teaching"])
