"""The dedup stage: signatures equal to datasketch's, exact and near copies, the copy that stays, earlier artifacts,
same bytes."""

from __future__ import annotations

import json
import random
import re

import numpy as np
import pytest
from datasketch import MinHash
from documents import CHINESE, ENGLISH, files, rows, write
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.cleaning import DedupSection
from pipeline.data.dedup import dedup
from pipeline.data.shingles import shingles
from pipeline.kernels import minhash
from pipeline.running.executor import ShardFailed

WORDS = re.compile(r"[\u3400-\u9fff\u3041-\u30ff]|[^\W_\u3400-\u9fff\u3041-\u30ff]+")


def plain_shingles(text: str, n: int = 5) -> set[tuple[str, ...]]:
    tokens = WORDS.findall(text.lower())
    return {tuple(tokens[i : i + n]) for i in range(max(1, len(tokens) - n + 1))} if tokens else set()


def true_jaccard(a: str, b: str) -> float:
    x, y = plain_shingles(a), plain_shingles(b)
    return len(x & y) / len(x | y)


def essay(seed: int, language: str, size: int = 220) -> list[str]:
    """Tokens of a text of its own: random words (or characters), so that two essays share nothing."""
    draw = random.Random(seed)
    if language == "zh":
        return [chr(draw.randrange(0x4E00, 0x5E00)) for _ in range(size)]
    return ["".join(draw.choice("abcdefghijklmnop") for _ in range(6)) for _ in range(size)]


def corpus(pairs: int) -> list[str]:
    """Essays and copies of them with one to twelve replaced tokens: Jaccard similarities from 0.5 to 0.96, both
    languages."""
    texts = []
    for i in range(pairs):
        language = ("zh", "en")[i % 2]
        tokens = essay(i, language)
        changed = list(tokens)
        for at, new in zip(range(7, 220, 220 // (1 + i % 12)), essay(10_000 + i, language), strict=False):
            changed[at] = new
        glue = "" if language == "zh" else " "
        texts += [glue.join(tokens), glue.join(changed)]
    return texts


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=30), max_size=5), st.integers(1, 50))
def test_signatures_equal_datasketch_bit_for_bit(sets, seed):
    flat = np.array([h for s in sets for h in s], np.uint32)
    offsets = np.cumsum([0, *map(len, sets)])
    ours = minhash.signatures(flat, offsets, *minhash.permutations(128, seed))
    for hashes, signature in zip(sets, ours, strict=True):
        oracle = MinHash(num_perm=128, seed=seed, scheme="affine32", hashfunc=lambda h: h)
        oracle.update_batch(hashes)
        assert np.array_equal(signature, oracle.hashvalues)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ab cé中文字カナ1_.,\n", max_size=60), max_size=4), st.integers(1, 6))
def test_shingles_are_those_of_a_plain_implementation(texts, n):
    hashes, offsets = shingles(texts, n)
    for i, text in enumerate(texts):
        assert len(set(hashes[offsets[i] : offsets[i + 1]].tolist())) == len(plain_shingles(text, n))
    again, _ = shingles([t.upper().replace(" ", "  ") for t in texts], n)
    assert np.array_equal(hashes, again)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), max_size=30))
def test_union_find_and_choice(edges):
    pairs = np.array(edges, np.int64).reshape(-1, 2)
    group = minhash.components(16, pairs)
    assert all(group[a] == group[b] for a, b in edges) and all(group[g] == g <= i for i, g in enumerate(group))
    both = sorted({*edges, *((b, a) for a, b in edges)})
    starts = np.searchsorted(np.array([a for a, _ in both], np.int64), np.arange(17))
    copy_of = minhash.choose(starts, np.array([b for _, b in both], np.int64), np.arange(16))
    kept = {i for i in range(16) if copy_of[i] < 0}
    assert all((i, copy_of[i]) in both and copy_of[i] in kept for i in range(16) if i not in kept)
    assert not any(a in kept and b in kept and a != b for a, b in both)


