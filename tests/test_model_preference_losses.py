"""DPO's family gives TRL's numbers on the same batch and weights; reference log-probabilities are computed once."""

from __future__ import annotations

import copy
import json
import warnings

import numpy as np
import pytest
import torch
from spec_helpers import spec as make
from spec_helpers import train
from test_model_data import write_tokens
from token_helpers import new_model, tokenizer_dir

import model.dpo
from model.network.weights import save_model
from model.objectives.preference import Preference
from model.running.setup import Ranks
from model.specs.dpo import REFERENCE_FREE
from model.tokens.rows import Packed, Split
from pipeline.config.tree import ConfigError, load

warnings.filterwarnings("ignore", module="trl")
PAIRS = {
    "prompt": ["alpha beta", "语言模型", "gamma delta 12"],
    "chosen": [" follows the token.", "由数据炼成。", " splits a text into pieces"],
    "rejected": [" no", "没有魔法，也没有词元。", " panic"],
}


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """Two models (policy and reference) as TRL loads them and as we do, with the pairs as TRL tokenizes them."""
    pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    root = tmp_path_factory.mktemp("peer")
    ours = {"policy": new_model(1), "reference": new_model(2)}
    for name, made in ours.items():
        save_model(made, root / name, tokenizer_dir())
    theirs = {name: AutoModelForCausalLM.from_pretrained(root / name, dtype=torch.float32) for name in ours}
    return ours, theirs, AutoTokenizer.from_pretrained(root / "policy"), Dataset.from_dict(PAIRS), root


def dpo_of_trl(peer, **options):
    from trl import DPOConfig, DPOTrainer

    _, theirs, tokenizer, pairs, root = peer
    options |= {"output_dir": str(root / "trl"), "bf16": False, "use_cpu": True, "report_to": [], "disable_tqdm": True}
    trainer = DPOTrainer(
        model=copy.deepcopy(theirs["policy"]),
        ref_model=theirs["reference"],
        args=DPOConfig(per_device_train_batch_size=3, gradient_checkpointing=False, **options),
        train_dataset=pairs,
        processing_class=tokenizer,
    )
    rows = [dict(row) for row in trainer.train_dataset]
    value = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    value.backward()
    whole = [(row["prompt_ids"], row[side]) for row in rows for side in ("chosen_ids", "rejected_ids")]
    return value.item(), trainer.model.model.embed_tokens.weight.grad, whole


def free_of_trl(peer, kind, **options):
    """CPO's simpo, ORPO: one pair a batch, their mean."""
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    _, theirs, tokenizer, pairs, root = peer
    config, trainer = (CPOConfig, CPOTrainer) if kind == "simpo" else (ORPOConfig, ORPOTrainer)
    options |= {"loss_type": "simpo", "cpo_alpha": 0.0} if kind == "simpo" else {}
    options |= {"output_dir": str(root / "trl"), "bf16": False, "use_cpu": True, "report_to": [], "disable_tqdm": True}
    made = trainer(
        model=copy.deepcopy(theirs["policy"]),
        args=config(max_length=100, gradient_checkpointing=False, **options),
        train_dataset=pairs,
        processing_class=tokenizer,
    )
    rows = [dict(row) for row in made.train_dataset]
    values = [made.get_batch_loss_metrics(made.model, made.data_collator([row]))[0] for row in rows]
    torch.stack(values).mean().backward()
    whole = []
    for row in rows:
        for side in ("chosen", "rejected"):
            prompt = sum(label == -100 for label in row[f"{side}_labels"])
            ids = row[f"{side}_input_ids"]
            whole.append((ids[:prompt], ids[prompt:]))
    return torch.stack(values).mean().item(), made.model.model.embed_tokens.weight.grad, whole


def ours_on(peer, sequences, **options):
    """Our objective's loss and gradient on the same ids, all pairs packed into rows."""
    own = copy.deepcopy(peer[0]["policy"])
    offsets = np.cumsum([0, *(len(p) + len(a) for p, a in sequences)])
    tokens = np.array([t for p, a in sequences for t in (*p, *a)], np.uint16)
    mask = np.array([m for p, a in sequences for m in (*[0] * len(p), *[1] * len(a))], np.uint8)
    data = Packed(Split(tokens, offsets, mask, 0, {"pad_id": 0, "eos_id": 0}), 128, together=2)
    spec = make("dpo", data="d", tokenizer="t", out="o", init="m", seq_len=128, **options)
    counts = {"train": len(sequences)}
    rows = data.read(np.arange(data.rows))
    if spec.needs_reference:
        known = Preference(copy.deepcopy(peer[0]["reference"]), spec, counts)
        found = known.batch(rows, 1.0, 8, "train")
        values = known(found, answers=True)[0].detach().double().numpy()
        reference = np.zeros(len(sequences))
        reference[found.sequences.numpy()] = values
    objective = Preference(own, spec, counts)
    if spec.needs_reference:
        objective.reference["train"] = reference
    value, sums = objective(objective.batch(rows, float(data.units.sum()), 8, "train"))
    value.backward()
    assert sums[0].item() / sums[-1].item() == pytest.approx(value.item(), abs=1e-5)
    return value.item(), own.model.embed_tokens.weight.grad


