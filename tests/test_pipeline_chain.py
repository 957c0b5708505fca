"""The data stages in a row: 1,000 hostile records are all accounted for, and a worker killed with -9 costs its own job
alone."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path

import pytest
from documents import CHINESE, ENGLISH, files, write

from pipeline.config import cleaning, data
from pipeline.data.clean import clean
from pipeline.data.decontaminate import decontaminate
from pipeline.data.dedup import dedup
from pipeline.data.ingest import ingest
from pipeline.data.language import language
from pipeline.data.shard import shard
from pipeline.running.executor import ShardFailed, close_workers
from pipeline.sources import resolve

EXAM = "Which of the seven bridges of the old harbour was built last, and who paid for the stones of it?"
ODD = "\u0000\u0007\u00ad\u200b\u200d\u202e\u2028\u3000\ufeff\ufffd\U000e0041\U0010ffff👩‍👩‍👧é\u0301ﬁ한글ไทยñß"
JUNK = (
    b'{"text": ',
    b'{"text": 1}',
    b'{"text": null}',
    b'{"text": ""}',
    b'{"text": "  "}',
    b"[]",
    b"3",
    b"null",
    b'"x"',
    b"\xff\xfe\xfa",
    b"\0\0\0",
    b'{"text": "\xed\xa0\x80"}',
    b'{"text": "caf\xe9"}',
    b'{"text": "\\ud83d alone"}',
    b"[[[[" * 500,
    b'{"messages": 3}',
    b'{"messages": [{"role": []}]}',
    b'{"text": {"a": [1]}}',
    b"NaN",
    b'{"id": 7}',
    b'{"text": "a", "text": 2}',
    b"{'text': 'x'}",
    b'{"text": "' + b"\\n" * 3000 + b'"}',
    b'{"text": "' + b"long " * 250_000 + b'"}',
    b'{"text": "' + "长".encode() * 200_000 + b'"}',
    b'{"text": "<html><body>' + b"<div>" * 400 + b'"}',
)


def hostile(seed: int, count: int):
    """Lines of JSONL: sound texts, copies, texts with odd characters put in anywhere, and what is no text at all."""
    rng = random.Random(seed)
    sentences = [s + end for text, end in ((ENGLISH, "."), (CHINESE, "。")) for s in text.split(end) if s.strip()]
    for i in range(count):
        kind = rng.randrange(8)
        text = " ".join(rng.choices(sentences, k=rng.randrange(1, 12)))
        if kind == 1:
            text = f"{EXAM} {text}"
        elif kind == 2:
            text = "".join(rng.choice(ODD) if rng.random() < 0.1 else c for c in text)
        elif kind == 3:
            text = (
                text.encode().decode("latin-1")
                if rng.random() < 0.5
                else f"<html><body><nav>menu</nav><p>{text}</p></body></html>"
            )
        elif kind == 4:
            text = "".join(
                chr(rng.choice((rng.randrange(0x20, 0xD800), rng.randrange(0xE000, 0x110000))))
                for _ in range(rng.randrange(300))
            )
        line = (
            rng.choice(JUNK)
            if kind == 5
            else json.dumps({"id": i, "text": text}, ensure_ascii=rng.random() < 0.3).encode()
        )
        if kind == 6:
            at = rng.randrange(1, len(line))
            line = line[:at] + bytes([rng.choice((0, 0x22, 0x5C, 0x7D, 0x80, 0xC3, 0xED, 0xFF))]) + line[at + 1 :]
        yield line.replace(b"\n", b" ")


def chain(source: Path, root: Path, workers: int) -> list[dict[str, float]]:
    """The metrics of every stage from files to shards."""
    how = {"workers": workers}
    exams = [{"id": "1", "set": "made", "text": EXAM}]
    return [
        ingest(
            data.IngestSection(max_bad_share=1, max_record_mb=1, part_mb=1),
            resolve([str(source)], "text"),
            root / "ingest",
            **how,
        ),
        clean(cleaning.CleanSection(), root / "ingest", root / "clean", **how),
        language(cleaning.LanguageSection(), root / "clean", root / "language", **how),
        dedup(cleaning.DedupSection(), root / "language", root / "dedup", **how),
        decontaminate(cleaning.DecontaminateSection(), root / "dedup", exams, root / "decontaminate", **how),
        shard(data.ShardSection(), root / "decontaminate", root / "shard", **how),
    ]


def test_a_thousand_hostile_records_are_all_accounted_for(tmp_path):
    lines = list(hostile(3, 1000))
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    stages = chain(tmp_path / "in.jsonl", tmp_path / "one", 1)
    assert stages[0]["docs_in"] == sum(bool(line.strip()) for line in lines)
    lost = [sum(n for rule, n in stage.items() if rule.startswith("dropped/")) for stage in stages]
    for before, stage, dropped in zip([None, *stages], stages, lost, strict=False):
        assert stage["docs_in"] == stage["docs_out"] + dropped and (
            before is None or stage["docs_in"] == before["docs_out"]
        )
    assert (
        stages[0]["docs_in"] == stages[-1]["docs_out"] + sum(lost) and all(lost[:-1]) and stages[-1]["docs_out"] > 100
    )
    assert {"dropped/broken_json", "dropped/invalid_utf8", "dropped/wrong_type", "dropped/too_long"} <= set(stages[0])
    assert chain(tmp_path / "in.jsonl", tmp_path / "two", 2) == stages
    for stage in ("ingest", "clean", "language", "dedup", "decontaminate", "shard/train", "shard/val"):
        assert files(tmp_path / "one" / stage) == files(tmp_path / "two" / stage), stage


def workers_of_this_process() -> list[int]:
    children = [
        int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()
    ]
    return [pid for pid in children if b"pipeline.running.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.parametrize(
    "stage, section",
    [(clean, cleaning.CleanSection()), (language, cleaning.LanguageSection()), (dedup, cleaning.DedupSection())],
)
def test_a_worker_killed_mid_stage_costs_its_own_job_alone(tmp_path, stage, section):
    rng = random.Random(1)
    words = [w for text in (ENGLISH, CHINESE) for w in text.replace("，", " ").split()]
    docs = write(tmp_path / "in", [f"{ENGLISH} {' '.join(rng.choices(words, k=60))}." for _ in range(1200)], parts=12)
    stage(section, docs, tmp_path / "whole")
    out, killed = tmp_path / "killed", []

    def kill(*_):
        if not killed and any(out.glob("part-*.parquet")):
            killed.extend(workers_of_this_process()[:1])
            os.kill(killed[0], signal.SIGKILL)

    close_workers()
    with pytest.raises(ShardFailed, match="killed by signal 9"):
        stage(section, docs, out, workers=2, progress=kill)
    markers = (
        out / "_run" / ("dedup/done/filter" if stage is dedup else "done")
    )  # a part whose marker the kill forestalled is made again
    marked = [out / f"part-{int(marker.stem):05d}.parquet" for marker in markers.glob("*.json")]
    finished = {path: path.stat().st_mtime_ns for path in marked}
    assert killed and 0 < len(finished) < 12
    stage(section, docs, out, workers=2)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert files(out) == files(tmp_path / "whole")


def test_one_enormous_document_is_dropped_with_a_reason_or_goes_through_whole(tmp_path):
    """Eight million characters in a line: more than a batch may hold, in a file of pieces of a megabyte."""
    rng = random.Random(0)
    words = ["".join(rng.choices("bcdfglmnprstaeiou", k=rng.randrange(2, 9))) for _ in range(20_000)] + [
        "the",
        "of",
        "and",
        "to",
        "in",
    ] * 2000
    enormous = "\n".join(" ".join(rng.choices(words, k=12)).capitalize() + "." for _ in range(130_000))
    assert len(enormous) > 8_000_000
    texts = [f"{ENGLISH} Number {i} of those around it, which are {i} more." for i in range(20)]
    texts.insert(10, enormous)
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(texts)))
    ingest(data.IngestSection(), resolve([str(source)], "text"), tmp_path / "ingest")
    assert clean(cleaning.CleanSection(), tmp_path / "ingest", tmp_path / "dropped")["dropped/too_long"] == 1
    clean(cleaning.CleanSection(max_characters=10**8), tmp_path / "ingest", tmp_path / "clean")
    language(cleaning.LanguageSection(), tmp_path / "clean", tmp_path / "language")
    dedup(cleaning.DedupSection(), tmp_path / "language", tmp_path / "dedup")
    decontaminate(
        cleaning.DecontaminateSection(),
        tmp_path / "dedup",
        [{"id": "1", "set": "made", "text": EXAM}],
        tmp_path / "decontaminate",
    )
    stats = shard(data.ShardSection(val_share=0), tmp_path / "decontaminate", tmp_path / "shard")
    assert stats["train_chars"] > len(enormous)


def teardown_module():
    close_workers()
