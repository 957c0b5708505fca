"""SFT beside plain next-token prediction: replayed text, noise on embeddings, tags that weigh more, and TRL's loss."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from spec_helpers import spec as make
from spec_helpers import train
from test_model_train import Alone, assert_close, curve, make_spec, tokens, weights
from token_helpers import new_model, tokenizer_dir

from model.network.transformer import Transformer, initialize
from model.network.weights import save_model
from model.objectives.answers import Answers, embedding_noise
from model.objectives.distill import Distill
from model.running.setup import Ranks
from model.sft import SftTrainer
from model.specs.shape import ModelConfig
from model.tokens.mixture import MixedOrder, Mixture, Weighed
from model.tokens.rows import Split, Windows, read_split, share
from model.training import loss
from pipeline.formats.chat import as_chat
from pipeline.tokens.chats import encode_chats

__all__ = ["tokens"]  # a fixture

SHAPE = {"vocab_size": 50, "dim": 32, "layers": 1, "heads": 2, "kv_heads": 1, "ffn": 48}
PATHS = {"data": "d", "tokenizer": "t", "out": "o", "init": "m", "seq_len": 16, "batch_tokens": 64}


CHUNK = 4


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """So few targets at once that a small batch has several chunks of either kind."""
    monkeypatch.setitem(loss.CHUNK, "cpu", CHUNK)


def mixture(share_of_text=0.25, weight=1.0, text_rows=9, conversations=12, tag_weight=1.0, by_targets=False):
    """Random conversations of six tokens, four of them targets, and a stream of text, in rows of 16."""
    r = np.random.default_rng(0)
    offsets = np.arange(conversations + 1) * 6
    mask = np.tile([0, 0, 1, 2, 1, 1], conversations).astype(np.uint8)
    meta = {"pad_id": 0, "eos_id": 0}
    chats = Split(r.integers(3, 50, offsets[-1]).astype(np.uint16), offsets, mask, 0, meta)
    length = text_rows * 16 + 1
    text = Windows(Split(r.integers(0, 50, length).astype(np.uint16), np.array([0, length]), None, 0, meta), 16)
    return Mixture(chats, 16, tag_weight, by_targets, text, share_of_text, weight)


@pytest.mark.parametrize("part", [0.25, 0.3, 0.9])
def test_replay_has_its_share_of_the_rows_and_no_row_comes_twice_before_all_did(part):
    data = mixture(part)
    order = MixedOrder(data, seed=3)
    seen = order(0, 200)
    assert (seen >= data.conversations).sum() == int(200 * order.parts / 2**20) == pytest.approx(200 * part, abs=1)
    for kind, rows in ((seen[seen >= data.conversations], data.text.rows), (seen[seen < data.conversations], 4)):
        for epoch in range(len(kind) // rows):
            assert len(set(kind[epoch * rows : (epoch + 1) * rows])) == rows
    again = [number for begin in range(0, 200, 8) for number in MixedOrder(data, 3)(begin, begin + 8)]
    for begin in range(0, 200, 8):  # a batch of a resumed run is that of the run that went on
        assert again[begin : begin + 8] == order(begin, begin + 8).tolist()
    # one pass over the conversations, whatever lies among them
    assert 0 <= data.rows - order.text_before(data.rows) - data.conversations <= 1


def test_ranks_and_micro_batches_share_one_global_batch_with_as_much_text_each():
    data = mixture(0.5)
    numbers = MixedOrder(data, 0)(8, 16)
    for world, micro in ((1, 8), (2, 2), (4, 1), (2, 3)):
        parts = [share(numbers, rank, world, micro) for rank in range(world)]
        assert sorted(np.concatenate([p[p >= 0] for p in parts])) == sorted(numbers)
        assert len({int(data.of_text(p[p >= 0]).sum()) for p in parts}) == 1


def objective(kind="sft", **fields):
    models = []
    for seed in (0, 1):
        models.append(Transformer(ModelConfig(**SHAPE)))
        initialize(models[-1], seed)
        for p in models[-1].parameters():  # so that the blocks do something
            p.data += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
    spec = make("sft", **PATHS, **({"distill": {"teacher": "x"}} if kind == "distill" else {}), **fields)
    return Distill(models[0], spec, models[1]) if kind == "distill" else Answers(models[0], spec)


def straight(model, rows, of_text, weight):
    """The loss of rows as a formula: (sum of answers' nll + weight * sum of text's nll) / (answers + weight * text)."""
    sums = {}
    for kind in (False, True):
        nll = torch.zeros(())
        for row in np.flatnonzero(of_text == kind):
            logits = model(torch.from_numpy(rows.ids[[row]]), torch.from_numpy(rows.doc[[row]]))[0]
            each = F.cross_entropy(logits, torch.from_numpy(rows.targets[row]), reduction="none")
            nll = nll + each[torch.from_numpy(rows.weight[row] > 0)].sum()
        sums[kind] = nll
    answers, text = ((rows.weight[of_text == kind] > 0).sum() for kind in (False, True))
    return (sums[False] + weight * sums[True]) / (answers + weight * text), sums, (answers, text)


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_the_loss_of_answers_and_replay_is_the_formula_however_the_batch_is_cut(weight):
    data, made = mixture(0.5, weight), objective()
    numbers = np.array([0, 1, 2, 3, 5, 7, 9])
    of_text = data.of_text(numbers)
    expected, sums, counts = straight(made.lm, data.read(numbers), of_text, weight)
    expected.backward()
    gradient = [p.grad.clone() for p in made.lm.parameters()]
    for parts in ([numbers], [numbers[:3], numbers[3:]], [[n] for n in [*numbers, -1]]):
        made.zero_grad()
        total, found = torch.zeros(()), torch.zeros(4)
        for part in parts:
            batch = made.batch(data.read(np.array(part)), float(data.units[numbers].sum()), CHUNK, "train")
            value, one = made(batch)
            value.backward()
            total, found = total + value.detach(), found + one
        torch.testing.assert_close(total, expected.detach(), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(
            found, torch.tensor([float(v) for v in (sums[False], sums[True], *counts[::-1])]), rtol=1e-5, atol=1e-4
        )
        torch.testing.assert_close([p.grad for p in made.lm.parameters()], gradient, atol=1e-6, rtol=1e-4)
    with torch.no_grad():
        batch = made.batch(data.read(numbers), 1.0, CHUNK, "val")
        torch.testing.assert_close(made(batch)[1], found, rtol=1e-5, atol=1e-4)


def test_a_teacher_teaches_replayed_text_too_and_both_are_reported_apart():
    data, made = mixture(0.5), objective("distill")
    whole, chats, text = (
        made(made.batch(data.read(np.array(rows)), 10.0, CHUNK, "train")) for rows in ([0, 1, 5, 7], [0, 1], [5, 7])
    )
    torch.testing.assert_close(whole[1], chats[1] + text[1])
    torch.testing.assert_close(whole[0], chats[0] + text[0])
    assert chats[1][2:5].tolist() == [0, 0, 0] and text[1][[0, 1, 5]].tolist() == [0, 0, 0] and text[1][3] > 0


@pytest.mark.parametrize(("weight", "by_targets"), [(3.5, False), (10.0, True), (0.0, False)])
def test_targets_of_tags_weigh_what_is_said(weight, by_targets):
    data = mixture(0.5, tag_weight=weight, by_targets=by_targets)
    made, numbers = objective(), np.arange(data.conversations)
    rows = data.read(numbers)
    logits = made.lm(torch.from_numpy(rows.ids), torch.from_numpy(rows.doc)).reshape(-1, 50)
    nll = F.cross_entropy(logits, torch.from_numpy(rows.targets).ravel(), reduction="none")
    marks = np.concatenate([np.pad(np.tile([0, 1, 2, 1, 1], len(m)), (0, 16 - 5 * len(m))) for m in data.members])
    own = torch.tensor([0.0, 1.0, weight])[marks]
    expected = (nll * own).sum() / ((marks > 0).sum() if by_targets else own.sum())
    total, _ = made(made.batch(rows, float(data.units[numbers].sum()), CHUNK, "train"))
    torch.testing.assert_close(total, expected, atol=1e-6, rtol=1e-5)
    assert data.all_targets == (4 if weight else 3) * 12


def test_noise_on_embeddings_is_that_of_transformers_and_knows_each_conversations_length():
    from transformers.integrations.neftune import neftune_post_forward_hook

    embedding = torch.nn.Embedding(50, 32).train()
    embedding.neftune_noise_alpha = 5.0
    ids = torch.arange(12)[None]
    torch.manual_seed(7)
    theirs = neftune_post_forward_hook(embedding, (ids,), embedding(ids)) - embedding(ids)
    ours = embedding_noise(torch.zeros(1, 12, dtype=torch.int32), np.array([False]), 32, 5.0, [7])
    torch.testing.assert_close(ours, theirs.detach(), atol=1e-6, rtol=1e-4)
    # packed: each conversation's own length counts; padding and text have none
    doc = torch.tensor([[4] * 9 + [5] * 4 + [-1] * 3, [0] * 16])
    packed = embedding_noise(doc, np.array([False, True]), 32, 5.0, [7, 8])
    assert 0.9 < packed[0, :9].abs().max() / (5 / (9 * 32) ** 0.5) <= 1
    assert 0.9 < packed[0, 9:13].abs().max() / (5 / (4 * 32) ** 0.5) <= 1
    assert not packed[0, 13:].any() and not packed[1].any()
    model = new_model()
    h = model.hidden(ids, noise=ours.new_zeros(1, 12, 64))
    assert torch.equal(h, model.hidden(ids)) and not torch.equal(model.hidden(ids, noise=torch.ones(1, 12, 64)), h)


THOUGHT = {"role": "assistant", "content": "4", "reasoning_content": "2 + 2"}
CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}],
}
ASKED, ANSWERED = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "It is 4."}
TALKS = [
    [ASKED, ANSWERED],
    [{"role": "system", "content": "短"}, ASKED, THOUGHT, ASKED, THOUGHT],
    [ASKED, CALLED, {"role": "tool", "content": "4"}, ANSWERED],
]


def test_the_loss_of_a_batch_is_trls(tmp_path):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    model = new_model()
    save_model(model, tmp_path / "model", tokenizer_dir())
    config = SFTConfig(
        output_dir=str(tmp_path / "trl"), assistant_only_loss=True, max_length=192, report_to=[], use_cpu=True,
        per_device_train_batch_size=len(TALKS), bf16=False, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list([{"messages": messages} for messages in TALKS]),
        processing_class=AutoTokenizer.from_pretrained(tmp_path / "model"),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    count = (batch["labels"][:, 1:] != -100).sum()
    theirs = trainer.compute_loss(trainer.model, batch, num_items_in_batch=count)

    records = [as_chat({"messages": messages}) | {"source": "s", "path": "p", "line": 1} for messages in TALKS]
    counts = encode_chats(records, tokenizer_dir(), tmp_path / "data", max_tokens=192, val_share=0)
    data = Weighed(read_split(tmp_path / "data", "train"), 192, 1.0, by_targets=False)
    made = Answers(model, make("sft", **PATHS))
    ours, sums = made(made.batch(data.read(np.arange(data.rows)), float(data.units.sum()), CHUNK, "train"))
    assert counts["train_supervised"] == count == sums[-1]
    torch.testing.assert_close(ours.detach(), theirs.detach().cpu(), atol=1e-5, rtol=1e-5)


def test_replay_keeps_what_the_model_knew_and_reports_it(tokens, tmp_path):
    base = make_spec(tokens, tmp_path / "base", steps=60)
    before = train(base, Alone())
    results = {}
    for part in (0.0, 0.5):
        spec = replaying(tokens, tmp_path / str(part), base.out, replay=part, steps=0, epochs=4)
        results[part] = train(spec, Alone())
        lines = [json.loads(line) for line in (tmp_path / str(part) / "_run" / "metrics.jsonl").open()]
        assert (
            any("replay_loss" in line for line in lines)
            == any("val_replay_loss" in line for line in lines)
            == (part > 0)
        )
        assert all(line["loss"] > 0 for line in lines if "loss" in line)
        forgetful = make_spec(tokens, tmp_path / "of", init=spec.out, steps=0, epochs=0)
        results[part]["text"] = train(forgetful, Alone())["val_loss"]
        (tmp_path / "of").rename(tmp_path / f"of{part}")
    kept = results[0.5]
    assert kept["val_replay_loss"] == pytest.approx(kept["text"], rel=1e-4) and lines[0]["val_replay_loss"] > 0
    assert lines[0]["val_replay_bits_per_byte"] == pytest.approx(before["val_bits_per_byte"], rel=1e-3)
    assert results[0.0]["text"] > before["val_loss"] + 0.3 and kept["text"] < before["val_loss"] + 0.1
    # twice the steps: a pass is one over the conversations
    plain = SftTrainer(replaying(tokens, tmp_path / "p", base.out, steps=0, epochs=4), Alone())
    rows = plain.read_data().train.rows
    assert results[0.5]["steps"] == -(-2 * rows * 4 // 8) and results[0.0]["steps"] == -(-rows * 4 // 8)


def replaying(tokens, out, init, **fields):
    text = {"replay_data": str(tokens / "text")} if fields.get("replay") else {}
    return make_spec(tokens, out, "sft", init=init, dtype="fp32", **fields | text)


def worker(spec, rank, world, port):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    ranks = Ranks(spec.how)
    train(spec, ranks)
    os._exit(0)


def run(spec, world, kill_at=0):
    """Train in ``world`` processes; with ``kill_at`` they are killed once that step is logged."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=worker, args=(spec, rank, world, port)) for rank in range(world)]
    for process in processes:
        process.start()
    metrics = Path(spec.out) / "_run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while kill_at and not (metrics.is_file() and f'"step": {kill_at},' in metrics.read_text()):
        assert time.monotonic() < deadline and all(p.is_alive() for p in processes)
        time.sleep(0.01)
    for process in processes:
        if kill_at:
            os.kill(process.pid, signal.SIGKILL)
        process.join(120)
        assert process.exitcode == (-signal.SIGKILL if kill_at else 0)


@pytest.mark.parametrize("world", [1, 2])
def test_killed_sft_with_replay_and_noise_resumes_to_the_same_bits(world, tokens, tmp_path):
    base = make_spec(tokens, tmp_path / "base", steps=2)
    train(base, Alone())
    fields = {"replay": 0.4, "neftune_alpha": 5.0, "tag_weight": 2.0, "steps": 24, "eval_every": 7}
    whole, killed = (replaying(tokens, tmp_path / name, base.out, **fields) for name in ("whole", "killed"))
    run(whole, world)
    run(killed, world, kill_at=14)
    assert len(list((tmp_path / "killed" / "_run" / "checkpoints").glob("step-*"))) > 0
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    run(killed, world)
    assert weights(killed) == weights(whole) and curve(killed) == curve(whole)
    if world == 2:  # one rank computes the same, noise included
        alone = replaying(tokens, tmp_path / "alone", base.out, micro_batch=3, **fields)
        train(alone, Alone())
        assert_close(whole, alone)
