import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from token_helpers import EN, ZH, documents, tokenizer_dir, write_shards
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from model.tokens.chat import ChatTokenizer
from model.tokens.render import render_chat
from pipeline.config.tokens import TokenizerSection
from pipeline.kernels.pretokens import count, split
from pipeline.tokens.bpe import extend_merges, learn_merges, to_tokenizers
from pipeline.tokens.encoder import Encoder
from pipeline.tokens.patterns import PRETOKEN_PATTERN
from pipeline.tokens.tokenizer import make_tokenizer


def vocabulary(path):
    return json.loads((path / "tokenizer.json").read_text())["model"]["vocab"]


def test_bytes_do_not_depend_on_the_number_of_shards(tmp_path):
    for parts in (1, 3):
        write_shards(tmp_path / f"{parts}", documents(), parts)
        make_tokenizer(TokenizerSection(vocab_size=450), tmp_path / f"{parts}", tmp_path / f"out{parts}")
    for name in ("tokenizer.json", "tokenizer_config.json", "report.json"):
        assert (tmp_path / "out1" / name).read_bytes() == (tmp_path / "out3" / name).read_bytes()


def test_a_sample_is_drawn_by_document_and_not_by_shard(tmp_path):
    cfg = TokenizerSection(vocab_size=400, sample_chars=10_000)
    many = [(f"{i} " + text, lang) for i in range(8) for text, lang in documents()]
    for parts in (1, 4):
        write_shards(tmp_path / f"{parts}", many, parts)
        make_tokenizer(cfg, tmp_path / f"{parts}", tmp_path / f"out{parts}")
    assert vocabulary(tmp_path / "out1") == vocabulary(tmp_path / "out4")
    make_tokenizer(TokenizerSection(vocab_size=400), tmp_path / "1", tmp_path / "all")
    assert vocabulary(tmp_path / "all") != vocabulary(tmp_path / "out1")


def test_ids_of_special_tokens_and_the_report():
    chat = ChatTokenizer.load(tokenizer_dir())
    assert (chat.pad_id, chat.bos_id, chat.eos_id, chat.vocab_size) == (0, 1, 2, 450)
    assert chat.backend.token_to_id("<|reserved_0|>") == 3
    report = json.loads((tokenizer_dir() / "report.json").read_text())
    assert report["languages"].keys() == {"zh", "en"}
    for row in report["languages"].values():
        assert row["unknown"] == row["round_trip_failures"] == 0
        assert row["bytes_per_token"] > 2


def trained_by_tokenizers(texts, vocab_size):
    theirs = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(PRETOKEN_PATTERN), "isolated")
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<|s|>"], initial_alphabet=alphabet, show_progress=False
    )
    theirs.train_from_iterator(texts, trainer)
    return json.loads(theirs.to_str())["model"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("aab b中国a\n", max_size=40), max_size=12), st.integers(0, 60))
def test_merges_are_those_of_the_tokenizers_trainer(texts, limit):
    ours = json.loads(to_tokenizers(learn_merges(texts, limit), ["<|s|>"]).to_str())["model"]
    theirs = trained_by_tokenizers(texts, 257 + limit)
    assert (ours["merges"], ours["vocab"]) == (theirs["merges"], theirs["vocab"])


def test_merges_of_real_text_are_those_of_the_tokenizers_trainer():
    texts = [text for text, _ in documents()] + [
        path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))
    ]
    ours = json.loads(to_tokenizers(learn_merges(texts, 3000), ["<|s|>"]).to_str())["model"]
    theirs = trained_by_tokenizers(texts, 3257)
    assert (ours["merges"], ours["vocab"]) == (theirs["merges"], theirs["vocab"])


odd = st.sampled_from("'sStTrReEvVlLmMdDſ \t\r\n\x0b\x1c\x85\u200b\u2028\u3000aé́1٣½Ⅷ，。!._-中あ😀𠀀")
assigned = st.characters(
    exclude_categories=("Cs", "Cn")
)  # what is unassigned here may be a letter in the newer tables of `regex`


@settings(max_examples=400, deadline=None)
@given(st.text(odd | assigned, max_size=30))
def test_texts_are_split_as_the_pattern_says(text):
    assert split(text) == regex.findall(PRETOKEN_PATTERN, text)


def test_pretokens_are_counted_over_texts_that_do_not_touch():
    many = ["ab", " c", "ab", *(f"{i:x}" for i in range(70_000)), "ab" * 600_000]  # more than one batch
    found, offsets, counts = count(many)
    words = [bytes(found[i:j]).decode() for i, j in pairwise(offsets)]
    assert dict(zip(words, counts.tolist(), strict=True)) == Counter(word for text in many for word in split(text))
    assert words[:2] == ["ab", " c"]