@pytest.mark.parametrize(
    "theirs, ours",
    [
        ({"loss_type": ["sigmoid"]}, {}),
        ({"loss_type": ["sigmoid_norm"], "beta": 2.0}, {"length_normalize": True, "beta": 2.0}),
        ({"loss_type": ["ipo"]}, {"loss": "ipo"}),
        ({"loss_type": ["hinge"]}, {"loss": "hinge"}),
        ({"loss_type": ["robust"], "label_smoothing": 0.2}, {"loss": "robust", "label_smoothing": 0.2}),
        ({"loss_type": "simpo", "beta": 2.0}, {"loss": "simpo", "beta": 2.0}),
        (
            {"loss_type": "simpo", "simpo_gamma": 1.0, "label_smoothing": 0.1},
            {"loss": "simpo", "simpo_gamma": 1.0, "label_smoothing": 0.1},
        ),
        ({"loss_type": "orpo"}, {"loss": "orpo", "nll_weight": 0.3}),
    ],
    ids=lambda options: "-".join(map(str, options.values())) or "default",
)
def test_loss_and_gradient_are_trls(peer, theirs, ours) -> None:
    kind = theirs.pop("loss_type")
    value, gradient, sequences = (
        free_of_trl(peer, kind, **theirs) if kind in REFERENCE_FREE else dpo_of_trl(peer, loss_type=kind, **theirs)
    )
    own, own_gradient = ours_on(peer, sequences, **ours)
    assert own == pytest.approx(value, abs=1e-5)
    torch.testing.assert_close(own_gradient, gradient, atol=1e-5, rtol=1e-4)


def test_smoothed_dpo_is_the_mean_over_both_labels(peer) -> None:
    sequences = [([5, 6], [7, 8, 9]), ([5, 6], [10]), ([11], [12, 13]), ([11], [14, 15, 16])]
    turned = [sequences[i] for i in (1, 0, 3, 2)]
    right, wrong, smooth = (
        ours_on(peer, order, label_smoothing=share)[0]
        for order, share in ((sequences, 0.0), (turned, 0.0), (sequences, 0.3))
    )
    assert smooth == pytest.approx(0.7 * right + 0.3 * wrong, abs=1e-5)


def test_reference_log_probabilities_are_computed_once_for_weights_and_data(tmp_path, monkeypatch, capsys) -> None:
    save_model(new_model(), tmp_path / "init", tokenizer_dir())
    rng = np.random.default_rng(0)

    def pairs(name, seed):
        sides = [
            [1, *np.random.default_rng([seed, i // 2]).integers(3, 60, 4), *rng.integers(3, 60, 5), 2]
            for i in range(24)
        ]
        masks = [[0] * 5 + [1] * 6] * 24
        return str(write_tokens(tmp_path / name, sides[:20], masks[:20], "pairs", 450, sides[20:], masks[20:]))

    data, other = pairs("data", 0), pairs("other", 1)
    computed = []
    whole = model.dpo.answers
    monkeypatch.setattr(
        model.dpo, "answers", lambda loop, split, count: computed.append(split) or whole(loop, split, count)
    )

    def run(name, data=data, **options):
        computed.clear()
        out = tmp_path / "store" / name
        spec = make(
            "dpo",
            data=data,
            tokenizer=str(tokenizer_dir()),
            out=str(out),
            init=str(tmp_path / "init"),
            seq_len=64,
            batch_tokens=256,
            steps=2,
            threads=1,
            **options,
        )
        train(spec, Ranks(spec.how))
        result = json.loads((out / "_run" / "result.json").read_text())
        return list(computed), result["val_margin"], (out / "model.safetensors").read_bytes()

    first, margin, weights = run("one")
    assert first == ["train", "val"] and margin != 0
    assert run("two", optim={"lr": 1e-3}, beta=0.3, loss="ipo")[0] == []
    assert run("free", loss="simpo")[0] == [] and not list((tmp_path / "store" / "free" / "_run").glob("reference*"))
    again = run("again")
    assert again == ([], margin, weights), "the bits are those of a run that computed them itself"
    assert run("apart", data=other)[0] == ["train", "val"], "other data"
    for path in (tmp_path / "store").glob("*/_run/reference-*.npz"):
        path.write_bytes(path.read_bytes()[:-40])
    assert run("damaged") == (["train", "val"], margin, weights)


def test_a_value_that_the_loss_does_not_look_at_is_refused() -> None:
    for wrong, said in (
        (["dpo.loss=ipo", "dpo.label_smoothing=0.1"], "label_smoothing counts for sigmoid, robust, simpo"),
        (["dpo.simpo_gamma=1.0"], "simpo_gamma counts for simpo"),
        (["dpo.loss=orpo", "dpo.nll_weight=0.5"], "nll_weight counts for all but orpo"),
        (["dpo.loss=kto"], "'sigmoid', 'ipo', 'robust', 'hinge', 'simpo' or 'orpo'"),
    ):
        with pytest.raises(ConfigError, match=said):
            load("tiny", wrong)
    assert load("tiny", ["dpo.loss=simpo", "dpo.beta=2", "dpo.simpo_gamma=1.0"]).dpo.loss == "simpo"
