"""Peak memory of data preparation on a large input: a JSONL file made from a seed goes through the stages, and the peak
of every process is printed.

    python benchmarks/memory_5gb.py [--gigabytes 5] [--workers 2] [--scratch DIR] [--until dedup] [--gzip]

Documents are made of sentences of made-up English and Chinese words; two in a hundred repeat an earlier one, two in a
hundred are an earlier one with another sentence. Peaks are VmHWM of /proc, of the coordinator and of each worker;
stages run one after the other in the same processes, so a later figure is never below an earlier one. Needs three to
four times the input's size of free disk.
"""

from __future__ import annotations

import argparse
import gzip
import os
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import orjson
from dataprep import stages

from pipeline.running import executor

GLUE = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "a",
    "is",
    "that",
    "it",
    "for",
    "was",
    "on",
    "with",
    "as",
    "are",
    "be",
    "this",
    "by",
    "have",
    "not",
)


def sentences(rng: random.Random, chinese: bool) -> np.ndarray:
    """40,000 sentences of 15 made-up words; one English word in three is a function word."""
    if chinese:
        words = ["".join(chr(rng.randrange(0x4E00, 0x5E00)) for _ in range(rng.randrange(1, 4))) for _ in range(20_000)]
        return np.array(["".join(rng.choices(words, k=15)) + "。" for _ in range(40_000)], object)
    words = [
        "".join(rng.choice("bcdfglmnprst") + rng.choice("aeiou") for _ in range(rng.randrange(1, 5)))
        for _ in range(20_000)
    ]
    words += [word for word in GLUE for _ in range(500)]
    return np.array([" ".join(rng.choices(words, k=15)) + ". " for _ in range(40_000)], object)


def document(rng: np.random.Generator, pool: np.ndarray) -> list[str]:
    """The sentences of a document, in paragraphs of four."""
    chosen = pool[rng.integers(len(pool), size=int(rng.integers(8, 100)))].tolist()
    for i in range(3, len(chosen), 4):
        chosen[i] += "\n"
    return chosen


def write(path: Path, size: int, squeeze: bool, seed: int = 0) -> int:
    """Write about `size` bytes of JSONL; returns the number of documents."""
    rng, made = np.random.default_rng(seed), random.Random(seed)
    pools = [sentences(made, chinese) for chinese in (False, True)]
    recent: list[tuple[list[str], int]] = []
    written = count = 0
    with gzip.open(path, "wb", 1) if squeeze else open(path, "wb") as file:
        while written < size:
            language, kind = int(rng.integers(2)), rng.random()
            if kind < 0.04 and recent:
                earlier, language = recent[int(rng.integers(len(recent)))]
                chosen = list(earlier)
                if kind < 0.02:
                    chosen[int(rng.integers(len(chosen)))] = pools[language][int(rng.integers(40_000))]
            else:
                chosen = document(rng, pools[language])
            if len(recent) < 5000:
                recent.append((chosen, language))
            else:
                recent[count % 5000] = (chosen, language)
            line = orjson.dumps({"id": count, "text": "".join(chosen)}) + b"\n"
            file.write(line)
            written, count = written + len(line), count + 1
    return count


def peak(pid: int | str) -> float:
    """VmHWM of a process in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def used(path: Path) -> float:
    """GB below a directory."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) / 1e9


def main() -> None:
    """Make the input, run the stages and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--scratch", help="where to work (default: a temporary directory)")
    parser.add_argument("--until", default="shard", help="the last stage to run")
    parser.add_argument("--gzip", action="store_true", help="compress the input")
    args = parser.parse_args()
    os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(tempfile.gettempdir()) / "dataprep-numba"))
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        root = Path(scratch)
        os.environ["PIPELINE_HOME"] = str(root / "home")
        source, began = root / f"made.jsonl{'.gz' * args.gzip}", time.perf_counter()
        if (child := os.fork()) == 0:  # so that making it counts for nothing
            write(source, int(args.gigabytes * 1e9), args.gzip)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit("the input could not be written")
        print(
            f"input: {source.stat().st_size / 1e9:.2f} GB, made in {time.perf_counter() - began:.0f} s; {args.workers}"
            " workers\n"
        )
        print("| stage | documents in | out | wall s | coordinator, peak MB | each worker, peak MB | artifact GB |")
        print("|---|---:|---:|---:|---:|---|---:|", flush=True)
        for name, stage in stages(str(source), root, args.workers):
            began = time.perf_counter()
            metrics = stage()
            wall = time.perf_counter() - began
            workers = " ".join(f"{peak(worker.process.pid):.0f}" for worker in executor._IDLE)
            counts = f"{metrics['docs_in']:,.0f} | {metrics['docs_out']:,.0f}"
            print(
                f"| {name} | {counts} | {wall:.0f} | {peak('self'):.0f} | {workers} | {used(root / name):.2f} |",
                flush=True,
            )
            if name == args.until:
                break
        executor.close_workers()


if __name__ == "__main__":
    main()
