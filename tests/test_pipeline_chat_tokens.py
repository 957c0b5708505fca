import hashlib
import json
from itertools import pairwise

import numpy as np
import pytest
from token_helpers import FACTS, tokenizer_dir

from model.tokens.chat import ChatTokenizer
from model.tokens.rows import Packed, read_split
from pipeline.tokens.chats import encode_chats
from pipeline.tokens.encode import Encoder
from pipeline.tokens.pairs import encode_pairs

CHAT = ChatTokenizer.load(tokenizer_dir())


def talk(*turns, system=None, line=1):
    head = [{"role": "system", "content": system}] if system else []
    messages = head + [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(turns)]
    return {"messages": messages, "source": "mine", "path": "a.jsonl", "line": line}


def pair(prompt, chosen, rejected, line=1):
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": chosen,
        "rejected": rejected,
        "source": "mine",
        "path": "p.jsonl",
        "line": line,
    }


def rows(path, split="train"):
    """(text, text of the targets) of every sequence."""
    meta = json.loads((path / "meta.json").read_text())
    ids, mask = (
        np.fromfile(path / f"{split}.bin", dtype=meta["dtype"]),
        np.fromfile(path / f"{split}.mask.bin", dtype=np.uint8),
    )
    offsets = np.load(path / f"{split}.idx.npy")
    spell = lambda values: CHAT.decode(values.tolist(), skip_special=False)  # noqa: E731
    return [(spell(ids[a:b]), spell(ids[a:b][mask[a:b] == 1])) for a, b in pairwise(offsets)]


def test_conversations_with_their_targets(tmp_path):
    records = [talk(q, a, line=i) for i, (q, a) in enumerate(FACTS.items(), 1)]
    metrics = encode_chats(records, tokenizer_dir(), tmp_path, max_tokens=64, val_share=0.25)
    found = rows(tmp_path) + rows(tmp_path, "val")
    assert len(rows(tmp_path, "val")) == 1
    assert sorted(target for _, target in found) == sorted(a + "<|im_end|>" for a in FACTS.values())
    assert metrics["records"] == 4
    assert metrics["dropped"] == 0
    assert metrics["train_bytes"] + metrics["val_bytes"] == sum(len(a.encode()) for a in FACTS.values())
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert (meta["kind"], meta["format"], meta["eos_id"]) == ("chat", "tokens/1", CHAT.eos_id)


def test_a_long_conversation_loses_its_oldest_exchanges(tmp_path):
    record = talk("old question " * 20, "old answer", "new question", "new answer", system="Be kind.")
    metrics = encode_chats([record], tokenizer_dir(), tmp_path, max_tokens=60)
    [(text, target)] = rows(tmp_path)
    assert "Be kind." in text
    assert "new question" in text
    assert "old" not in text
    assert target == "new answer<|im_end|>"
    assert (metrics["truncated"], metrics["messages_left_out"]) == (1, 2)


def test_what_cannot_be_trained_on_is_counted_with_its_line(tmp_path):
    records = [
        talk("hi", "hello", line=3),
        talk("x " * 200, "too long", line=7),
        talk("nobody answers", line=9),
        talk("empty", " ", line=11),
    ]
    metrics = encode_chats(records, tokenizer_dir(), tmp_path, max_tokens=40)
    assert {k: v for k, v in metrics.items() if k.startswith("dropped")} == {
        "dropped": 3,
        "dropped_no_answer": 2,
        "dropped_too_long": 1,
    }
    dropped = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    assert [(d["reason"], d["path"], d["line"]) for d in dropped] == [
        ("too_long", "a.jsonl", 7),
        ("no_answer", "a.jsonl", 9),
        ("no_answer", "a.jsonl", 11),
    ]
    with pytest.raises(ValueError, match="no chat records left"):
        encode_chats(records[1:], tokenizer_dir(), tmp_path / "none", max_tokens=40)


def test_a_question_after_the_last_answer_is_left_out(tmp_path):
    metrics = encode_chats([talk("hi", "hello", "and now?")], tokenizer_dir(), tmp_path, max_tokens=40)
    assert (metrics["messages_unanswered"], metrics["truncated"]) == (1, 0)
    assert rows(tmp_path)[0][0].endswith("hello<|im_end|>\n")


def test_pairs_lie_side_by_side_with_only_the_answers_as_targets(tmp_path):
    history = pair("third", "good", "bad")
    history["prompt"] = [*talk("first", "second")["messages"], *history["prompt"]]
    metrics = encode_pairs([history, pair("same", "equal", "equal", 2)], tokenizer_dir(), tmp_path, max_tokens=160)
    found = rows(tmp_path)
    assert [target for _, target in found] == ["good<|im_end|>", "bad<|im_end|>"]
    assert all("second" in text for text, _ in found)
    assert metrics["dropped_equal_answers"] == 1
    assert metrics["train_sequences"] == 2