def test_near_copies_by_true_similarity(tmp_path):
    texts = corpus(240)
    dedup(DedupSection(), write(tmp_path / "in", texts), tmp_path / "out")
    kept = {int(r["origin_id"]) for r in rows(tmp_path / "out")}
    similar = [true_jaccard(texts[i], texts[i + 1]) for i in range(0, len(texts), 2)]
    gone = [not {i, i + 1} <= kept for i in range(0, len(texts), 2)]
    assert all(g == (s >= 0.75) for g, s in zip(gone, similar, strict=True) if abs(s - 0.75) > 1e-6)
    assert 50 < sum(gone) < 200
    pairs = [json.loads(line) for line in (tmp_path / "out" / "pairs.jsonl").read_text().splitlines()]
    assert pairs and all(p["copies"] == (p["similarity"] >= 0.75) and p["text_a"] != p["text_b"] for p in pairs)


def test_the_longest_then_the_smallest_id_stays_and_chats_lose_exact_copies_only(tmp_path):
    longer = f"{CHINESE}还有一句。"
    ids = {"id": "b" * 32}, {"id": "a" * 32}, {"id": "c" * 32}
    texts = [
        {"text": ENGLISH, **ids[0]},
        {"text": ENGLISH.replace(" ", "\n"), **ids[1]},
        {"text": ENGLISH, **ids[2]},
        CHINESE,
        longer,
    ]
    chat = {"text": "<|im_start|>user\n" + ENGLISH, "kind": "chat"}
    docs = write(tmp_path / "in", [*texts, chat, dict(chat), {**chat, "text": chat["text"] + " x"}])
    stats = dedup(DedupSection(), docs, tmp_path / "out")
    kept = [r["text"] for r in rows(tmp_path / "out")]
    assert kept == [texts[1]["text"], longer, chat["text"], chat["text"] + " x"]
    assert (stats["dropped/exact_duplicate"], stats["dropped/near_duplicate"]) == (3, 1)
    assert dedup(DedupSection(near=False), docs, tmp_path / "exact")["docs_out"] == 5


def test_what_earlier_artifacts_hold_is_dropped(tmp_path):
    earlier = write(tmp_path / "earlier", [ENGLISH, CHINESE[:-12]])
    docs = write(tmp_path / "in", [CHINESE, ENGLISH, "Something else entirely, of which nobody has written before."])
    stats = dedup(DedupSection(), docs, tmp_path / "out", against=[earlier])
    assert [r["line"] for r in rows(tmp_path / "out")] == [3] and stats["docs_in"] == 3


def test_same_result_for_any_workers_and_shards(tmp_path):
    texts = corpus(100) + corpus(30)
    runs = {}
    for name, parts, workers in (("one", 1, 1), ("two", 1, 2), ("five", 5, 1)):
        docs = write(tmp_path / f"in-{name}", texts, parts=parts)
        runs[name] = dedup(DedupSection(), docs, tmp_path / name, workers=workers)
    assert runs["one"] == runs["two"] == runs["five"]
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert rows(tmp_path / "one") == rows(tmp_path / "five")
    for name in ("pairs.jsonl", "stats.json", "samples.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "five" / name).read_bytes()


def test_a_failed_run_is_resumed(tmp_path, monkeypatch):
    docs = write(tmp_path / "in", corpus(60), parts=2)
    whole = dedup(DedupSection(), docs, tmp_path / "whole")
    with monkeypatch.context() as broken:
        broken.setattr(minhash, "jaccard", None)
        with pytest.raises((ShardFailed, TypeError)):
            dedup(DedupSection(), docs, tmp_path / "out")
    surveyed = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "_run" / "dedup").glob("signature-*.npy")}
    with monkeypatch.context() as checked:
        checked.setattr(minhash, "signatures", None)  # a second survey would fail
        assert surveyed and dedup(DedupSection(), docs, tmp_path / "out") == whole
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_impossible_bands_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"dedup\.bands x dedup\.rows"):
        dedup(DedupSection(bands=64, rows=4), write(tmp_path / "in", [ENGLISH]), tmp_path / "out")
    assert dedup(DedupSection(), write(tmp_path / "none", []), tmp_path / "empty")["docs_out"] == 0
