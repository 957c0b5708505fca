"""The shard stage: the final split, mix and order of the documents, as Parquet shards with a data card.

A document goes to validation by the hash of its id, so it stays there whatever else is added; repeats (weights above 1)
are for training alone. Documents are ordered by a seeded hash, which mixes the sources evenly. Three passes, each
parallel over shards and in memory bounded by one part: survey (hashes only), scatter (each input shard into slices by
output part), gather (each output part from its slices, sorted). The bytes depend on the documents and the config, not
on how they were divided before or on the number of workers.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from pipeline.config.base import Progress, quiet
from pipeline.config.data import ShardSection
from pipeline.data.datacard import write_datacard
from pipeline.data.documents import PARQUET, SCHEMA, Tally, finish, flat, plan, read_job
from pipeline.running.executor import run_shards
from pipeline.running.jobs import Job
from storage.files import discard, whole

SPLITS = ("train", "val")
_ORDERED = SCHEMA.append(pa.field("order", pa.uint64()))
_TOP = 2**64
_PARTS, _LEAST = 8, 1 << 20
_SPLIT, _WEIGHT, _ORDER = 1, 2, 3
"""The uses of a document's hash; copy k of a repeated document is ordered by use _ORDER + k."""


def shard(
    cfg: ShardSection, docs: Path, out: Path, *, history: Mapping[str, Path] | None = None,
    workers: int = 1, engine: str = "local", progress: Progress = quiet,
) -> dict[str, Any]:  # fmt: skip
    """Write ``out/train/part-*.parquet``, ``out/val/part-*.parquet``, ``README.md`` and ``datacard.json``; returns flat
    metrics.

    ``history`` names the artifacts of the stages before, in order, for the data card. With at least two documents one
    is in validation (of each kind that has two), unless ``val_share`` is 0, and one in training. A weight or licence of
    a source that is not there (a preset's, of its own sources) is passed over. Raises ValueError when nothing is left
    to train on.
    """
    work = out / "_run" / "shard"
    common = {"weights": cfg.weights, "seed": cfg.seed, "work": str(work), "out": str(out)}
    jobs = [{**common, **job} for job in plan(docs)]
    run = {"workers": workers, "engine": engine}
    surveys = run_shards(survey_job, jobs, done=work / "survey", **run)
    cfg = _of_sources(cfg, surveys)
    below = _thresholds(cfg, surveys)
    buckets = _buckets(cfg, sum(survey["bytes"] for survey in surveys))
    scatter = [{**job, "below": below, "buckets": buckets} for job in jobs]
    scattered = run_shards(scatter_job, scatter, done=work / "scatter", progress=progress, **run)
    gather = _gather_jobs(cfg, common, scattered)
    if not any(job["split"] == "train" for job in gather):
        raise ValueError(f"{docs}: no document is left to train on; shard.weights or shard.val_share leave none")
    for split in SPLITS:
        (out / split).mkdir(parents=True, exist_ok=True)
    gathered = run_shards(gather_job, gather, done=work / "gather", progress=progress, **run)
    splits = {
        split: _sum(result for job, result in zip(gather, gathered, strict=True) if job["split"] == split)
        for split in SPLITS
    }
    stats = finish(out, [*scattered, *gathered], splits=splits)
    write_datacard(out, cfg, stats, history or {})
    discard(work / "slices")
    return {**flat(stats), **{f"{split}_{key}": splits[split][key] for split in SPLITS for key in ("docs", "chars")}}


def _hashes(ids: pa.ChunkedArray) -> np.ndarray:
    """uint64 hash of every id; :func:`_mixed` makes independent ones of it."""
    return np.fromiter(
        (xxhash.xxh3_64_intdigest(name) for name in ids.cast(pa.binary()).to_pylist()), np.uint64, len(ids)
    )


def _mixed(hashes: np.ndarray, seed: int, use: int) -> np.ndarray:
    """Another hash of the same documents for every (seed, use): the finaliser of SplitMix64 (Steele et al. 2014)."""
    z = hashes + np.uint64((seed * 1000003 + use * 0x9E3779B97F4A7C15) % _TOP)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _looked_up(column: pa.ChunkedArray, values: Mapping[str, Any], default: Any, dtype: Any) -> np.ndarray:
    """``values[name]`` for every name in a column of few distinct ones."""
    coded = column.combine_chunks().dictionary_encode()
    return np.array([values.get(name, default) for name in coded.dictionary.to_pylist()], dtype)[
        coded.indices.to_numpy()
    ]


