"""Data preparation, measured: speed from ingest to shards, near-duplicates, languages and planted noise, side by side
with the usual tools.

    python benchmarks/dataprep.py CORPUS [--truth TRUTH] [--workers 1 2] [--only speed near language noise]

CORPUS is a JSONL file (.gz, .zst) of {"id", "text"}. TRUTH is JSONL of {"id", "kind", "lang", "dup_of"}: kind is
"plain", "exact_duplicate", "near_duplicate" or a kind of planted noise, and dup_of names the plain twin. Seconds are
processor seconds of this process and its workers, besides wall seconds, so that a busy machine does not change the
picture. Compiled code is warmed up first; the cold time is given.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pyarrow.parquet as pq

from pipeline.config import cleaning, data
from pipeline.data.clean import clean
from pipeline.data.decontaminate import decontaminate
from pipeline.data.dedup import dedup
from pipeline.data.ingest import ingest
from pipeline.data.language import identify, language
from pipeline.data.shard import shard
from pipeline.running.executor import close_workers
from pipeline.sources import resolve

WORDS = re.compile(
    r"[\u2e80-\u2fdf\u3005-\u3007\u3041-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U00031fff]|[^\W_]+?(?=[\W_\u2e80-\u9fff\uf900-\ufaff]|$)"
)
QUESTION = "Which of these {} statements about the history of printing in the province of Utrecht is right?"
EXAMS = [{"id": str(i), "set": "made", "text": QUESTION.format(i)} for i in range(1000)]


def stages(corpus: str, root: Path, workers: int):
    """The preparation as (name, function of no arguments), in order."""
    how = {"workers": workers}
    return [
        (
            "ingest",
            lambda: ingest(data.IngestSection(max_bad_share=0.05), resolve([corpus], "text"), root / "ingest", **how),
        ),
        ("clean", lambda: clean(cleaning.CleanSection(), root / "ingest", root / "clean", **how)),
        ("language", lambda: language(cleaning.LanguageSection(), root / "clean", root / "language", **how)),
        ("dedup", lambda: dedup(cleaning.DedupSection(), root / "language", root / "dedup", **how)),
        (
            "decontaminate",
            lambda: decontaminate(
                cleaning.DecontaminateSection(), root / "dedup", EXAMS, root / "decontaminate", **how
            ),
        ),
        ("shard", lambda: shard(data.ShardSection(), root / "decontaminate", root / "shard", **how)),
    ]


def cpu() -> float:
    """Processor seconds of this process and of its finished workers."""
    return sum(
        u.ru_utime + u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def speed(corpus: str, scratch: Path, worker_counts: list[int]) -> None:
    """Seconds and documents a second of each stage, for each number of workers; the artifacts of the last run stay in
    `scratch`."""
    walls = {}
    for number, workers in enumerate([1, *worker_counts]):
        shutil.rmtree(scratch / "prep", ignore_errors=True)
        warming = number == 0
        if workers > 1:
            for _, stage in stages(corpus, scratch / f"warm-{workers}", workers)[
                :4
            ]:  # workers stay for a minute: starting them is not timed
                stage()
        rows, began = [], time.perf_counter()
        for name, stage in stages(corpus, scratch / "prep", workers):
            wall, used = time.perf_counter(), cpu()
            metrics = stage()
            rows.append((name, metrics["docs_in"], metrics["docs_out"], time.perf_counter() - wall, cpu() - used))
        walls[workers] = time.perf_counter() - began
        if warming:
            print(f"first run, with what had to be compiled: {walls[workers]:.1f} s\n")
            continue
        close_workers()
        documents = rows[0][1]
        print(f"### {workers} worker{'s' * (workers > 1)}\n")
        print(
            "| stage | documents in | out | wall s | cpu s of this process | documents/s (wall)"
            " |\n|---|---|---|---|---|---|"
        )
        for name, n_in, n_out, wall, used in rows:
            print(f"| {name} | {n_in:,} | {n_out:,} | {wall:.2f} | {used:.2f} | {n_in / wall:,.0f} |")
        used = sum(row[4] for row in rows)
        print(
            f"| **all** | {documents:,} | {rows[-1][2]:,} | {walls[workers]:.2f} | {used:.2f} |"
            f" **{documents / walls[workers]:,.0f}** |\n"
        )
        if workers == 1:
            print(
                f"{documents / used:,.0f} documents a second of processor time, {documents / used / 67:.0f} times"
                " datatrove 0.10's 67 (measured apart)\n"
            )
    if len(walls) > 1:
        print(
            "speed-up over one worker (wall): "
            + ", ".join(f"{w} workers {walls[1] / s:.2f}" for w, s in walls.items())
            + "\n"
        )


def read(directory: Path) -> dict[str, dict]:
    """Documents of an artifact by the input's own id."""
    found = {}
    for path in sorted(directory.glob("part-*.parquet")):
        found.update({row["origin_id"]: row for row in pq.read_table(path).to_pylist() if row["origin_id"] is not None})
    return found