def test_copies_stay_on_one_side_and_the_split_is_stable(tmp_path):
    records = [talk(f"question {i % 30}", f"answer {i % 30}", line=i) for i in range(60)]
    for name in ("a", "b"):
        encode_chats(records, tokenizer_dir(), tmp_path / name, max_tokens=40, val_share=0.2)
    train, val = {t for t, _ in rows(tmp_path / "a")}, {t for t, _ in rows(tmp_path / "a", "val")}
    assert not train & val
    assert len(val) >= 6

    def digest(name):
        files = sorted(p for p in (tmp_path / name).iterdir() if p.is_file())
        return [hashlib.sha256(p.read_bytes()).hexdigest() for p in files]

    assert digest("a") == digest("b")


def test_one_record_alone_is_trained_on(tmp_path):
    metrics = encode_chats([talk("q", "a")], tokenizer_dir(), tmp_path, max_tokens=40, val_share=0.5)
    assert (metrics["train_sequences"], metrics["val_sequences"]) == (1, 0)


def test_an_answer_that_is_not_to_be_learnt_is_context(tmp_path):
    record = talk("2 + 2?", "five", "again", "four", "thanks", "bye")
    record["messages"][1]["learn"] = record["messages"][5]["learn"] = False
    encode_chats([record], tokenizer_dir(), tmp_path, max_tokens=200)
    [(text, target)] = rows(tmp_path)
    assert "five" in text and target == "four<|im_end|>" and "bye" not in text


def test_an_exchange_with_tools_stays_whole_or_goes(tmp_path):
    call = "<tool_call>\n{}\n</tool_call>"
    tools = talk("how deep is the old harbour?", call, "", "two metres", "and the new one?", call, "", "three metres")
    for i in (2, 6):
        tools["messages"][i] = {"role": "tool", "content": "deep " * 5}
    size = len(CHAT.chat(tools["messages"])[0])
    seen = set()
    for limit in range(size + 1, 20, -7):
        out = tmp_path / str(limit)
        try:
            encode_chats([tools], tokenizer_dir(), out, max_tokens=limit)
        except ValueError as error:
            assert "too_long" in str(error)
            seen.add("dropped")
            continue
        [(text, target)] = rows(out)
        assert text.startswith(("<|im_start|>user\nhow deep", "<|im_start|>user\nand the new"))
        assert text.count("<tool_response>") == target.count("</tool_call>")
        seen.add(text.count("<tool_response>"))
    assert seen == {2, 1, "dropped"}


def test_a_long_conversation_is_encoded_once(tmp_path, monkeypatch):
    encoded = []
    encode = ChatTokenizer.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, text: encoded.append(text) or encode(self, text))
    record = talk(*(f"turn {i}" for i in range(400)))
    encode_chats([record], tokenizer_dir(), tmp_path, max_tokens=60)
    assert len(encoded) < 5 * 400


def test_progress_is_told_of_few_records_too(tmp_path):
    told = []
    encode_chats([talk("q", "a")] * 3, tokenizer_dir(), tmp_path, max_tokens=40, progress=lambda *a: told.append(a))
    assert told[-1] == (3, 3, "records")


def test_a_pair_fits_its_row_whole_with_the_end_of_both_answers_or_is_dropped_and_counted(tmp_path):
    turn = [{"role": "user", "content": "an earlier question"}, {"role": "assistant", "content": "an earlier answer"}]
    records = [pair("why " * (1 + n % 7), "yes " * (1 + n % 23), "no " * (n % 31), n) for n in range(1, 120)]
    for n, record in enumerate(records):
        record["prompt"] = [*turn * (n % 4), *record["prompt"]]
    counts = encode_pairs(records, tokenizer_dir(), tmp_path, max_tokens=120)
    split = read_split(tmp_path, "train")
    lengths = np.diff(split.offsets)
    assert (lengths.reshape(-1, 2).sum(1) - 2 <= 120).all() and (lengths.reshape(-1, 2).sum(1) - 2 > 100).any()
    ends = split.offsets[1:] - 2  # the end of the turn, before the line break
    assert (split.tokens[ends] == CHAT.eos_id).all() and (split.mask[ends] == 1).all()
    assert (
        counts["records"]
        == len(records)
        == counts["dropped"] + (counts["train_sequences"] + counts["val_sequences"]) // 2
    )
    assert counts["dropped_too_long"] > 0 and counts["truncated"] > 0
    rows = Packed(split, 120, together=2)
    assert rows.units.sum() * 2 == split.sequences and rows.truncated == 0
