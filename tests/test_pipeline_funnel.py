"""The funnel page is made from what the stages leave, is self-contained, escapes what the data says, and is the same
bytes again."""

import json

import pytest
from pages_helpers import EVIL, Page

from pipeline.config.data import IngestSection, ShardSection
from pipeline.data.ingest import ingest
from pipeline.data.shard import shard
from pipeline.pages.funnel.page import write_funnel
from pipeline.pages.parts.forms import Piece, count, marked, share
from pipeline.sources import resolve


def stage(path, samples=(), pairs=(), **stats):
    path.mkdir(parents=True, exist_ok=True)
    base = {
        "docs_in": 0,
        "docs_out": 0,
        "chars_in": 0,
        "chars_out": 0,
        "dropped": {},
        "changed": {},
        "by_source": {},
        "by_lang": {},
    }
    (path / "stats.json").write_text(json.dumps({**base, **stats}))
    for name, lines in (("samples.jsonl", samples), ("pairs.jsonl", pairs)):
        (path / name).write_text(
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
        )
    return path


def test_a_page_from_all_that_stages_can_leave(tmp_path):
    place = {"id": "0", "source": "s", "path": "f.jsonl", "line": 1234}
    spam = {"rule": "spam", "action": "dropped", **place, "before": EVIL, "after": "", "why": "three <b> words"}
    email = {"rule": "email", "action": "masked", **place, "why": "personal data"}
    email |= {"before": "to a@b.c now", "after": "to <EMAIL> now"}
    near = {"similarity": 0.9, "a": "x", "b": "y", "copies": True, "text_a": "same text one", "text_b": EVIL}
    stages = {
        "clean": stage(
            tmp_path / "clean",
            [spam, email],
            docs_in=2_000_000,
            docs_out=1_500_000,
            chars_in=9,
            chars_out=8,
            dropped={"spam": 499_999, "short": 1},
            changed={"email": 7},
            by_source={EVIL: {"docs_in": 2_000_000, "docs_out": 1_500_000}},
            by_lang={"unknown": {"docs_in": 2_000_000, "docs_out": 1_500_000}},
        ),
        "dedup": stage(
            tmp_path / "dedup",
            pairs=[near],
            docs_in=1_500_000,
            docs_out=1_400_000,
            dropped={"near_duplicate": 100_000},
            candidate_pairs=5,
            verified_pairs=2,
            clusters=1,
            similarity_histogram={"edges": [0.5, 0.75, 1.0], "pairs": [3, 2], "threshold": 0.75},
            by_lang={"zh": {"docs_in": 5, "docs_out": 4}},
        ),
        "decontaminate": stage(
            tmp_path / "decontaminate",
            docs_in=1_400_000,
            docs_out=1_400_000,
            evaluation={"mmlu": {"clean": 9, "overlapping": 1}},
        ),
    }
    (tmp_path / "tokens").mkdir()
    splits = {"train": {"sequences": 10, "tokens": 1000, "bytes": 3500, "supervised": 1000}}
    (tmp_path / "tokens/meta.json").write_text(json.dumps({"splits": splits, "vocab_size": 6400}))
    chats = stage(
        tmp_path / "chats", docs_in=321, docs_out=300, dropped={"no_answer": 21}, evaluation={"mmlu": {"clean": 10}}
    )
    path = write_funnel(stages, tmp_path, tokens=tmp_path / "tokens", records={"chats": chats})
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    page.is_whole_and_alone()
    assert page.words.count(EVIL.split()[0]) >= 3  # the source's name, the sample, the pair
    parts = [
        *("2 M → 1.4 M", "1,000", "3.50 bytes a token", "499,999", "&lt; 0.1 %", "2 M came in", "f.jsonl, line 1,234"),
        *("<del>a@b.c</del>", "<ins>&lt;EMAIL&gt;</ins>", "threshold 0.75", "near duplicate", "mmlu", "Personal data"),
        *("321", "no answer"),
    ]
    assert not [part for part in parts if part not in text]
    assert (
        path.read_bytes()
        == write_funnel(stages, tmp_path, tokens=tmp_path / "tokens", records={"chats": chats}).read_bytes()
    )


def test_a_page_from_real_stages(tmp_path, monkeypatch):
    monkeypatch.setenv("PIPELINE_HOME", str(tmp_path / "home"))
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(60)) + "broken\n")
    ingest(IngestSection(), resolve([str(source)], "text"), tmp_path / "ingest")
    shard(ShardSection(), tmp_path / "ingest", tmp_path / "shard", history={"ingest": tmp_path / "ingest"})
    text = write_funnel({"ingest": tmp_path / "ingest", "shard": tmp_path / "shard"}, tmp_path).read_text(
        encoding="utf-8"
    )
    assert (
        "61 → 60" in text
        and "broken json" in text
        and "in.jsonl, line 61" in text
        and "Training and validation" in text
    )
    with pytest.raises(ValueError, match="nothing to report"):
        write_funnel({"none": tmp_path / "home"}, tmp_path)


def test_numbers_and_differences():
    assert [count(n) for n in (0, 999_999, 1_234_567, 2_500_000_000)] == ["0", "999,999", "1.23 M", "2.5 B"]
    shares = [share(1, 0), share(1, 10_000), share(1, 3), share(9_999, 10_000), share(3, 3)]
    assert shares == ["–", "< 0.1 %", "33.3 %", "> 99.9 %", "100.0 %"]
    assert marked("一二三", "一四三") == (
        [Piece("一"), Piece("二", "del"), Piece("三")],
        [Piece("一"), Piece("四", "ins"), Piece("三")],
    )