def survey_job(job: Job) -> Job:
    """Per kind the number of documents with a weight above 0 and their smallest and largest split hash; the sources'
    names; the texts' bytes."""
    table = read_job(job, ["id", "text", "source", "kind"])
    hashes = _mixed(_hashes(table["id"]), job["seed"], _SPLIT)
    used = _looked_up(table["source"], job["weights"], 1, np.float64) > 0
    found = {}
    for kind in sorted(table["kind"].unique().to_pylist()):
        mine = hashes[used & _looked_up(table["kind"], {kind: True}, False, bool)]
        if len(mine):
            found[kind] = {"docs": len(mine), "min": int(mine.min()), "max": int(mine.max())}
    # pyarrow makes these functions on import
    size = pc.sum(pc.binary_length(table["text"])).as_py() or 0  # pyright: ignore[reportAttributeAccessIssue]
    return {
        "kinds": found,
        "sources": sorted(table["source"].unique().to_pylist()),
        "bytes": size,
    }


def _of_sources(cfg: ShardSection, surveys: list[Job]) -> ShardSection:
    """The section without what it says of sources that have no document here."""
    names = {name for survey in surveys for name in survey["sources"]}
    kept = {
        option: {name: value for name, value in getattr(cfg, option).items() if name in names}
        for option in ("weights", "licences")
    }
    return cfg.model_copy(update=kept)


def _thresholds(cfg: ShardSection, surveys: list[Job]) -> dict[str, int]:
    """Per kind the hash below which a document is held out: the share's, or just above the smallest hash so that one
    document is."""
    merged: dict[str, dict[str, int]] = {}
    for survey in surveys:
        for kind, found in survey["kinds"].items():
            mine = merged.setdefault(kind, {"docs": 0, "min": _TOP, "max": -1})
            mine.update(
                docs=mine["docs"] + found["docs"],
                min=min(mine["min"], found["min"]),
                max=max(mine["max"], found["max"]),
            )
    share = int(cfg.val_share * _TOP)
    below = dict.fromkeys(merged, share)
    if not share or not merged:
        return below
    enough = [kind for kind, found in merged.items() if found["docs"] > 1]
    if not enough and len(merged) > 1:  # one document of each kind: hold out one of them
        enough = [min(merged, key=lambda kind: merged[kind]["min"])]
    for kind in enough:
        below[kind] = max(share, merged[kind]["min"] + 1)
    last = max(merged, key=lambda kind: merged[kind]["max"])
    below[last] = min(below[last], merged[last]["max"])  # the largest hash trains, so training is never empty
    return below


