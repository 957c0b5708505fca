"""Chats and preferences before training: normal form, searched for evaluation texts, every record accounted for."""

from __future__ import annotations

import json

import pytest
from documents import files

from pipeline.config.cleaning import DecontaminateSection
from pipeline.data.chat_records import read_chats
from pipeline.data.jsonl import read_jsonl
from pipeline.data.preference_records import read_preferences
from pipeline.data.screen import screen
from pipeline.evaluation.selection import overlaps
from pipeline.sources import resolve

ASKED = "Why does the sky look blue by day and red in the evening over the sea in the far west of the land?"
EVALS = [
    {"id": "1", "set": "quiz", "text": ASKED},
    {"id": "2", "set": "quiz", "text": "这些小块是从语料里学来的，常见的词是一个整体，少见的词由几块拼成。"},
    {"id": "3", "set": "quiz", "text": "Why?"},
    {"id": "4", "set": "quiz", "text": "什么是分词？"},
]
CHATS = [
    {"instruction": "Add the numbers two and three.", "output": "Five, as two and three are five.\u2028Second line."},
    {"instruction": ASKED, "output": "Scattering."},
    {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "What shall it be? " + ASKED}]},
    {"instruction": "half a pair \ud800 here", "output": "yes"},
    {"instruction": "什么是，分词", "output": "切成小块。"},
    {"instruction": "请告诉我什么是分词？越详细越好", "output": "切成小块。"},
]


def source(tmp_path, rows, kind="chat", name="sft.jsonl"):
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return resolve([str(tmp_path / name)], kind)


@pytest.mark.parametrize("rows", [4096, 5])
def test_records_that_hold_evaluation_texts_go_and_all_are_accounted_for(tmp_path, monkeypatch, rows):
    monkeypatch.setattr("pipeline.data.screen._ROWS", rows)
    chats = source(
        tmp_path, [*CHATS, {"no": "chat"}, *[{"instruction": f"count to {i}", "output": "done"} for i in range(20)]]
    )
    stats = screen(DecontaminateSection(), read_chats, chats, EVALS, tmp_path / "out")
    kept = list(read_jsonl(tmp_path / "out" / "records.jsonl"))
    assert [record["line"] for record in kept] == [1, 4, 6, *range(8, 28)]
    assert (
        kept[0]["messages"][1]["content"] == CHATS[0]["output"]
        and kept[1]["messages"][0]["content"] == "half a pair � here"
    )
    assert (
        stats["docs_in"] == 27
        and stats["docs_out"] == 23
        and stats["dropped/contaminated"] == 3
        and stats["dropped/unknown_form"] == 1
    )
    samples = {(s["rule"], s["line"]) for s in read_jsonl(tmp_path / "out" / "samples.jsonl")}
    assert samples == {("contaminated", 2), ("contaminated", 3), ("contaminated", 5), ("unknown_form", 7)}
    assert json.loads((tmp_path / "out" / "stats.json").read_text())["by_source"]["sft.jsonl"] == {
        "docs_in": 27,
        "docs_out": 23,
    }
    items = {
        item["id"]: (item["result"], item["documents"], item["left"])
        for item in read_jsonl(tmp_path / "out" / "contamination.jsonl")
    }
    assert items == {"1": ("overlapping", 2, 0), "2": ("clean", 0, 0), "3": ("clean", 0, 0), "4": ("overlapping", 1, 0)}
    assert (
        set(overlaps([tmp_path / "out" / "contamination.jsonl"]).values()) == {"clean"}
        and stats["items/overlapping"] == 2
    )


def test_reported_pairs_stay_and_their_items_overlap(tmp_path):
    pairs = source(
        tmp_path,
        [
            {"prompt": "why", "chosen": EVALS[1]["text"], "rejected": "r"},
            {"prompt": "q", "chosen": "c", "rejected": "r"},
        ],
        "preference",
    )
    cfg = DecontaminateSection(action="report")
    assert screen(cfg, read_preferences, pairs, EVALS, tmp_path / "out")["docs_out"] == 2
    found = overlaps([tmp_path / "out" / "contamination.jsonl"])
    assert found == {
        ("quiz", "1"): "clean",
        ("quiz", "2"): "overlapping",
        ("quiz", "3"): "overlapping",
        ("quiz", "4"): "clean",
    }
    screen(cfg, read_preferences, pairs, EVALS, tmp_path / "out", workers=2)  # again, over what is there
    screen(cfg, read_preferences, pairs, EVALS, tmp_path / "two", workers=2)
    assert {k: v for k, v in files(tmp_path / "out").items() if "_run" not in k} == {
        k: v for k, v in files(tmp_path / "two").items() if "_run" not in k
    }


def test_nothing_left_is_an_error_that_says_why(tmp_path):
    with pytest.raises(ValueError, match="no record is left: contaminated 1"):
        screen(DecontaminateSection(), read_chats, source(tmp_path, CHATS[1:2]), EVALS, tmp_path / "out")
    with pytest.raises(ValueError, match=r"2 of 2 records.*decontaminate.max_bad_records"):
        screen(
            DecontaminateSection(),
            read_chats,
            source(tmp_path, [{"a": 1}, {"b": 2}], name="bad.jsonl"),
            [],
            tmp_path / "bad",
        )


def test_what_is_not_to_be_learnt_stays_marked_and_other_fields_are_refused_or_ignored_by_name(tmp_path):
    turns = [{"role": role, "content": f"{role} {i}"} for i in range(2) for role in ("user", "assistant")]
    turns[1]["weight"] = 0
    chats = source(tmp_path, [{"messages": turns, "hint": "use your head"}])
    with pytest.raises(ValueError, match=r"unused_field 1.*hint: 'use your head'.*decontaminate\.ignore_fields"):
        screen(DecontaminateSection(), read_chats, chats, [], tmp_path / "out")
    told = []
    cfg = DecontaminateSection(ignore_fields=("hint",))
    screen(cfg, read_chats, chats, [], tmp_path / "out", progress=lambda *done: told.append(done))
    [record] = read_jsonl(tmp_path / "out" / "records.jsonl")
    assert [m.get("learn", True) for m in record["messages"]] == [True, False, True, True]
    assert (1, 1, "records") in told


def test_a_file_that_was_recoded_is_in_the_stats(tmp_path):
    row = {"prompt": "码头在哪里？", "completion": "在港口的北边。"}
    (tmp_path / "a.jsonl").write_bytes(json.dumps(row, ensure_ascii=False).encode("gb18030"))
    stats = screen(
        DecontaminateSection(), read_chats, resolve([str(tmp_path / "a.jsonl")], "chat"), [], tmp_path / "out"
    )
    assert stats["changed/recoded_gb18030"] == 1 and stats["docs_out"] == 1
