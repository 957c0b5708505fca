import hashlib
import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from token_helpers import EN, ZH, documents, tokenizer_dir, write_shards
from tokenizers import Tokenizer, normalizers

from model.tokens.chat import ChatTokenizer
from model.tokens.render import render_chat
from pipeline.config.tokens import EncodeSection
from pipeline.tokens import encode
from pipeline.tokens.encode import encode_text
from pipeline.tokens.encoder import Encoder


def files(path):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(path.iterdir()) if p.is_file()}


def sequences(path, split="train"):
    meta = json.loads((path / "meta.json").read_text())
    ids, offsets = np.fromfile(path / f"{split}.bin", dtype=meta["dtype"]), np.load(path / f"{split}.idx.npy")
    return [ids[a:b].tolist() for a, b in pairwise(offsets)]


FAST, PLAIN = Encoder.load(tokenizer_dir()), ChatTokenizer.load(tokenizer_dir())


@given(st.text(max_size=80) | st.text(alphabet="ab 12\n\t'\r<|im_end|>词元，。é", max_size=80))
@settings(max_examples=300, deadline=None)
def test_ids_are_those_of_tokenizers(text):
    assert FAST.engine == "tiktoken"
    assert FAST.encode(text) == PLAIN.encode(text)


def test_every_document_comes_back_with_its_end(tmp_path):
    rows = documents()
    metrics = encode_text(EncodeSection(), write_shards(tmp_path / "s", rows), tokenizer_dir(), tmp_path / "out")
    found = sequences(tmp_path / "out")
    assert [PLAIN.decode(ids) for ids in found] == [text for text, _ in rows]
    assert all(ids[-1] == PLAIN.end_of_text_id for ids in found)
    assert metrics["train_sequences"] == 40
    assert metrics["train_bytes"] == sum(len(text.encode()) for text, _ in rows)
    assert metrics["train_tokens"] == sum(map(len, found))
    assert metrics["val_sequences"] == 0
    assert sequences(tmp_path / "out", "val") == []


def test_the_bytes_do_not_depend_on_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "_JOB_BYTES", 1)
    write_shards(tmp_path / "s", documents(), 2)
    write_shards(tmp_path / "s", documents()[:5], split="val")
    for workers in (1, 2):
        encode_text(EncodeSection(), tmp_path / "s", tokenizer_dir(), tmp_path / f"{workers}", workers=workers)
    assert files(tmp_path / "1") == files(tmp_path / "2")
    assert files(tmp_path / "1").keys() == {
        "meta.json",
        *(f"{split}.{end}" for split in ("train", "val") for end in ("bin", "idx.npy", "bytes.npy")),
    }


def test_chat_marks_are_parsed_in_chats_and_never_in_texts(tmp_path):
    text = render_chat([{"role": "user", "content": ZH}, {"role": "assistant", "content": EN}])
    encode_text(
        EncodeSection(),
        write_shards(tmp_path / "s", [(text, "zh", "chat"), (text, "zh", "text")]),
        tokenizer_dir(),
        tmp_path / "out",
    )
    chat, plain = sequences(tmp_path / "out")
    assert chat[:-1] == PLAIN.chat([{"role": "user", "content": ZH}, {"role": "assistant", "content": EN}])[0]
    assert not {PLAIN.bos_id, PLAIN.eos_id} & set(plain)
    assert PLAIN.decode(plain) == text


def test_a_tokenizer_that_tiktoken_cannot_repeat_runs_as_it_is(tmp_path):
    backend = Tokenizer.from_file(str(tokenizer_dir() / "tokenizer.json"))
    backend.normalizer = normalizers.Lowercase()
    own = Encoder(backend)
    assert own.engine == "tokenizers"
    assert own.ids("ABC").tolist() == PLAIN.encode("abc")
    assert own.ids("A<|im_end|>", parse_chat=True).tolist() == [*PLAIN.encode("a"), PLAIN.eos_id]


def test_nothing_to_train_on_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no training documents"):
        encode_text(EncodeSection(), tmp_path, tokenizer_dir(), tmp_path / "out")
