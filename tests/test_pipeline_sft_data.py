"""Chats on their way into SFT: tags of reasoning are found in token ids, and sources appear as often as their weights
say."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from spec_helpers import spec as make
from token_helpers import new_model, tokenizer_dir
from tokenizers import Tokenizer, models, pre_tokenizers

from flows.dag import full
from model.objectives.answers import Answers
from model.tokens.mixture import TAG, Weighed
from model.tokens.rows import read_split
from model.training import loss
from pipeline.config.tree import ConfigError, load
from pipeline.tokens.chats import encode_chats
from pipeline.tokens.encoder import Encoder
from pipeline.tokens.tags import TAGS, mark_tags
from tasks.running.inputs import Descent
from tasks.running.outline import _Nothing
from tasks.running.run import entered
from tasks.running.sources import asked, notes

CHAT = Encoder.load(tokenizer_dir())
THOUGHT = "<think>\nLess than 5 > 4? Then <b>8</b>.\n</think>\n<answer>\nthe answer <8>\n</answer>"


def talk(answer, question="2 < 5?", source="mine", line=1, **more):
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **more}]
    return {"messages": messages, "source": source, "path": "a.jsonl", "line": line}


def merging():
    """A tokenizer that merges what stands around a tag with its brackets, and a tag itself."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("\u010a", "<"), (">", "\u010a"), ("<", "/"), ("a", ">"), ("t", "h"), ("\u010a<", "/"), ("k", ">\u010a")]
    words = [*alphabet, *("".join(pair) for pair in merges)]
    words += ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.add_special_tokens(words[-3:])
    backend.add_tokens(["</think>"])
    return Encoder(backend)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*TAGS, "\n", "a", "<", ">", "中", "é ", "think", "/"]), max_size=14).map("".join))
def test_whole_tags_are_marked_whatever_the_tokenizer_merges_around_them(answer):
    for chat in (CHAT, _MERGING):
        messages = [*talk(THOUGHT)["messages"], {"role": "user", "content": "<think>"}, *talk(answer)["messages"][1:]]
        ids, mask = chat.chat(messages)
        marked = mark_tags(chat, messages, ids, mask, "whole")
        assert [min(mark, 1) for mark in marked] == mask
        kept = [chat.decode([i], skip_special=False) for i, mark in zip(ids, marked, strict=True) if mark == TAG]
        plain = THOUGHT + answer.strip()
        # as many tags as were written, each token spelling a part of one, and nothing else that is a token of its own
        if all(len(piece) == 1 for piece in kept):
            assert "".join(kept) == "".join(tag for tag in _tags(plain))
        assert "".join(kept).count("think") >= sum("think" in tag for tag in _tags(plain))


def _tags(text):
    out, at = [], 0
    while at < len(text):
        found = next((tag for tag in TAGS if text.startswith(tag, at)), None)
        out += [found] if found else []
        at += len(found) if found else 1
    return out


_MERGING = merging()


def test_a_tag_written_by_the_user_or_in_an_answer_not_to_be_learnt_is_no_target():
    messages = [*talk(THOUGHT, question=THOUGHT, learn=False)["messages"], *talk("4", question=THOUGHT)["messages"]]
    ids, mask = CHAT.chat(messages)
    for marks in ("whole", "pieces"):
        marked = mark_tags(CHAT, messages, ids, mask, marks)
        assert [min(mark, 1) for mark in marked] == mask
    assert TAG not in mark_tags(CHAT, messages, ids, mask, "whole")


def test_the_compat_loss_is_that_of_minimind(tmp_path, monkeypatch):
    monkeypatch.setitem(loss.CHUNK, "cpu", 8)
    records = [talk(THOUGHT, line=1), talk("plain > words", line=2), talk(THOUGHT.replace("8", "x<y>w"), line=3)]
    encode_chats(records, tokenizer_dir(), tmp_path, max_tokens=128, val_share=0, tags="pieces")
    data = Weighed(read_split(tmp_path, "train"), 128, 10.0, by_targets=True)
    model, rows = new_model(), np.arange(data.rows)
    spec = make("sft", data="d", tokenizer="t", out="o", init="m", seq_len=128, batch_tokens=512, compat="minimind")
    objective = Answers(model, spec)
    total, _ = objective(objective.batch(data.read(rows), float(data.units[rows].sum()), 8, "train"))

    # as train_reason.py does it, with -100 where nothing is learnt
    tags = torch.tensor([i for tag in TAGS for i in CHAT.encode(tag)])
    nll, masks = [], []
    for record in records:
        ids, mask = CHAT.chat(record["messages"])
        labels = torch.tensor([i if learnt else -100 for i, learnt in zip(ids, mask, strict=True)])[1:]
        logits = model(torch.tensor([ids]))[0, :-1]
        nll.append(F.cross_entropy(logits, labels, reduction="none"))
        masks.append(labels)
    labels = torch.cat(masks)
    weight = (labels != -100).float()
    count = weight.sum()
    weight[torch.isin(labels, tags)] = 10
    torch.testing.assert_close(total, (torch.cat(nll) * weight).sum() / count, atol=1e-5, rtol=1e-5)
    assert (weight == 10).sum() > len(tags) * 2  # pieces of tags weigh more wherever they stand