def _buckets(cfg: ShardSection, size: int) -> dict[str, int]:
    """Output parts of each split, by the bytes of all texts: of ``part_mb``, less for a small corpus so that all
    workers have some to write."""
    weight = max(1.0, *cfg.weights.values()) if cfg.weights else 1.0
    limit = max(_LEAST, min(cfg.part_mb << 20, size // _PARTS))
    return {"train": max(1, -(-int(size * weight) // limit)), "val": max(1, -(-int(size * cfg.val_share) // limit))}


def scatter_job(job: Job) -> Job:
    """Write one shard's documents as slices by (split, output part) into one Arrow file; returns its tally and what
    slices there are."""
    table, tally = read_job(job), Tally()
    tally.count("in", table)
    hashes = _hashes(table["id"])
    weights = _looked_up(table["source"], job["weights"], 1.0, np.float64)
    held = (_mixed(hashes, job["seed"], _SPLIT) < _looked_up(table["kind"], job["below"], 0, np.uint64)) & (weights > 0)
    rows, order = _copies(hashes, weights, held, job["seed"])
    lost = np.setdiff1d(np.arange(table.num_rows), rows)
    for i in lost.tolist():
        place = {key: table[key][i].as_py() for key in ("id", "source", "path", "line")}
        why = f"shard.weights gives source {place['source']} {weights[i]:g}"
        tally.note("dropped", "weight", place, lambda i=i: (table["text"][i].as_py()[:400], ""), why)
    repeated = len(rows) - (table.num_rows - len(lost))
    if repeated:
        tally.changed["repeated"] += repeated
    return {**tally.json(), "slices": _write_slices(job, table, rows, order, held[rows])}


def _copies(hashes: np.ndarray, weights: np.ndarray, held: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, order hash) of every appearance: once in validation, weight times in training (the fraction by a hash)."""
    chance = _mixed(hashes, seed, _WEIGHT) / float(_TOP)
    counts = np.where(held, 1, np.floor(weights) + (chance < weights % 1)).astype(np.int64)
    rows = [np.flatnonzero(counts > copy) for copy in range(int(counts.max(initial=1)))]
    orders = [_mixed(hashes[mine], seed, _ORDER + copy) for copy, mine in enumerate(rows)]
    return np.concatenate(rows), np.concatenate(orders)


def _write_slices(job: Job, table: pa.Table, rows: np.ndarray, order: np.ndarray, held: np.ndarray) -> list[Job]:
    """One record batch for every (split, output part) that has rows; returns where each lies."""
    path = Path(job["work"], "slices", f"{job['index']:06d}.arrow")
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = np.where(held, job["buckets"]["val"], job["buckets"]["train"]).astype(np.uint64)
    bucket = (((order >> np.uint64(32)) * parts) >> np.uint64(32)).astype(
        np.int64
    )  # equal spans of the order, so parts follow each other
    by_slice = np.lexsort((order, bucket, held))
    taken = (
        table.take(pa.array(rows[by_slice]))
        .append_column("order", pa.array(order[by_slice], pa.uint64()))
        .cast(_ORDERED)
        .combine_chunks()
    )
    where = np.stack([held[by_slice].astype(np.int64), bucket[by_slice]], 1)
    cuts = [0, *(np.flatnonzero((where[1:] != where[:-1]).any(1)) + 1).tolist(), len(where)] if len(where) else []
    slices: list[dict[str, Any]] = []
    with whole(path) as partial, pa.ipc.new_file(partial, _ORDERED) as writer:  # as it is: gather maps it into memory
        for start, end in itertools.pairwise(cuts):
            writer.write_batch(taken.slice(start, end - start).to_batches()[0])
            slices.append(
                {
                    "file": str(path),
                    "batch": len(slices),
                    "split": SPLITS[where[start, 0]],
                    "bucket": int(where[start, 1]),
                }
            )
    return slices


def _gather_jobs(cfg: ShardSection, common: Job, scattered: list[Job]) -> list[Job]:
    """One job for each output part that has documents; parts are numbered without gaps."""
    slices: dict[tuple[str, int], list[list[Any]]] = {}
    for result in scattered:
        for found in result["slices"]:
            slices.setdefault((found["split"], found["bucket"]), []).append([found["file"], found["batch"]])
    jobs, numbers = [], Counter()
    for split, bucket in sorted(slices):
        index = numbers[split]
        numbers[split] += 1
        jobs.append(
            {
                **common,
                "split": split,
                "index": index,
                "slices": slices[split, bucket],
                "rows": cfg.row_group_rows,
                "shard": f"{split} part {index}",
            }
        )
    return jobs


def gather_job(job: Job) -> Job:
    """Write one output part from its slices, in the order of the hashes; returns its tally and composition."""
    batches = []
    for path, batch in job["slices"]:
        with pa.memory_map(path) as file:
            batches.append(pa.ipc.open_file(file).get_batch(batch))
    table = pa.Table.from_batches(batches, _ORDERED)
    table = table.sort_by([("order", "ascending"), ("id", "ascending")]).drop_columns("order")
    path = Path(job["out"], job["split"], f"part-{job['index']:05d}.parquet")
    with whole(path) as partial:
        pq.write_table(table, partial, row_group_size=job["rows"], **PARQUET)
    tally = Tally()
    tally.count("out", table)
    # pyarrow makes these functions on import
    characters = pc.sum(pc.utf8_length(table["text"])).as_py()  # pyright: ignore[reportAttributeAccessIssue]
    composition = {"docs": table.num_rows, "chars": characters}
    for column in ("source", "lang", "kind"):
        for found in table[column].value_counts().to_pylist():
            composition[f"{column}/{found['values'] or 'unknown'}"] = found["counts"]
    return {**tally.json(), "composition": composition}


def _sum(results: Any) -> dict[str, int]:
    total: Counter[str] = Counter({"docs": 0, "chars": 0})
    for result in results:
        total.update(result["composition"])
    return dict(sorted(total.items()))
