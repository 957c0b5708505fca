import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from token_helpers import FACTS, documents, new_model, taught_dir, tokenizer_dir, write_shards

from model.generation.heldout import bits_per_byte, held_out
from model.generation.judge import bootstrap_mean, by_accident, final_number, groups, is_right, share, wilson
from model.generation.scorer import Scorer
from model.network.weights import save_model
from model.score import run
from model.tokens.rows import Windows, read_split
from model.tokens.turns import CHAT_SPECIALS
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
    assert result["sft.choices.n"] == 4 and result["sft.choices.zh.n"] == 2 and result["sft.answers_training.n"] == 4
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


def test_bits_per_byte_are_those_of_the_training_loop(scored):
    own, split = scorer(), read_split(scored / "tokens", "val")
    whole = held_out(scored / "tokens", 0, 64)
    assert sum(len(piece) - 1 for piece in whole.pieces) == len(split.tokens)
    assert whole.bytes == sum(len(text.encode()) for text, _ in documents()[:4])
    nats = -sum(float(v.sum()) for v in own.log_probabilities([(piece, 1) for piece in whole.pieces]))
    assert bits_per_byte(own, whole)["value"] == pytest.approx(nats / math.log(2) / whole.bytes)
    windows = Windows(split, 64, tail=True)
    rows = windows.read(np.arange(windows.rows))
    with torch.no_grad():
        log = torch.log_softmax(own.model(torch.from_numpy(rows.ids), torch.from_numpy(rows.doc)), -1)
    found = -log.gather(2, torch.from_numpy(rows.targets)[..., None])[..., 0][torch.from_numpy(rows.weight) > 0]
    training = float(found.mean()) / math.log(2) * windows.targets_per_byte(windows.rows)
    assert training == pytest.approx(bits_per_byte(own, whole)["value"], rel=0.05)  # windows begin elsewhere


def test_a_part_of_the_validation_text_has_its_own_bytes(scored):
    sizes = [len(text.encode()) for text, _ in documents()[:4]]
    offsets = np.load(scored / "tokens" / "val.idx.npy")
    part = held_out(scored / "tokens", int(offsets[2]), 10_000)
    assert part.bytes == sum(sizes[:2])
    assert sum(len(piece) - 1 for piece in held_out(scored / "tokens", 100, 32).pieces) < 140
    split = read_split(scored / "tokens", "val")
    assert Windows(split, int(offsets[1]) - 1).targets_per_byte(1) == pytest.approx((offsets[1] - 1) / sizes[0])
    assert bits_per_byte(scorer(), held_out(scored / "tokens", 0, 32)) is not None


