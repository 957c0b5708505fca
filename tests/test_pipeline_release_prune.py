"""Pruning by measured importance, and the two commands on a model folder."""

import functools
import json

import pytest
import torch
from token_helpers import FACTS, new_model, taught_dir, tokenizer_dir

from flows.cli import main
from model.generation.generator import generate
from model.network.transformer import Transformer
from model.network.weights import load_model, save_model
from model.pruning.cut import loss, prune
from model.tokens.chat import ChatTokenizer
from model.verify import compare


@functools.cache
def windows():
    """What the taught model says of itself, so that all of it is likely and each of its parts counts."""
    chat, model = ChatTokenizer.load(taught_dir()), load_model(taught_dir()).eval()
    prompts = [chat.prompt([{"role": "user", "content": question}]) for question in FACTS]
    said = generate(model, prompts, stop=(), max_new_tokens=80)
    return [torch.tensor(prompt + own) for prompt, own in zip(prompts, said, strict=True)]


def spoilt(**shape):
    """The taught model between parts that do next to nothing: a layer, a group of heads, channels."""
    taught = load_model(taught_dir())
    model = new_model(layers=3, heads=6, kv_heads=3, head_dim=16, ffn=160, **shape)
    own, given = model.state_dict(), taught.state_dict()
    for name, value in own.items():
        value.mul_(1e-3)
        source = given.get(name.replace("layers.2.", "layers.1."))
        if name.endswith("norm.weight"):
            value.fill_(1)
        if source is not None and "layers.1." not in name:
            value[tuple(slice(0, n) for n in source.shape)] = source
    model.load_state_dict(own)
    return model.eval(), taught.eval()


def test_what_does_nothing_is_what_leaves_and_little_is_lost():
    model, taught = spoilt()
    smaller, removed = prune(model, windows(), layers=1, heads=2, channels=32)
    assert [i for i, _ in removed.layers] == [1] and [i for i, _ in removed.groups[0]] == [2]
    assert smaller.config == taught.config.__class__(**{**vars(taught.config), "head_dim": 16})
    assert loss(smaller, windows()) == removed.after < removed.before + 0.05
    assert removed.before == pytest.approx(loss(taught, windows()), abs=0.01)


def test_the_cheapest_layer_by_loss_is_the_one_that_leaves():
    model = load_model(taught_dir()).eval()
    costs = []
    for i in range(2):
        other = load_model(taught_dir()).eval()
        del other.model.layers[i]
        costs.append(loss(other, windows()))
    _, removed = prune(model, windows(), layers=1)
    gone, cost = removed.layers[0]
    assert gone == min(range(2), key=costs.__getitem__) and cost == pytest.approx(min(costs)) and removed.after == cost


def test_what_is_left_opens_in_transformers(tmp_path):
    smaller, _ = prune(load_model(taught_dir()).eval(), windows(), heads=2, channels=64)
    save_model(smaller, tmp_path, taught_dir())
    found = compare(tmp_path, ["什么是词元？"], 8)
    assert found["logit_difference"] < 2e-3 and found["greedy_equal"]
    assert (smaller.config.heads, smaller.config.kv_heads, smaller.config.head_size, smaller.config.ffn) == (
        2,
        1,
        16,
        64,
    )


def test_heads_and_layers_of_experts_leave_too():
    model = new_model(experts=4, experts_per_token=2, expert_ffn=64).eval()
    smaller, _ = prune(model, windows(), layers=1, heads=2)
    assert (smaller.config.layers, smaller.config.heads, smaller.config.experts) == (1, 2, 4)
    assert torch.isfinite(smaller(windows()[0][None])).all()


@pytest.mark.parametrize(
    "what, said",
    [
        ({"layers": 2}, "leaves no model"),
        ({"heads": 1}, "by 2 of 4; possible: 2"),
        ({"heads": 4}, "possible: 2"),
        ({"channels": 128}, "leaves no feed-forward"),
        ({}, "nothing is to be left out"),
    ],
)
def test_what_would_leave_nothing_is_refused(what, said):
    with pytest.raises(ValueError, match=said):
        prune(load_model(taught_dir()), windows(), **what)


def test_the_commands_take_any_model_folder_and_make_nothing_twice(tmp_path, monkeypatch, capsys):
    text = tmp_path / "t.txt"
    text.write_text("\n".join(q + a for q, a in FACTS.items()) * 4)
    monkeypatch.setenv("PIPELINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # there is none: nothing else depends on it
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    def command(*args, code=0):
        with pytest.raises(SystemExit) as exit_:
            main([str(arg) for arg in args])
        said = capsys.readouterr()
        assert exit_.value.code == code, said.err
        return said.out or said.err

    save_model(load_model(taught_dir()), model := tmp_path / "model", tokenizer_dir())
    asked, out = ("quantize", model, "--to", "int8", "gguf:q8_0", "--text", text, "--json"), tmp_path / "forms"
    made = json.loads(command(*asked, "--out", out))
    assert set(made["costs"]) == {"fp32", "int8", "gguf-q8_0"} and made["costs"]["int8"]["kl"] < 0.1
    assert (out / "gguf-q8_0" / "Modelfile").is_file() and not (out / "lineage.json").exists()
    assert json.loads(command(*asked))["costs"] == made["costs"]  # speeds too: it is the same artifact
    assert len(list((tmp_path / "home" / "commands").iterdir())) == 1
    small = tmp_path / "small"
    printed = command("prune", model, "--layers", 1, "--text", text, "--out", small)
    assert "fewer); loss" in printed and "| pruned |" in printed
    assert Transformer.from_dir(small).config.layers == 1
    assert len(json.loads((small / "pruned.json").read_text())["layers"]) == 1
    (artifact,) = (tmp_path / "home" / "store" / "prune").glob("*/lineage.json")
    sources = [source["name"] for given in json.loads(artifact.read_text())["inputs"] for source in given["sources"]]
    assert sources == ["model", "t.txt"]
    assert "'int9' is no form" in command("quantize", model, "--to", "int9", code=2)
    assert "no such file" in command("quantize", model, "--to", "int8", "--text", "gone", code=2)
    assert "is the model itself" in command("prune", model, "--layers", 1, "--text", text, "--out", model, code=2)