def plain_shingles(text: str) -> set[int]:
    """5-token shingles by a plain regular expression: the truth that the compiled kernels are held against."""
    tokens = WORDS.findall(text.lower())
    return {hash(tuple(tokens[i : i + 5])) for i in range(max(1, len(tokens) - 4))} if tokens else set()


def near(scratch: Path) -> None:
    """Recall and precision of near-dedup by true Jaccard, and signatures side by side with datasketch's bulk."""
    from datasketch import MinHash

    from pipeline.data.shingles import shingles
    from pipeline.kernels import minhash

    documents = read(scratch / "prep" / "language")
    kept = read(scratch / "prep" / "dedup")
    by_text: dict[str, str] = {}  # one document for each exact text, the kept one if any
    for name, row in sorted(documents.items(), key=lambda item: item[0] not in kept):
        by_text.setdefault("".join(row["text"].split()), name)
    names = sorted(by_text.values())
    texts = [documents[name]["text"] for name in names]
    pairs = every_pair(texts)
    rows = Counter()
    for i, j, similarity in pairs:
        lang = documents[names[i]]["lang"]
        found = names[i] not in kept or names[j] not in kept
        if similarity >= 0.8:
            rows[lang, "pairs at 0.8 and more"] += 1
            rows[lang, "found"] += found
    partners: dict[int, float] = {}
    for i, j, similarity in pairs:
        for a, b in ((i, j), (j, i)):
            if names[b] in kept:
                partners[a] = max(partners.get(a, 0), similarity)
    for i, name in enumerate(names):
        if name not in kept:
            rows[documents[name]["lang"], "near copies dropped"] += 1
            rows[documents[name]["lang"], "right"] += partners.get(i, 0) >= 0.7
    print("### Near-dedup by true Jaccard (plain Python sets)\n")
    print(
        "| language | pairs >= 0.8 | of which one is gone | recall | dropped | with a kept copy >= 0.7 | precision"
        " |\n|---|---|---|---|---|---|---|"
    )
    for lang in sorted({lang for lang, _ in rows}):
        p, f, d, r = (rows[lang, k] for k in ("pairs at 0.8 and more", "found", "near copies dropped", "right"))
        print(f"| {lang} | {p} | {f} | {f / max(p, 1):.2%} | {d} | {r} | {r / max(d, 1):.2%} |")
    sample = texts[:2000]
    used = time.process_time()
    oracle = MinHash.bulk([[" ".join(s).encode() for s in grams(t)] for t in sample], num_perm=128)
    theirs = time.process_time() - used
    a, b = minhash.permutations(128, 1)
    used = time.process_time()
    ours = minhash.signatures(*shingles(sample, 5), a, b)
    mine = time.process_time() - used
    assert len(ours) == len(oracle)
    rates = (
        f"datasketch bulk {len(sample) / theirs:,.0f} documents/s, ours {len(sample) / mine:,.0f} ({theirs / mine:.0f}"
        " times)"
    )
    print(f"\nsignatures of {len(sample)} documents: {rates}\n")


def grams(text: str) -> list[tuple[str, ...]]:
    tokens = WORDS.findall(text.lower())
    return [tuple(tokens[i : i + 5]) for i in range(max(1, len(tokens) - 4))]


def every_pair(texts: list[str]) -> list[tuple[int, int, float]]:
    """All pairs of true Jaccard 0.7 and more: candidates of 42 bands by 3 rows (misses one in 10**7 at 0.7), then plain
    sets."""
    import numpy as np

    from pipeline.data.shingles import band_keys, shingles
    from pipeline.kernels import minhash

    signatures = minhash.signatures(*shingles(texts, 5), *minhash.permutations(126, 7))
    found = set()
    for keys in band_keys(signatures, 42, 3):
        order = np.argsort(keys, kind="stable")
        found.update(map(tuple, order[minhash.group_pairs(keys[order], 10**9, 0)].tolist()))
    pairs = np.array(sorted({(min(p), max(p)) for p in found}), np.int64).reshape(-1, 2)
    pairs = pairs[minhash.agreement(signatures, signatures, pairs) >= 0.5]
    sets: dict[int, set[int]] = {}
    result = []
    for i, j in pairs.tolist():
        x, y = (sets.setdefault(k, plain_shingles(texts[k])) for k in (i, j))
        similarity = len(x & y) / max(len(x | y), 1)
        if similarity >= 0.7:
            result.append((i, j, similarity))
    return result