def sequences(path, split="train"):
    ids = np.fromfile(path / f"{split}.bin", dtype=json.loads((path / "meta.json").read_text())["dtype"])
    return [CHAT.decode(ids[a:b].tolist()) for a, b in pairwise(np.load(path / f"{split}.idx.npy"))]


def test_a_source_appears_in_training_as_often_as_its_weight_says_and_once_in_validation(tmp_path):
    records = [talk(f"{source} {i}", source=source, line=i) for source in "abcd" for i in range(80)]
    weights = {"a": 2.0, "b": 0.5, "c": 0.0}
    counts = encode_chats(records, tokenizer_dir(), tmp_path / "x", max_tokens=64, val_share=0.1, weights=weights)
    train, val = sequences(tmp_path / "x"), sequences(tmp_path / "x", "val")
    assert len(set(val)) == len(val) == pytest.approx(24, abs=1) and not set(val) & set(train)
    shown = {source: [t for t in train if f"\n{source} " in t] for source in "abcd"}
    assert shown["c"] == [] and not [t for t in val if "\nc " in t]
    for source, times in (("a", 2), ("d", 1)):
        assert sorted(shown[source]) == sorted(times * list(dict.fromkeys(shown[source])))
    assert 15 <= len(shown["b"]) == len(set(shown["b"])) <= 50
    assert counts["train_sequences"] == len(train)
    encode_chats(records[::-1], tokenizer_dir(), tmp_path / "y", max_tokens=64, val_share=0.1, weights=weights)
    assert sorted(sequences(tmp_path / "y")) == sorted(train)
    copies = [i for i, t in enumerate(train) if t == shown["a"][0]]
    assert copies[1] - copies[0] > 50  # equal ones lie apart
    with pytest.raises(ValueError, match="weights of their sources are 0"):
        encode_chats(records[:3], tokenizer_dir(), tmp_path / "z", max_tokens=64, val_share=0, weights={"a": 1e-9})


def test_a_weight_for_a_source_that_is_nearly_there_is_refused_and_an_idle_one_is_told(tmp_path):
    file = tmp_path / "talks.jsonl"
    file.write_text(json.dumps({"messages": talk("hi")["messages"]}) + "\n")
    given = [f"sft.sources={file}", "dpo.sources=[]"]
    with pytest.raises(ConfigError, match=r"sft.weights  no source is named talk.jsonl; did you mean talks.jsonl\?"):
        asked("tiny", [*given, 'sft.weights={"talk.jsonl" = 2}'])
    found = notes(*asked("tiny", [*given, "sft.weights={other = 2}"]))
    assert "sft.weights of other has no effect: this run reads talks.jsonl" in found
    with pytest.raises(ConfigError, match="weighs tags by 10"):
        load("tiny", ["sft.compat=minimind", "sft.tag_weight=3"])
    with pytest.raises(ConfigError, match=r"sft.replay"):
        load("tiny", ["sft.replay=1"])


class Recorder:
    """A run that only notes which inputs a stage gets."""

    def __init__(self):
        self.inputs = {}

    def call(self, stage, cfg, inputs):
        self.inputs[stage.name] = set(inputs)
        return _Nothing()

    submit = call

    def descent(self, made):
        return Descent("")

    def verdict(self, *parts):
        return _Nothing()

    def seeds(self, scores):
        return None


@pytest.mark.parametrize(("replay", "inputs"), [(0, {"base", "chats"}), (0.25, {"base", "chats", "text"})])
def test_the_pretraining_tokens_are_an_input_of_sft_only_with_replay(replay, inputs):
    run = Recorder()
    with entered(run):
        full(*asked("tiny", [f"sft.replay={replay}"]))
    assert run.inputs["sft"] == inputs
