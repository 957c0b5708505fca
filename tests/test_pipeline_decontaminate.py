"""The decontaminate stage: whole and partial overlaps, short items, sets made from training data, reports."""

from __future__ import annotations

import json

import pytest
from documents import CHINESE, ENGLISH, files, rows, write

from pipeline.config.cleaning import DecontaminateSection
from pipeline.data.decontaminate import decontaminate

OTHER = (
    "Nothing in this document was ever asked in an examination, however long one looks for it in the books of the"
    " world."
)
EVALS = [
    {
        "id": "1",
        "set": "quiz",
        "text": "What the tokenizer has never seen it spells in bytes, and nothing is ever lost on the way.",
    },
    {"id": "2", "set": "quiz", "text": "这些小块是从语料里学来的，常见的词是一个整体，少见的词由几块拼成。"},
    {"id": "3", "set": "quiz", "text": "rare words are several PIECES? What the"},
    {
        "id": "4",
        "set": "quiz",
        "text": "Why does the sky look blue by day and red in the evening over the sea in the far west of the land?",
    },
    {"id": "5", "set": "quiz", "text": "Why?"},
    {
        "id": "6",
        "set": "own",
        "text": "Nothing in this document was ever asked in an examination, however long one looks for it",
    },
]


def results(out) -> dict[str, tuple[str, int]]:
    return {
        e["id"]: (e["result"], e["documents"])
        for e in map(json.loads, (out / "contamination.jsonl").read_text().splitlines())
    }


def test_documents_that_hold_items_are_dropped_and_items_judged(tmp_path):
    docs = write(tmp_path / "in", [ENGLISH, CHINESE, OTHER, "rare words are several pieces! " + OTHER[60:]])
    cfg = DecontaminateSection(in_distribution=["own"])
    stats = decontaminate(cfg, docs, EVALS, tmp_path / "out")
    assert [r["line"] for r in rows(tmp_path / "out")] == [3, 4]
    assert results(tmp_path / "out") == {
        "1": ("overlapping", 1),
        "2": ("overlapping", 1),
        "3": ("clean", 0),
        "4": ("clean", 0),
        "5": ("too_short", 0),
        "6": ("in_distribution", 1),
    }
    assert stats["dropped/contaminated"] == 2 and stats["items/clean"] == 2
    sample = json.loads((tmp_path / "out" / "samples.jsonl").read_text().splitlines()[0])
    assert "evaluation item quiz/" in sample["why"]


def test_report_drops_nothing_and_chats_are_searched_too(tmp_path):
    chat = f"<|im_start|>user\n{EVALS[3]['text']}<|im_end|>\n"
    docs = write(tmp_path / "in", [ENGLISH, {"text": chat, "kind": "chat"}])
    stats = decontaminate(DecontaminateSection(action="report"), docs, EVALS, tmp_path / "out")
    assert stats["docs_out"] == 2 and results(tmp_path / "out")["4"] == ("overlapping", 1)
    assert stats["changed/overlap_reported"] == 2


def test_a_stock_phrase_in_a_long_item_is_no_overlap(tmp_path):
    phrase = "It is a truth universally acknowledged, that a single man in possession of a good fortune"
    item = {"id": "1", "set": "quiz", "text": f"{phrase}, must be in want of a wife. {OTHER}"}
    docs = write(tmp_path / "in", [f"{ENGLISH} {phrase} was here."])
    assert decontaminate(DecontaminateSection(), docs, [item], tmp_path / "out")["docs_out"] == 1
    assert decontaminate(DecontaminateSection(min_share=0.05), docs, [item], tmp_path / "strict")["docs_out"] == 0


def test_same_bytes_for_any_workers_and_no_evaluation_at_all(tmp_path):
    docs = write(tmp_path / "in", [ENGLISH, OTHER, CHINESE] * 60, parts=3)
    one = decontaminate(DecontaminateSection(), docs, EVALS, tmp_path / "one")
    assert one == decontaminate(DecontaminateSection(), docs, EVALS, tmp_path / "two", workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two") and one["docs_out"] == 0
    assert decontaminate(DecontaminateSection(), docs, [], tmp_path / "none")["docs_out"] == 180


def test_items_that_lack_fields_are_named(tmp_path):
    with pytest.raises(ValueError, match="evaluation items 1, 2"):
        items = [EVALS[0], {"id": "2"}, {"id": 3, "set": "q", "text": "t"}]
        decontaminate(DecontaminateSection(), write(tmp_path / "in", [ENGLISH]), items, tmp_path / "out")