def load_truth(path: str) -> dict[str, dict]:
    import gzip

    with (gzip.open if path.endswith(".gz") else open)(path, "rt") as lines:
        return {entry["id"]: entry for entry in map(json.loads, lines)}


def languages(scratch: Path, truth: dict[str, dict]) -> None:
    """Which engine keeps what it should, and what it costs."""
    documents = read(scratch / "prep" / "ingest")
    judged = [
        (documents[n]["text"], t["lang"])
        for n, t in truth.items()
        if n in documents and t["kind"] in ("plain", "exact_duplicate", "near_duplicate")
    ]
    print(
        "### Language, kept = {zh, en}\n\n| engine | documents | documents/s | keep precision | keep recall | all right"
        " |\n|---|---|---|---|---|---|"
    )
    for engine, step in (("cascade", 1), ("fasttext", 1), ("langdetect", 40)):
        cfg, some = cleaning.LanguageSection(engine=engine), judged[::step]
        identify([text for text, _ in some[:200]], cfg)
        used = time.process_time()
        answers = [lang for lang, _ in identify([text for text, _ in some], cfg)]
        used = time.process_time() - used
        kept, wanted = [a in ("zh", "en") for a in answers], [lang in ("zh", "en") for _, lang in some]
        right = sum(k and w for k, w in zip(kept, wanted, strict=True))
        exact = sum(a == lang for a, (_, lang) in zip(answers, some, strict=True))
        print(
            f"| {engine} | {len(some):,} | {len(some) / used:,.0f} | {right / sum(kept):.2%} |"
            f" {right / sum(wanted):.2%} | {exact / len(some):.2%} |"
        )
    print()


def noise(scratch: Path, truth: dict[str, dict]) -> None:
    """What became of each kind of planted document."""
    ingested, cleaned, final = (read(scratch / "prep" / stage) for stage in ("ingest", "clean", "dedup"))
    kept_languages = read(scratch / "prep" / "language")
    squeeze = lambda row: "".join(row["text"].split())  # noqa: E731
    print("### Planted documents\n")
    print(
        "| kind | documents | dropped by clean | text equal to the twin's | left unlike the twin | handled | in the"
        " result |\n|---|---|---|---|---|---|---|"
    )
    for kind in sorted({t["kind"] for t in truth.values()} - {"plain"}):
        names = [n for n, t in truth.items() if t["kind"] == kind and n in ingested]
        dropped = sum(n not in cleaned for n in names)
        equal = sum(
            n in cleaned and squeeze(cleaned[n]) == squeeze(cleaned.get(truth[n]["dup_of"], {"text": ""}))
            for n in names
        )
        left = len(names) - dropped - equal
        handled = (len(names) - left) / max(len(names), 1)
        print(
            f"| {kind} | {len(names)} | {dropped} | {equal} | {left} | {handled:.1%} |"
            f" {sum(n in final for n in names)} |"
        )
    plain = [n for n, t in truth.items() if t["kind"] == "plain" and n in ingested]
    lost = sum(n not in cleaned for n in plain)
    foreign = sum(n in cleaned and n not in kept_languages for n in plain)
    copies = sum(n in kept_languages and n not in final for n in plain)
    print(
        f"\nplain documents: {len(plain):,}; lost by rules {lost} ({lost / len(plain):.2%}), by language {foreign}, as"
        f" duplicates {copies}\n"
    )


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--truth", help="needed by language and noise")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--only",
        nargs="+",
        choices=["speed", "near", "language", "noise"],
        default=["speed", "near", "language", "noise"],
    )
    args = parser.parse_args()
    os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(tempfile.gettempdir()) / "dataprep-numba"))
    with tempfile.TemporaryDirectory() as scratch:
        speed(args.corpus, Path(scratch), args.workers)
        if "near" in args.only:
            near(Path(scratch))
        if args.truth:
            truth = load_truth(args.truth)
            if "language" in args.only:
                languages(Path(scratch), truth)
            if "noise" in args.only:
                noise(Path(scratch), truth)


if __name__ == "__main__":
    main()