def foreign_tokenizer(kind):
    """A trained tokenizer that is not byte-level."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    texts, special = [text for text, _ in documents()], list(CHAT_SPECIALS)
    if kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=[*special, "[UNK]"], show_progress=False)
    elif kind == "unigram":
        made = Tokenizer(models.Unigram())
        made.normalizer, made.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=300, special_tokens=[*special, "<unk>"], unk_token="<unk>", show_progress=False
        )
    else:
        made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        fallback = [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=[*special, "<unk>", *fallback], limit_alphabet=20, show_progress=False
        )
    made.train_from_iterator(texts, trainer)
    return made


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "byte_fallback"])
def test_bytes_are_those_of_the_text_whatever_the_tokenizer(kind, tmp_path):
    (tmp_path / "tokenizer").mkdir()
    foreign_tokenizer(kind).save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    rows = [*documents()[:6], ("<|im_start|>user\nÀ quoi bon？<|im_end|>\n", "fr", "chat")]
    write_shards(tmp_path / "shards", documents())
    encode_text(
        EncodeSection(),
        write_shards(tmp_path / "shards", rows, split="val"),
        tmp_path / "tokenizer",
        tmp_path / "tokens",
    )
    spelled = sum(len(row[0].replace("<|im_start|>", "").replace("<|im_end|>", "").encode()) for row in rows)
    whole = held_out(tmp_path / "tokens", 0, 32)
    assert (
        whole.bytes == spelled == json.loads((tmp_path / "tokens" / "meta.json").read_text())["splits"]["val"]["bytes"]
    )
    vocabulary = json.loads((tmp_path / "tokens" / "meta.json").read_text())["vocab_size"]
    save_model(new_model(vocab_size=vocabulary), tmp_path / "model", tmp_path / "tokenizer")
    own = Scorer(str(tmp_path / "model"), "cpu", "fp32", 8, lambda n: None)
    nats = -sum(float(v.sum()) for v in own.log_probabilities([(piece, 1) for piece in whole.pieces]))
    assert bits_per_byte(own, whole)["value"] == pytest.approx(nats / math.log(2) / spelled)


def test_what_does_not_fit_the_window_is_left_out_and_counted(scored, tmp_path):
    long = "many words " * 200
    item = {"id": "x", "set": "mine", "lang": "en"}
    (tmp_path / "exams").mkdir()
    made = {
        "choices": [
            {**item, "question": "q", "choices": ["a", long], "correct": 0},
            {**item, "question": long, "choices": ["a", "b"], "correct": 0},
            {**item, "question": "q", "context": long, "choices": ["a", "b"], "correct": 0},
            {**item, "question": "q", "choices": ["same", "same"], "correct": 1},
            {**item, "question": "", "plain": True, "choices": ["A token is text.", "A text tokens is."], "correct": 0},
        ],
        "answers": [
            {**item, "question": long, "answer": "a", "keywords": []},
            {**item, "question": "word " * 18, "answer": "a", "keywords": []},
        ],
        "preferences": [
            {**item, "prompt": "p", "chosen": long, "rejected": "b"},
            {**item, "prompt": "p", "chosen": "a", "rejected": "b"},
        ],
    }
    for name, rows in made.items():
        (tmp_path / "exams" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = json.loads((scored / "spec.json").read_text()) | {"exams": str(tmp_path / "exams"), "tokens": None}
    settings = {**SETTINGS, "max_new_tokens": 120}
    metrics = run({**spec, "out": str(tmp_path), "models": spec["models"][:1], "settings": settings})
    scores = json.loads((tmp_path / "scores.json").read_text())["base"]
    assert scores["too_long"] == {"choices": 3, "answers": 1, "preferences": 1}
    assert metrics["base.too_long"] == 5
    assert scores["cut_short"] == metrics["base.cut_short"] == 1
    assert metrics["base.choices.n"] == 2 and scores["choices"]["all"]["right"] % 1 == 0.5  # equal ones count half
    assert metrics["base.preferences.n"] == metrics["base.answers_mine.n"] == 1
    assert {
        "base.choices.low",
        "base.choices.high",
        "base.choices.chance",
        "base.answers_mine.chance",
    } <= metrics.keys()
    choices = [json.loads(line) for line in (tmp_path / "choices.jsonl").read_text().splitlines()]
    assert [len(row["log_likelihood"]["base"]) for row in choices] == [0, 0, 0, 2, 2]
    progress = [json.loads(line) for line in (tmp_path / "_run" / "metrics.jsonl").read_text().splitlines()]
    assert progress[-1]["step"] == progress[-1]["total_steps"]


def test_a_model_that_diverged_is_named(tmp_path):
    broken = new_model()
    broken.model.norm.weight.data[:] = math.nan
    save_model(broken, tmp_path, tokenizer_dir())
    with pytest.raises(ValueError, match="likelihoods are not finite"):
        Scorer(str(tmp_path), "cpu", "fp32", 8, lambda n: None).likelihoods([("q", "a")])


def test_a_number_counts_however_it_is_written():
    plain = ("72", "that is 72, in total.", "so $72.00", "12 + 60 = **72**", "答案是72个")
    for text in (*plain, "#### 72", "\\boxed{72} of 100", "#### 72\nQuestion: next\n#### 5"):
        assert final_number(text) == 72, text
    assert final_number("#### -1,234.50") == final_number("it falls to −$1234.5.") == -1234.5
    assert final_number("from 2010-2015") == 2015
    assert final_number("1,2 and 3") == 3
    assert final_number("none, really.") is None
    assert is_right("16 - 7 = 9, so 18.", [], "long solution #### 18", "18")
    assert not is_right("16 - 7 = 9, so 18.", [], "long solution", "81")


def test_what_knows_nothing_is_the_line_to_beat():
    item = {"set": "s", "lang": "en"}
    echo = {**item, "question": "Is the gradient steep?", "answer": "Yes.", "keywords": [["gradient"]]}
    lucky = {**item, "question": "q", "answer": "The tide.", "keywords": [["the"]]}
    hard = {**item, "question": "q", "answer": "12", "keywords": [], "number": "12"}
    assert by_accident([echo, lucky, hard]) == [(1, 0), (0, 0), (0, 0)]
    assert by_accident([lucky, {**lucky, "answer": "The moon."}, hard])[0] == (0, 0.5)
    assert by_accident([hard]) == [(0, 0)]


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
