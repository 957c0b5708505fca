"""Every objective takes any share of a batch, an empty one too: ranks and micro-batches differ in what they get."""

import numpy as np
import pytest
import torch
from spec_helpers import spec as make

from model.network.transformer import Transformer, initialize
from model.objectives.distill import Distill
from model.objectives.next_token import NextToken
from model.objectives.preference import Preference
from model.specs.shape import ModelConfig
from model.tokens.rows import Packed, Split

SHAPE = {"vocab_size": 50, "dim": 32, "layers": 1, "heads": 2, "kv_heads": 1, "ffn": 48}
PATHS = {"data": "d", "tokenizer": "t", "out": "o", "seq_len": 16, "batch_tokens": 64}
LENGTHS = [6, 7, 5, 8, 6, 6]


def model():
    made = Transformer(ModelConfig(**SHAPE))
    initialize(made, 0)
    return made


def objective(kind):
    if kind == "dpo":
        made = Preference(model(), make("dpo", **PATHS, init="m", nll_weight=0.2), {"train": len(LENGTHS)})
        made.reference["train"] = -np.arange(1.0, len(LENGTHS) + 1)
        return made, 2
    if kind == "distill":
        return Distill(model(), make("sft", **PATHS, init="m", distill={"teacher": "x"}), model()), 1
    return NextToken(model(), make(kind, **PATHS, **({"model": SHAPE} if kind == "pretrain" else {"init": "m"}))), 1


def rows(together):
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    tokens = np.random.default_rng(0).integers(3, 50, offsets[-1]).astype(np.uint16)
    mask = np.concatenate([[0, 0] + [1] * (n - 2) for n in LENGTHS]).astype(np.uint8)
    return Packed(Split(tokens, offsets, mask, 0, {"pad_id": 0, "eos_id": 0}), 16, together)


@pytest.mark.parametrize("kind", ["sft", "distill", "dpo"])
def test_an_empty_share_adds_nothing_and_keeps_its_place_in_the_graph(kind):
    made, together = objective(kind)
    data = rows(together)
    everything = np.arange(data.rows)

    def gradient(*shares):
        made.zero_grad()
        sums = 0
        for numbers in shares:
            value, found = made(made.batch(data.read(np.array(numbers)), float(data.units.sum()), 4, "train"))
            assert value.requires_grad and torch.isfinite(value)
            value.backward()
            sums = sums + found
        return torch.cat([p.grad.ravel() for p in made.lm.parameters()]), sums

    whole, sums = gradient(everything)
    assert whole.abs().sum() > 0
    for shares in ([[-1, -1], everything], [[n] for n in [*everything, -1]]):
        cut, again = gradient(*shares)
        torch.testing.assert_close(cut, whole, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(again, sums, atol=1e-4, rtol=1e-5)
    nothing, none = gradient([-1])
    assert not nothing.any() and not none.any()


def test_a_pair_that_does_not_fit_a_row_is_refused_and_never_cut():
    offsets = np.array([0, 12, 20])
    split = Split(np.ones(20, np.uint16), offsets, None, 0, {"pad_id": 0, "eos_id": 0})
    assert Packed(split, 18, together=2).rows == 1
    with pytest.raises(ValueError, match="1 groups of 2 sequences are longer than a row of seq_len = 17"):
        Packed(split, 17, together=2)
