"""The shard stage: the final split, mix and order of the documents, as Parquet shards with a data card.

A document goes to validation by the hash of its id, so it stays there whatever else is added; repeats (weights above 1) are for training
alone. Documents are ordered by a seeded hash, which mixes the sources evenly. Three passes, each parallel over shards and in memory bounded by
one part: survey (hashes only), scatter (each input shard into slices by output part), gather (each output part from its slices, sorted).
The bytes depend on the documents and the config, not on how they were divided before or on the number of workers.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from pipeline.datacard import write_datacard
from pipeline.documents import PARQUET, SCHEMA, Tally, finish, flat, plan, read_job
from pipeline.executor import run_shards
from pipeline.sections.base import Progress, quiet
from pipeline.sections.data import ShardSection

SPLITS = ("train", "val")
_ORDERED = SCHEMA.append(pa.field("order", pa.uint64()))
_TOP = 2**64


def shard(
    cfg: ShardSection, docs: Path, out: Path, *, history: Mapping[str, Path] | None = None,
    workers: int = 1, engine: str = "local", progress: Progress = quiet,
) -> dict[str, Any]:  # fmt: skip
    """Write ``out/train/part-*.parquet``, ``out/val/part-*.parquet``, ``README.md`` and ``datacard.json``; returns flat metrics.

    ``history`` names the artifacts of the stages before, in order, for the data card. With at least two documents one is in validation (of each
    kind that has two), unless ``val_share`` is 0, and one in training. Raises ValueError when a weight names no source or nothing is left to train on.
    """
    work = out / "_run" / "shard"
    common = {"weights": cfg.weights, "seed": cfg.seed, "work": str(work), "out": str(out)}
    jobs = [{**common, **job} for job in plan(docs)]
    run = {"workers": workers, "engine": engine}
    surveys = run_shards(survey_job, jobs, done=work / "survey", **run)
    _known(cfg, surveys)
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
    splits = {split: _sum(result for job, result in zip(gather, gathered, strict=True) if job["split"] == split) for split in SPLITS}
    stats = finish(out, [*scattered, *gathered], splits=splits)
    write_datacard(out, cfg, stats, history or {})
    shutil.rmtree(work / "slices", ignore_errors=True)
    return {**flat(stats), **{f"{split}_{key}": splits[split][key] for split in SPLITS for key in ("docs", "chars")}}


def _hashes(ids: list[str], seed: int, salt: str = "") -> np.ndarray:
    """uint64 hash of every id; a salt makes another, independent one."""
    return np.fromiter((xxhash.xxh3_64_intdigest((salt + name).encode(), seed) for name in ids), np.uint64, len(ids))


def survey_job(job: dict[str, Any]) -> dict[str, Any]:
    """Per kind the number of documents with a weight above 0 and their smallest and largest split hash; the sources' names; the texts' bytes."""
    table = read_job(job, ["id", "text", "source", "kind"])
    sources, kinds = np.array(table["source"].to_pylist(), object), np.array(table["kind"].to_pylist(), object)
    hashes = _hashes(table["id"].to_pylist(), job["seed"], "split ")
    used = np.array([job["weights"].get(source, 1) > 0 for source in sources], bool)
    found = {}
    for kind in sorted(set(kinds[used])):
        mine = hashes[used & (kinds == kind)]
        found[kind] = {"docs": len(mine), "min": int(mine.min()), "max": int(mine.max())}
    return {"kinds": found, "sources": sorted(set(sources)), "bytes": pc.sum(pc.binary_length(table["text"])).as_py() or 0}


def _known(cfg: ShardSection, surveys: list[dict[str, Any]]) -> None:
    names = sorted({name for survey in surveys for name in survey["sources"]})
    for option, given in (("weights", cfg.weights), ("licences", cfg.licences)):
        strangers = sorted(set(given) - set(names))
        if strangers:
            raise ValueError(f"shard.{option}: no document is of source {', '.join(strangers)}; sources are {', '.join(names)}")


def _thresholds(cfg: ShardSection, surveys: list[dict[str, Any]]) -> dict[str, int]:
    """Per kind the hash below which a document is held out: the share's, or just above the smallest hash so that one document is."""
    merged: dict[str, dict[str, int]] = {}
    for survey in surveys:
        for kind, found in survey["kinds"].items():
            mine = merged.setdefault(kind, {"docs": 0, "min": _TOP, "max": -1})
            mine.update(docs=mine["docs"] + found["docs"], min=min(mine["min"], found["min"]), max=max(mine["max"], found["max"]))
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
    """Output parts of each split, by the bytes of all texts."""
    weight = max(1.0, *cfg.weights.values()) if cfg.weights else 1.0
    limit = cfg.part_mb << 20
    return {"train": max(1, -(-int(size * weight) // limit)), "val": max(1, -(-int(size * cfg.val_share) // limit))}


def scatter_job(job: dict[str, Any]) -> dict[str, Any]:
    """Write one shard's documents as slices by (split, output part) into one Arrow file; returns its tally and what slices there are."""
    table, tally = read_job(job), Tally()
    tally.count("in", table)
    ids, sources, kinds = (table[name].to_pylist() for name in ("id", "source", "kind"))
    limits = [job["below"].get(kind, 0) for kind in kinds]
    weights = [job["weights"].get(source, 1.0) for source in sources]
    held = [bool(w) and int(h) < limit for h, limit, w in zip(_hashes(ids, job["seed"], "split "), limits, weights, strict=True)]
    rows, order = _copies(ids, weights, held, job["seed"])
    taken = set(rows.tolist())
    for i in (i for i in range(len(ids)) if i not in taken):
        place = {key: table[key][i].as_py() for key in ("id", "source", "path", "line")}
        tally.note("dropped", "weight", place, lambda i=i: (table["text"][i].as_py()[:400], ""), f"shard.weights gives source {sources[i]} {weights[i]}")
    tally.changed.update({"repeated": len(rows) - len(taken)} if len(rows) > len(taken) else {})
    slices = _write_slices(job, table, rows, order, np.array(held, bool)[rows])
    return {**tally.json(), "slices": slices}


def _copies(ids: list[str], weights: list[float], held: list[bool], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, order hash) of every appearance: once in validation, weight times in training (the fraction by a hash)."""
    chance = _hashes(ids, seed, "weight ").astype(np.float64) / _TOP
    counts = np.array([1 if val else int(w) + (u < w - int(w)) for w, val, u in zip(weights, held, chance, strict=True)], np.int64)
    rows, orders = [], []
    for copy in range(int(counts.max(initial=0))):
        mine = np.flatnonzero(counts > copy)
        rows.append(mine)
        orders.append(_hashes([ids[i] for i in mine], seed, f"order {copy} "))
    return (np.concatenate(rows), np.concatenate(orders)) if rows else (np.zeros(0, np.int64), np.zeros(0, np.uint64))


def _write_slices(job: dict[str, Any], table: pa.Table, rows: np.ndarray, order: np.ndarray, held: np.ndarray) -> list[dict[str, Any]]:
    """One record batch for every (split, output part) that has rows; returns where each lies."""
    path = Path(job["work"], "slices", f"{job['index']:06d}.arrow")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    slices: list[dict[str, Any]] = []
    count = {split: job["buckets"][split] for split in SPLITS}
    bucket = [int(h) * count[SPLITS[val]] >> 64 for h, val in zip(order, held.astype(int), strict=True)]
    where = np.array([[int(val), b] for val, b in zip(held, bucket, strict=True)], np.int64).reshape(-1, 2)
    with pa.ipc.new_file(partial, _ORDERED, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        for val, b in sorted(set(map(tuple, where.tolist()))):
            mine = np.flatnonzero((where[:, 0] == val) & (where[:, 1] == b))
            piece = table.take(pa.array(rows[mine])).append_column("order", pa.array(order[mine], pa.uint64()))
            writer.write_batch(piece.cast(_ORDERED).combine_chunks().to_batches()[0])
            slices.append({"file": str(path), "batch": len(slices), "split": SPLITS[val], "bucket": b})
    os.replace(partial, path)
    return slices


def _gather_jobs(cfg: ShardSection, common: dict[str, Any], scattered: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One job for each output part that has documents; parts are numbered without gaps."""
    slices: dict[tuple[str, int], list[list[Any]]] = {}
    for result in scattered:
        for found in result["slices"]:
            slices.setdefault((found["split"], found["bucket"]), []).append([found["file"], found["batch"]])
    jobs, numbers = [], Counter()
    for split, bucket in sorted(slices):
        index = numbers[split]
        numbers[split] += 1
        jobs.append({**common, "split": split, "index": index, "slices": slices[split, bucket], "rows": cfg.row_group_rows, "shard": f"{split} part {index}"})
    return jobs


def gather_job(job: dict[str, Any]) -> dict[str, Any]:
    """Write one output part from its slices, in the order of the hashes; returns its tally and composition."""
    batches = []
    for path, batch in job["slices"]:
        with pa.memory_map(path) as file:
            batches.append(pa.ipc.open_file(file).get_batch(batch))
    table = pa.Table.from_batches(batches, _ORDERED)
    table = table.take(pc.sort_indices(table, [("order", "ascending"), ("id", "ascending")])).drop_columns("order")
    path = Path(job["out"], job["split"], f"part-{job['index']:05d}.parquet")
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    pq.write_table(table, partial, row_group_size=job["rows"], **PARQUET)
    os.replace(partial, path)
    tally = Tally()
    tally.count("out", table)
    composition: Counter[str] = Counter()
    chars = pc.utf8_length(table["text"]).to_pylist()
    for source, lang, kind, n in zip(*(table[c].to_pylist() for c in ("source", "lang", "kind")), chars, strict=True):
        composition.update({"docs": 1, "chars": n, f"source/{source}": 1, f"lang/{lang or 'unknown'}": 1, f"kind/{kind}": 1})
    return {**tally.json(), "composition": composition}


def _sum(results: Any) -> dict[str, int]:
    total: Counter[str] = Counter({"docs": 0, "chars": 0})
    for result in results:
        total.update(result["composition"])
    return dict(sorted(total.items()))
