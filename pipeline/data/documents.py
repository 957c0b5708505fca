"""Documents on disk, as every data stage reads and writes them: Parquet parts, ``stats.json`` and ``samples.jsonl``.

A stage cuts its input into jobs of whole row groups. The cut depends on the input alone, never on the number of
workers, and each job writes one part; so the output's bytes do not depend on how it was run.
"""

from __future__ import annotations

import json
import shutil
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.counted import SAMPLES
from pipeline.running.jobs import Job
from storage.files import whole, write_text

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("lang", pa.string()),
        ("source", pa.string()),
        ("path", pa.string()),
        ("line", pa.int64()),
        ("origin_id", pa.string()),
        ("kind", pa.string()),
    ]
)
ROW_GROUP = 1024
PARQUET: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 3,
    "use_dictionary": ["lang", "source", "path", "kind"],
    "write_statistics": ["id", "line"],
}
"""How shards, which are kept for training, are written."""
WORKING: dict[str, Any] = {**PARQUET, "compression": "none", "compression_level": None}
"""How the stages before them write their parts: as they are, which takes 1.6 times the room of LZ4 and a third of its
time (docs/benchmarks.md)."""
EXCERPT = 400


def parts(docs: Path) -> list[Path]:
    """The Parquet parts of a document artifact, in order. ValueError when there is none."""
    found = sorted(docs.glob("part-*.parquet"))
    if not found:
        raise ValueError(f"{docs} holds no part-*.parquet: it is not a document artifact")
    return found


