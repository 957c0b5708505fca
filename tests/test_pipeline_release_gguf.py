"""GGUF files computed by llama.cpp itself (cyllama): its token ids, logits and answers against ours."""

import json
import shutil
import unicodedata

import gguf
import numpy as np
import pytest
import torch
from token_helpers import FACTS, documents, new_model, taught_dir, tokenizer_dir
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from model.generation.generator import generate
from model.llamacpp.run import LlamaCpp
from model.network.transformer import Transformer
from model.network.weights import save_model
from model.tokens.chat import ChatTokenizer
from model.tokens.template import plain_template
from pipeline.release.forms import FORMS, GGUF_TYPES, check_forms, write_ggufs
from pipeline.release.gguf_export import check_tokenizer

NASTY = [
    "a", " ", "   a", "a   b ", "\t\ta", "\n\n\n", "a\r\nb", "\r\n\r\n x", "\r", "  \n  \n", "x\n\n\n  y",
    "1984", "12345 67,890", "3.14159", "  12", "١٢٣ Ⅷ²½ ａｂｃ１２３", "👍🏽",
    "👨‍👩‍👧‍👦 family", "🇨🇳🇩🇪", "你好，世界！",
    "語言模型 한국어 日本語のテスト", "don't DON'T I'LL we’ve", "'s 'S 'Re", "é", "e\u0301 A\u030a",
    unicodedata.normalize("NFD", "Ångström naïve 한국어"), "ﬁ ß ẞ İ ı ǆ", "<|im_end|>",
    "<|im_start|>user\nhi<|im_end|>\n",
    "a<|endoftext|>b", "<think>x</think><tool_call>", "\u200b\u200d\ufeff", "\u00a0\u3000 x\u2028y\u2029",
    "\x00\x01\x7f\x85\x1c",
    "def f(x):\n    return x + 1\n\n", "a" * 300, "!!!???...", "𝓗𝓮𝓵𝓵𝓸", "ก็ไทย العربية עברית हिन्दी",
    "\U0010ffff\ue000",
    b"caf\xe9 \xff\xfe \xf0\x9f".decode(errors="replace"),
    "\ud83d".encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
]  # fmt: skip
TOLERANCE = {"f32": 1e-4, "f16": 0.03, "bf16": 0.12, "q8_0": 0.4, "q5_0": 1.5, "q4_k_m": 1.5, "q4_0": 3.0}
"""Largest difference of two logits, in standard deviations of all, of a small model that was taught sharply."""
PATTERNS = {
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}
"""Copied from the tokenizers of Qwen 2.5, Llama 3 and GPT-2."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A taught model in the types of TOLERANCE, by form."""
    out = tmp_path_factory.mktemp("gguf")
    return write_ggufs(taught_dir(), out, TOLERANCE, out / "_run")


def test_llama_cpp_gives_every_text_the_ids_that_ours_are(files):
    own, theirs = Tokenizer.from_file(str(tokenizer_dir() / "tokenizer.json")), LlamaCpp(files["gguf:f16"].path)
    for plain in (False, True):
        own.encode_special_tokens = plain
        wrong = [
            text
            for text in NASTY
            if own.encode(text, add_special_tokens=False).ids != theirs.tokenize(text, special=not plain)
        ]
        assert not wrong