def test_chat_marks_earn_no_merges_and_words_do(tmp_path):
    rows = [(render_chat([{"role": "user", "content": ZH}, {"role": "assistant", "content": EN}]), "zh", "chat")] * 30
    make_tokenizer(TokenizerSection(vocab_size=400), write_shards(tmp_path / "s", rows), tmp_path / "out")
    assert not any(
        "im_" in token or "|>" in token for token in vocabulary(tmp_path / "out") if not token.startswith("<|")
    )


def test_a_small_text_gives_a_small_vocabulary_and_no_text_an_error(tmp_path):
    metrics = make_tokenizer(
        TokenizerSection(vocab_size=5000), write_shards(tmp_path / "s", [(EN, "en")]), tmp_path / "out"
    )
    assert 272 < metrics["vocab_size"] < 500
    with pytest.raises(ValueError, match="no text to train"):
        make_tokenizer(TokenizerSection(), write_shards(tmp_path / "none", [("", "en")]), tmp_path / "out2")


def test_an_existing_tokenizer_is_taken_and_given_the_chat_tokens(tmp_path):
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.train_from_iterator(
        [EN],
        trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
    )
    (tmp_path / "given").mkdir()
    plain.save(str(tmp_path / "given" / "tokenizer.json"))
    cfg = TokenizerSection(existing=str(tmp_path / "given"))
    metrics = make_tokenizer(cfg, write_shards(tmp_path / "s", documents()), tmp_path / "out")
    assert metrics["vocab_size"] == plain.get_vocab_size() + 3
    assert metrics["round_trip_failures"] > 0  # it has no byte-level decoder, and the report says so
    chat = Encoder.load(tmp_path / "out")
    assert chat.encode(EN) == plain.encode(EN).ids


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("aab b中国a\n", max_size=40), max_size=12), st.integers(0, 20), st.integers(0, 40))
def test_merges_learnt_in_two_steps_are_those_learnt_at_once(texts, first, more):
    some = json.loads(to_tokenizers(learn_merges(texts, first), ["<|s|>"]).to_str())
    whole = json.loads(to_tokenizers(learn_merges(texts, first + more), ["<|s|>"]).to_str())
    extended = (
        json.loads(extend_merges(json.dumps(some), texts, more)) if len(some["model"]["merges"]) == first else whole
    )
    assert (
        extended["model"]["merges"] == whole["model"]["merges"]
        and extended["model"]["vocab"] == whole["model"]["vocab"]
    )


@pytest.mark.parametrize("pattern", [PRETOKEN_PATTERN, r"[a-z]+|[^a-z]"])
def test_an_existing_tokenizer_is_extended_and_keeps_its_ids(tmp_path, pattern):
    (tmp_path / "given").mkdir()
    given = (
        to_tokenizers(learn_merges([EN * 5], 60), ["<|s|>"])
        .to_str()
        .replace(json.dumps(PRETOKEN_PATTERN)[1:-1], json.dumps(pattern)[1:-1])
    )
    (tmp_path / "given" / "tokenizer.json").write_text(given)
    shards = write_shards(tmp_path / "s", documents())
    metrics = make_tokenizer(TokenizerSection(existing=str(tmp_path / "given"), extend=50), shards, tmp_path / "out")
    before, after = Tokenizer.from_str(given), Encoder.load(tmp_path / "out")
    assert after.engine == "tiktoken" and metrics["vocab_size"] == before.get_vocab_size() + 50 + 3
    assert metrics["unknown"] == metrics["round_trip_failures"] == 0
    assert vocabulary(tmp_path / "given").items() <= vocabulary(tmp_path / "out").items()
    assert len(after.encode(ZH)) < 0.6 * len(before.encode(ZH).ids)
    assert Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).encode(ZH).ids == after.encode(ZH)


def test_what_cannot_be_extended_is_refused(tmp_path):
    with pytest.raises(ValidationError, match=r"tokenizer\.existing"):
        TokenizerSection(extend=10)
    lower = to_tokenizers(learn_merges([EN], 20), ["<|s|>"])
    lower.normalizer = normalizers.Lowercase()
    lower.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"tokenizer\.extend=10: .*only a byte-level BPE"):
        make_tokenizer(
            TokenizerSection(existing=str(tmp_path), extend=10),
            write_shards(tmp_path / "s", documents()),
            tmp_path / "out",
        )


def test_an_existing_tokenizer_counts_by_content_and_must_be_there(tmp_path):
    copy = tmp_path / "copy.json"
    copy.write_bytes((tokenizer_dir() / "tokenizer.json").read_bytes())
    a, b = TokenizerSection(existing=str(tokenizer_dir())).identity(), TokenizerSection(existing=str(copy)).identity()
    assert a == b != TokenizerSection().identity()
    with pytest.raises(ValidationError, match="no such file"):
        TokenizerSection(existing=str(tmp_path / "nowhere"))