def plan(docs: Path) -> list[Job]:
    """Cut an artifact into jobs ``{"shard", "part", "groups", "rows", "first"}`` of whole row groups.

    About 16 jobs for a small artifact, up to 16,384 rows a job for a large one; ``first`` is the global number of its
    first row.
    """
    groups = [(part, g, n) for part in parts(docs) for g, n in enumerate(_group_rows(part))]
    total = sum(n for *_, n in groups)
    size = min(max(total // 16, 512), 16_384)
    jobs: list[Job] = []
    first = 0
    for part, group, rows in groups:
        if jobs and jobs[-1]["part"] == str(part) and jobs[-1]["rows"] + rows <= size:
            jobs[-1]["groups"].append(group)
            jobs[-1]["rows"] += rows
        else:
            jobs.append({"part": str(part), "groups": [group], "rows": rows, "first": first})
        first += rows
    for i, job in enumerate(jobs):
        job["shard"] = f"{Path(job['part']).name} row groups {job['groups'][0]}-{job['groups'][-1]}"
        job["index"] = i
    return jobs


def _group_rows(part: Path) -> list[int]:
    meta = pq.ParquetFile(part).metadata
    return [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]


def read_job(job: Job, columns: list[str] | None = None) -> pa.Table:
    """The rows of one job; all columns of :data:`SCHEMA` unless fewer are named."""
    file = pq.ParquetFile(job["part"])
    table = file.read_row_groups(job["groups"], columns=columns or SCHEMA.names, use_threads=False)
    return table.cast(SCHEMA) if columns is None else table


def write_part(out: Path, index: int, table: pa.Table) -> None:
    """Write part ``index`` of an artifact under a temporary name and rename it into place."""
    path = out / f"part-{index:05d}.parquet"
    with whole(path) as partial:
        pq.write_table(table, partial, row_group_size=ROW_GROUP, **WORKING)


def write_kept(out: Path, job: Job, table: pa.Table, keep: np.ndarray) -> pa.Table:
    """Write the rows of a job that stay (bool [rows]) and return them. A part that stays whole is copied, not made
    again."""
    table = table if keep.all() else table.filter(pa.array(keep, pa.bool_()))
    if keep.all() and job["rows"] == pq.ParquetFile(job["part"]).metadata.num_rows and job["rows"] <= ROW_GROUP:
        path = out / f"part-{job['index']:05d}.parquet"
        with whole(path) as partial:
            shutil.copyfile(job["part"], partial)
    else:
        write_part(out, job["index"], table)
    return table


class Tally:
    """Counts and samples of one job; JSON in, JSON out, and merged by :func:`finish`."""

    def __init__(self) -> None:
        self.numbers: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.changed: Counter[str] = Counter()
        self.by: dict[str, dict[str, Counter[str]]] = {"by_source": {}, "by_lang": {}}
        self.samples: dict[str, list[dict[str, Any]]] = {}

    def count(self, side: str, table: pa.Table) -> None:
        """Add a table's documents and characters under ``docs_<side>`` and ``chars_<side>`` (side "in" or "out")."""
        import pyarrow.compute as pc

        self.numbers[f"docs_{side}"] += table.num_rows
        # pyarrow makes these functions on import
        total = pc.sum(pc.utf8_length(table["text"]))  # pyright: ignore[reportAttributeAccessIssue]
        self.numbers[f"chars_{side}"] += total.as_py() or 0
        for key, column in (("by_source", "source"), ("by_lang", "lang")):
            for entry in table[column].value_counts().to_pylist():
                name = entry["values"] if entry["values"] is not None else "unknown"
                self.by[key].setdefault(name, Counter())[f"docs_{side}"] += entry["counts"]

    def note(
        self, action: str, rule: str, place: dict[str, Any], texts: Callable[[], tuple[str, str]], why: str
    ) -> None:
        """Count `rule` as dropped, changed or masked, and keep a sample if its id is among the smallest.

        place: the document's id, source, path and line; texts: gives the excerpts (before, after), called only for a
        sample kept.
        """
        (self.dropped if action == "dropped" else self.changed)[rule] += 1
        found = self.samples.setdefault(rule, [])
        if len(found) == SAMPLES and _order(place) >= _order(found[-1]):
            return
        before, after = texts()
        sample = {
            "rule": rule,
            "action": action,
            **place,
            "before": before[:EXCERPT],
            "after": after[:EXCERPT],
            "why": why,
        }
        insort(found, sample, key=_order)
        del found[SAMPLES:]

    def json(self) -> Job:
        """The job's result as JSON."""
        return {
            "numbers": self.numbers,
            "dropped": self.dropped,
            "changed": self.changed,
            **self.by,
            "samples": self.samples,
        }


def finish(out: Path, results: Iterable[Job], **extra: object) -> dict[str, Any]:
    """Merge the jobs' tallies into ``stats.json`` and ``samples.jsonl`` and return the statistics."""
    stats: dict[str, Any] = {
        "docs_in": 0,
        "docs_out": 0,
        "chars_in": 0,
        "chars_out": 0,
        "dropped": {},
        "changed": {},
        "by_source": {},
        "by_lang": {},
    }
    samples: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        _add(stats, result["numbers"])
        for key in ("dropped", "changed"):
            _add(stats[key], result[key])
        for key in ("by_source", "by_lang"):
            for name, counts in result[key].items():
                _add(stats[key].setdefault(name, {"docs_in": 0, "docs_out": 0}), counts)
        for rule, found in result["samples"].items():
            samples.setdefault(rule, []).extend(found)
    stats.update(extra)
    with open(out / "samples.jsonl", "w", encoding="utf-8") as lines:
        for rule in sorted(samples):
            for sample in sorted(samples[rule], key=_order)[:SAMPLES]:
                lines.write(json.dumps(sample, ensure_ascii=False) + "\n")
    write_text(out / "stats.json", json.dumps(stats, ensure_ascii=False, indent=1, sort_keys=True) + "\n")
    return stats


def _order(sample: dict[str, Any]) -> tuple[str, int]:
    """Samples of the smallest ids are kept: ids are hashes, so that is a random choice which no sharding changes."""
    return sample["id"], sample["line"]


def first_difference(a: str, b: str) -> int:
    """The first index at which two texts differ; the shorter one's length if it begins the other."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


def flat(stats: dict[str, Any]) -> dict[str, float]:
    """The statistics as flat metrics: ``dropped/<rule>`` and so on; histograms and lists stay in the file."""
    metrics = {}
    for key, value in stats.items():
        if isinstance(value, (int, float)):
            metrics[key] = value
        elif key in ("dropped", "changed"):
            metrics.update({f"{key}/{rule}": n for rule, n in value.items()})
    return metrics


def _add(into: dict[str, Any], counts: dict[str, int]) -> None:
    for key, n in counts.items():
        into[key] = into.get(key, 0) + n
