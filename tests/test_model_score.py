import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from token_helpers import FACTS, documents, new_model, taught_dir, tokenizer_dir, write_shards

from model.generation.judge import bootstrap_mean, groups, is_right, share, wilson
from model.network.weights import save_model
from model.score import Scorer, bits_per_byte, held_out, run, token_bytes
from model.tokens.chat import ChatTokenizer
from pipeline.config.tokens import EncodeSection
from pipeline.tokens.encode import encode_text

SETTINGS = {"max_new_tokens": 32, "batch": 3, "bits_tokens": 0, "seq_len": 32, "seed": 0}


def exams(path):
    """Choices, answers and preferences about the four facts."""
    facts, answers = list(FACTS.items()), list(FACTS.values())
    lang = ["zh", "zh", "en", "en"]
    rows = {
        "choices": [
            {"id": f"c{i}", "set": "training", "lang": lang[i], "question": q, "choices": answers, "correct": i}
            for i, (q, _) in enumerate(facts)
        ],
        "answers": [
            {"id": f"a{i}", "set": "training", "lang": lang[i], "question": q, "answer": a, "keywords": [[a[-5:]]]}
            for i, (q, a) in enumerate(facts)
        ],
        "preferences": [
            {
                "id": f"p{i}",
                "set": "heldout",
                "lang": lang[i],
                "overlap": ["clean", "overlapping"][i // 3],
                "prompt": q + "\u2028",
                "chosen": a,
                "rejected": answers[i - 1],
            }
            for i, (q, a) in enumerate(facts)
        ],
    }
    path.mkdir()
    for name, items in rows.items():
        (path / f"{name}.jsonl").write_text(
            "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8"
        )
    return str(path)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Scores of an untaught and a taught model (twice), made by the worker process."""
    root = tmp_path_factory.mktemp("scores")
    save_model(new_model(), root / "base", tokenizer_dir())
    write_shards(root / "shards", documents())
    encode_text(
        EncodeSection(), write_shards(root / "shards", documents()[:4], split="val"), tokenizer_dir(), root / "tokens"
    )
    models = [
        {"name": "base", "path": str(root / "base")},
        {"name": "sft", "path": str(taught_dir())},
        {"name": "dpo", "path": str(taught_dir())},
    ]
    spec = {
        "models": models,
        "reference": "sft",
        "exams": exams(root / "exams"),
        "tokens": str(root / "tokens"),
        "out": str(root / "out"),
    }
    (root / "spec.json").write_text(json.dumps({**spec, "settings": SETTINGS, "device": "cpu", "dtype": "fp32"}))
    subprocess.run([sys.executable, "-m", "model.score", "--spec", str(root / "spec.json")], check=True)
    return root


def test_the_taught_model_is_told_from_the_untaught(scored):
    scores = json.loads((scored / "out" / "scores.json").read_text())
    assert scores["sft"]["answers"]["training"]["all"]["share"] == 1
    assert scores["base"]["answers"]["training"]["all"]["share"] == 0
    assert scores["sft"]["choices"]["all"]["right"] == 4
    assert scores["sft"]["preferences"]["zh"]["right"] == 2
    assert [scores["sft"]["preferences"][f"overlap.{name}"]["asked"] for name in ("clean", "overlapping")] == [3, 1]
    assert scores["sft"]["choices"]["all"]["chance"] == 0.25
    assert scores["base"]["choices"]["all"]["at_chance"]
    assert [scores[name]["place"] for name in ("base", "sft", "dpo")] == [0, 1, 2]


def test_reward_is_measured_for_what_comes_after_the_reference(scored):
    scores = json.loads((scored / "out" / "scores.json").read_text())
    assert "against_reference" not in scores["base"]
    assert "against_reference" not in scores["sft"]
    same = scores["dpo"]["against_reference"]["all"]
    assert (same["margin"], same["margin_low"], same["margin_high"]) == (0, 0, 0)


def test_files_hold_every_item_and_the_result_is_flat(scored):
    answers = [json.loads(line) for line in (scored / "out" / "answers.jsonl").read_text().splitlines()]
    assert [a["said"]["sft"] for a in answers] == list(FACTS.values())
    assert all(a["right"] == {"base": False, "sft": True, "dpo": True} for a in answers)
    result = json.loads((scored / "out" / "_run" / "result.json").read_text())
    assert result["sft.answers_training.en"] == 1
    assert result["sft.choices"] == 1
    assert {
        "base.bits_per_byte",
        "dpo.against_reference_margin",
        "base.preferences_margin.zh",
        "seconds",
    } <= result.keys()
    last = json.loads((scored / "out" / "_run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == last["total_steps"]


def test_scores_are_the_same_again_and_in_other_batches(scored, tmp_path):
    spec = json.loads((scored / "spec.json").read_text())
    run({**spec, "models": spec["models"][:1], "out": str(tmp_path), "settings": {**SETTINGS, "batch": 64}})
    for name, key in (("answers", "said"), ("choices", "picked")):
        first, second = (
            [json.loads(line)[key]["base"] for line in (path / f"{name}.jsonl").open()]
            for path in (scored / "out", tmp_path)
        )
        assert first == second


def scorer():
    return Scorer(str(taught_dir()), "cpu", "fp32", 8, lambda n: None)


def test_likelihoods_are_those_of_the_plain_forward_pass():
    own = scorer()
    pairs = [("什么是词元？", "词元是文本的最小单位。"), ("What is loss?", "It is long: " + "loss " * 9)]
    for (question, answer), (total, size) in zip(pairs, own.likelihoods(pairs), strict=True):
        prompt = own.tokenizer.prompt([{"role": "user", "content": question}])
        ids = torch.tensor([prompt + own.tokenizer.encode(answer.strip())])
        log = torch.log_softmax(own.model(ids)[0, :-1], -1)
        wanted = sum(float(log[i - 1, ids[0, i]].detach()) for i in range(len(prompt), ids.shape[1]))
        assert total == pytest.approx(wanted, rel=1e-4)
        assert size == len(answer.strip().encode())


def test_bits_per_byte_weighs_every_token_once(scored):
    own = scorer()
    whole = held_out(scored / "tokens", 0, 32)
    ids = np.fromfile(scored / "tokens" / "val.bin", dtype=np.uint16)
    assert sum(len(piece) - 1 for piece in whole) == len(ids) - 4  # a document's first token has no prediction
    found = bits_per_byte(own, whole)
    text = sum(len(text.encode()) for text, _ in documents()[:4])
    first = sum(int(token_bytes(own.tokenizer)[ids[at]]) for at in np.load(scored / "tokens" / "val.idx.npy")[:-1])
    assert found["bytes"] == text - first
    nats = -sum(float(v.sum()) for v in own.log_probabilities([(piece, 1) for piece in whole]))
    assert found["value"] == pytest.approx(nats / math.log(2) / found["bytes"])
    assert sum(len(piece) - 1 for piece in held_out(scored / "tokens", 100, 32)) < 140
    assert bits_per_byte(own, []) is None


def test_token_bytes_are_utf8_bytes():
    chat = ChatTokenizer.load(tokenizer_dir())
    for text in ("plain words", "词元 and 文本", "é\n\n  x"):
        assert token_bytes(chat)[chat.encode(text)].sum() == len(text.encode())
    assert token_bytes(chat)[[0, 1, 2]].sum() == 0


@pytest.mark.parametrize(
    ("right", "asked", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_gives_the_published_values(right, asked, low, high):
    assert wilson(right, asked) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_an_answer_is_right_when_every_group_is_hit():
    assert is_right("The GRADIENT says how each weight moves.", [["gradient"], ["moves", "changes"]], "")
    assert not is_right("The gradient.", [["gradient"], ["moves", "changes"]], "")
    assert is_right("八大行星，有水星、金星和地球。", [], "八大行星，包括水星、金星、地球、火星等。")
    assert not is_right("太阳是恒星。", [], "八大行星，包括水星、金星、地球、火星等。")
    assert not is_right("", [], "x")


def test_intervals_say_when_nothing_was_shown():
    assert share([True, False, False, False], 0.25)["at_chance"]
    assert not share([True] * 30, 0.25)["at_chance"]
    assert share([])["share"] == 0
    low, high = bootstrap_mean([1.0, 2.0, 3.0] * 20, seed=1)
    assert 1.7 < low < 2 < high < 2.3
    assert bootstrap_mean([], 0) == (0, 0)
    items = [{"lang": "zh", "set": "a"}, {"lang": "en", "set": "b"}]
    assert groups(items) == {"all": [0, 1], "en": [1], "zh": [0], "a": [0], "b": [1]}
    assert groups([]) == {}