def imported(folder, kind, *, normalizer=None):
    """A model on a tokenizer of another's making that splits as ``kind`` does."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
    split = pre_tokenizers.Split(Regex(PATTERNS.get(kind, kind)), behavior="isolated")
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, last])
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=450, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([text for text, _ in documents()], trainer)
    shutil.copytree(tokenizer_dir(), folder / "tokenizer")
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    save_model(new_model(vocab_size=tokenizer.get_vocab_size()), folder / "model", folder / "tokenizer")
    return tokenizer, folder / "model"


@pytest.mark.parametrize("kind", PATTERNS)
def test_tokenizers_of_others_are_known_by_how_they_split(kind, tmp_path):
    own, model = imported(tmp_path, kind)
    written = write_ggufs(model, tmp_path, ["f16"], tmp_path / "_run")["gguf:f16"]
    assert gguf.GGUFReader(written.path).fields["tokenizer.ggml.pre"].contents() == kind
    theirs = LlamaCpp(written.path)
    wrong = [t for t in NASTY if own.encode(t, add_special_tokens=False).ids != theirs.tokenize(t, special=True)]
    assert not wrong


def test_what_llama_cpp_does_not_normalise_is_said_and_other_splits_are_refused(tmp_path):
    own, model = imported(tmp_path, "qwen2", normalizer=normalizers.NFC())
    written = write_ggufs(model, tmp_path, ["f16"], tmp_path / "_run")["gguf:f16"]
    assert "NFC" in written.notes[0]
    theirs = LlamaCpp(written.path)
    same = [t for t in NASTY if own.encode(t, add_special_tokens=False).ids == theirs.tokenize(t, special=True)]
    assert {t for t in NASTY if unicodedata.is_normalized("NFC", t)} == set(same)
    spec = json.loads((model / "tokenizer.json").read_text())
    split, rest = spec["pre_tokenizer"]["pretokenizers"]
    for odd in (
        {"normalizer": {"type": "NFKC"}},
        {"model": {**spec["model"], "ignore_merges": True}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{**split, "pattern": {"Regex": "."}}, rest]}},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁"}},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="would tokenise differently"):
            check_tokenizer({**spec, **odd})


@pytest.mark.parametrize("kind", TOLERANCE)
def test_llama_cpp_s_logits_are_ours_within_what_the_type_holds(kind, files):
    chat, model = ChatTokenizer.load(taught_dir()), Transformer.from_dir(taught_dir()).eval()
    theirs = LlamaCpp(files[f"gguf:{kind}"].path, exact=kind == "f32")
    for question, answer in FACTS.items():
        ids = chat.chat([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])[0]
        with torch.no_grad():
            own = model(torch.tensor([ids]))[0].numpy()
        assert np.abs(theirs.logits(ids) - own).max() < TOLERANCE[kind] * own.std()
    assert np.array_equal(theirs.logits(ids)[5:], theirs.logits(ids, first=5))


def test_greedy_answers_in_f16_are_ours_over_forty_tokens(files):
    chat, model = ChatTokenizer.load(taught_dir()), Transformer.from_dir(taught_dir()).eval()
    theirs = LlamaCpp(files["gguf:f16"].path)
    for question in FACTS:
        prompt = chat.prompt([{"role": "user", "content": question}])
        own = generate(model, [prompt], stop=(), max_new_tokens=40)[0]
        assert theirs.greedy(prompt, stop=(), max_new_tokens=40) == own and len(own) == 40
        stop = {chat.eos_id}
        assert theirs.greedy(prompt, stop=stop, max_new_tokens=40) == generate(model, [prompt], stop=stop)[0]


def test_perplexity_follows_the_type(files):
    chat = ChatTokenizer.load(taught_dir())
    ids = [
        chat.chat([{"role": "user", "content": q}, {"role": "assistant", "content": a}])[0] for q, a in FACTS.items()
    ]

    def nats(kind):
        own, model = [], LlamaCpp(files[f"gguf:{kind}"].path)
        for row in ids:
            logits = torch.from_numpy(model.logits(row[:-1]))
            own.append(torch.nn.functional.cross_entropy(logits, torch.tensor(row[1:])))
        return float(torch.stack(own).mean())

    exact, size = nats("f32"), {kind: files[f"gguf:{kind}"].path.stat().st_size for kind in TOLERANCE}
    off = {kind: abs(nats(kind) - exact) for kind in TOLERANCE}
    assert off["f16"] < 1e-3 and off["q8_0"] < 0.02 and off["f16"] < off["q4_0"] < 0.5
    assert size["f32"] > size["f16"] > size["q8_0"] > size["q4_k_m"] > size["q4_0"]


def test_a_router_stays_in_fp32_whatever_the_type(tmp_path):
    model = new_model(experts=4, experts_per_token=2, expert_ffn=64)
    save_model(model, tmp_path / "model", tokenizer_dir())
    written = write_ggufs(tmp_path / "model", tmp_path, ["f16", "q8_0"], tmp_path / "_run")
    ids = list(range(3, 60))
    with torch.no_grad():
        own = model.eval()(torch.tensor([ids]))[0].numpy()
    for file in written.values():
        tensors = {t.name: t.tensor_type.name for t in gguf.GGUFReader(file.path).tensors}
        assert {kind for name, kind in tensors.items() if "ffn_gate_inp" in name} == {"F32"}
    theirs = LlamaCpp(written["gguf:f16"].path).logits(ids)
    assert np.abs(theirs - own).max() < 0.04 * own.std()


SCALINGS = {
    "yarn": {"rope_type": "yarn"},
    "linear": {"rope_type": "linear"},
    "llama3": {"rope_type": "llama3", "rope_low_freq": 1.0, "rope_high_freq": 4.0, "qk_norm": False, "tied": False},
}


@pytest.mark.parametrize("kind", SCALINGS)
def test_stretched_positions_are_llama_cpp_s_too(kind, tmp_path):
    model = new_model(**SCALINGS[kind], rope_factor=4.0, rope_original_len=32).eval()
    save_model(model, tmp_path / "model", tokenizer_dir())
    written = write_ggufs(tmp_path / "model", tmp_path, ["f32"], tmp_path / "_run")["gguf:f32"]
    ids = [3 + i * 7 % 400 for i in range(100)]
    with torch.no_grad():
        own = model(torch.tensor([ids]))[0].numpy()
    assert np.abs(LlamaCpp(written.path, exact=True).logits(ids) - own).max() < 2e-3 * own.std()


def test_a_folder_of_others_without_a_bos_token_and_with_objects_for_tokens_is_written(tmp_path):
    save_model(new_model(), tmp_path / "model", tokenizer_dir())
    path = tmp_path / "model" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    template = config.pop("chat_template")
    path.write_text(json.dumps({**config, "bos_token": None, "pad_token": {"content": config["pad_token"]}}))
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    values = json.loads((tmp_path / "model" / "config.json").read_text())
    rope = {"rope_type": "default", "rope_theta": values.pop("rope_theta")}
    del values["rope_scaling"]
    (tmp_path / "model" / "config.json").write_text(json.dumps({**values, "rope_parameters": rope}))
    written = write_ggufs(tmp_path / "model", tmp_path, ["f16"], tmp_path / "_run")["gguf:f16"]
    fields = gguf.GGUFReader(written.path).fields
    assert fields["tokenizer.ggml.eos_token_id"].contents() == ChatTokenizer.load(taught_dir()).eos_id
    assert fields["tokenizer.chat_template"].contents() == plain_template(template)
    assert fields["qwen3.rope.freq_base"].contents() == rope["rope_theta"]


def test_what_a_type_s_blocks_do_not_divide_is_said(files):
    assert files["gguf:q4_k_m"].notes == [
        "15 of 15 matrices do not divide into the blocks of q4_k_m: 12 in q5_0, 3 in q8_0"
    ]
    assert not files["gguf:q4_0"].notes and files["gguf:q4_0"].types == {"f32": 9, "q4_0": 14, "q8_0": 1}


def test_every_type_that_is_offered_is_written_and_opens(tmp_path):
    save_model(new_model(layers=1, dim=32, heads=2, kv_heads=1, ffn=32), tmp_path / "model", tokenizer_dir())
    written = write_ggufs(tmp_path / "model", tmp_path, GGUF_TYPES, tmp_path / "_run")
    assert all(np.isfinite(LlamaCpp(file.path).logits([1, 5, 9])).all() for file in written.values())
    assert {f"gguf:{kind}" for kind in GGUF_TYPES} == written.keys() == {f for f in FORMS if f.startswith("gguf")}
    assert sorted(path.name for path in (tmp_path / "_run").iterdir()) == ["quantize.json"]


def test_rows_that_llama_cpp_cannot_round_are_refused_by_their_widths(tmp_path):
    save_model(new_model(ffn=176), tmp_path / "model", tokenizer_dir())
    with pytest.raises(
        ValueError, match=r"gguf:q8_0 cannot be written: .* multiple of 32, .* rows of 176; take gguf:f16"
    ):
        write_ggufs(tmp_path / "model", tmp_path, ["f16", "q8_0"], tmp_path / "_run")
    assert write_ggufs(tmp_path / "model", tmp_path, ["f16"], tmp_path / "_run")["gguf:f16"].path.is_file()


def test_the_modelfile_says_what_was_trained(files):
    text = (files["gguf:f16"].path.parent / "Modelfile").read_text()
    assert text.startswith("FROM ./model-f16.gguf\n")
    assert 'PARAMETER stop "<|im_end|>"' in text and "PARAMETER num_ctx 128" in text
    # what Go's template engine makes of one message, by hand
    body = text.split('TEMPLATE """')[1].split('"""')[0]
    head, _, rest = body.partition("{{- range .Messages }}")
    turn, _, tail = rest.partition("{{ end }}")
    made = head + turn.replace("{{ .Role }}", "user").replace("{{ .Content }}", "hi") + tail
    ids = Tokenizer.from_file(str(tokenizer_dir() / "tokenizer.json")).encode(made, add_special_tokens=False).ids
    assert ids == ChatTokenizer.load(taught_dir()).prompt([{"role": "user", "content": "hi"}])


def test_wrong_names_of_forms_are_all_told():
    assert check_forms(["int8", "int4", "gguf:q4_k_m"]) == []
    first, second = check_forms(["int9", "int8", "int8"])
    assert "'int9' is no form; forms are int8, int4, gguf:f32" in first and second == "int8 is there twice"
