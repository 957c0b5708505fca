"""The dedup stage: exact copies by hash, near copies by MinHash with verification, across sources and earlier
artifacts.

Phases, each over shards or ranges of keys, each resumable: survey (hashes, signatures, sorted band keys) -> exact
groups -> candidate pairs by band -> estimate from signatures -> true Jaccard of shingle sets -> choice -> filter.
Banding and MinHash follow Broder 1997 and Leskovec, Rajaraman and Ullman, chapter 3; the numbers and the peers' traps
are in docs/benchmarks.md. Memory: what the coordinator holds grows with the candidate pairs; of a document it holds
nothing.

Which copy stays: a document of an earlier artifact before all others, then the longest, then the smallest id, then the
first. A near copy is dropped only if it is at least `threshold` like a document that stays, so a chain of small changes
does not carry away what is unlike the document kept. Chat documents take part in the exact comparison only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.base import Progress, quiet
from pipeline.config.cleaning import DedupSection
from pipeline.data import shingles
from pipeline.data.documents import EXCERPT, finish, first_difference, flat, plan
from pipeline.kernels import minhash
from pipeline.running.executor import run_shards
from pipeline.running.jobs import Job
from storage.files import discard, whole

RANGE_ROWS = 4_000_000
"""Rows of a band merged at once: about 100 MB."""
SLACK = 0.15
"""Candidates whose signature estimate is this far below the threshold are not verified: over 4 standard errors at 128
permutations."""
PAIRS = 12
"""Sampled pairs in each histogram bin of 0.05."""


def dedup(
    cfg: DedupSection,
    docs: Path,
    out: Path,
    *,
    against: Sequence[Path] = (),
    workers: int = 1,
    engine: str = "local",
    progress: Progress = quiet,
) -> dict[str, float]:
    """Write `docs` without its duplicates to `out`, with ``pairs.jsonl`` and the histogram in ``stats.json``; returns
    flat metrics.

    Args:
        against: earlier document artifacts; what is there already is dropped here, and nothing of theirs is written.
    Raises:
        ValueError: no parts in an artifact, or more signature values in the bands than permutations.
        ShardFailed: a shard could not be done.
    """
    if cfg.bands * cfg.rows > cfg.permutations:
        raise ValueError(
            f"dedup.bands x dedup.rows = {cfg.bands * cfg.rows} is more than dedup.permutations = {cfg.permutations}"
        )
    run = _Run(cfg, docs, [*against, *map(Path, cfg.against)], out, workers, engine, progress)
    run.phase("survey", shingles.survey_job, run.jobs)
    pairs = run.exact()
    gone = np.sort(pairs[:, 1])
    _save(run.scratch / "gone.npy", gone)
    verified, similarity = run.near() if cfg.near else (np.zeros((0, 2), np.int64), np.zeros(0, np.float32))
    similar = similarity >= cfg.threshold
    near = run.choose(verified[similar], similarity[similar])
    run.save_drops(pairs, near)
    shown = run.sampled(verified, similarity)
    results = run.filter_and_show(verified[shown], similarity[shown])
    edges = np.round(np.arange(0.5, 1.0001, 0.05), 2)
    histogram = np.histogram(similarity, np.append(edges[:-1], 1.0001))[0]
    stats = finish(
        out, results, candidate_pairs=len(similarity), verified_pairs=int(similar.sum()), clusters=run.clusters,
        similarity_histogram={"edges": edges.tolist(), "pairs": histogram.tolist(), "threshold": cfg.threshold},
    )  # fmt: skip
    discard(run.scratch)  # in one step: markers never outlive what they vouch for
    return flat(stats)


def _save(path: Path, array: np.ndarray) -> None:
    with whole(path) as partial, open(partial, "wb") as file:
        np.save(file, array)


class _Run:
    """One execution: the shards, their numbers, the scratch directory, and how jobs are run."""

    def __init__(
        self,
        cfg: DedupSection,
        docs: Path,
        against: list[Path],
        out: Path,
        workers: int,
        engine: str,
        progress: Progress,
    ) -> None:
        self.cfg, self.out, self.clusters = cfg, out, 0
        self.how = {"workers": workers, "engine": engine, "progress": progress}
        self.scratch = out / "_run" / "dedup"
        self.scratch.mkdir(parents=True, exist_ok=True)
        told = {"scratch": str(self.scratch), "out": str(out), "near": cfg.near, "ngram": cfg.ngram, "seed": cfg.seed}
        told |= {"permutations": cfg.permutations, "bands": cfg.bands, "band_rows": cfg.rows}
        self.jobs: list[Job] = []
        for earlier, artifact in [(False, docs), *((True, a) for a in against)]:
            start = self.total
            for job in plan(artifact):
                self.jobs.append(
                    {**job, **told, "index": len(self.jobs), "first": start + job["first"], "earlier": earlier}
                )
        self.firsts = np.array([job["first"] for job in self.jobs])
        self.own = sum(job["rows"] for job in self.jobs if not job["earlier"])

    @property
    def total(self) -> int:
        return self.jobs[-1]["first"] + self.jobs[-1]["rows"] if self.jobs else 0

    def phase(self, name: str, fn: Any, jobs: list[Job]) -> list[Job]:
        return run_shards(fn, jobs, done=self.scratch / "done" / name, **self.how)

    def ranges(self, kind: str, fn: Any, bands: list[tuple[int, int]]) -> np.ndarray:
        """Run a merging job for each group of bands and each range of keys; returns all the pairs found, int64 [m,
        2]."""
        ranges = max(1, -(-self.total // RANGE_ROWS))
        shards = [[job["index"], job["first"]] for job in self.jobs]
        common = {"scratch": str(self.scratch), "shards": shards, "ranges": ranges}
        jobs = [{**common, "range": r, "bands": list(group)} for group in bands for r in range(ranges)]
        jobs = [
            {**job, "index": i, "shard": f"{kind} of bands {job['bands']}, range {job['range']}"}
            for i, job in enumerate(jobs)
        ]
        self.phase(kind, fn, jobs)
        return np.concatenate([np.load(self.scratch / f"{kind}-{job['index']}.npy") for job in jobs])

    def exact(self) -> np.ndarray:
        """Pairs (kept, dropped) of exact copies, int64 [m, 2]."""
        pairs = self.ranges("exact-pairs", shingles.exact_job, [(0, 0)])
        if not len(pairs):
            return pairs
        nodes, index = np.unique(pairs, return_inverse=True)
        index = index.reshape(-1, 2)
        group = minhash.components(len(nodes), index)
        order = self.preference(nodes)
        order = order[np.argsort(group[order], kind="stable")]  # by group, the best first
        leads = np.concatenate([[True], group[order][1:] != group[order][:-1]])
        best = np.empty(len(nodes), np.int64)
        best[group[order][leads]] = order[leads]
        drop = np.flatnonzero((best[group] != np.arange(len(nodes))) & (nodes < self.own))
        return np.stack([nodes[best[group[drop]]], nodes[drop]], 1)

    def preference(self, nodes: np.ndarray) -> np.ndarray:
        """Positions of `nodes` from the one to be kept first: earlier artifacts, then the longest, the smallest id, the
        first."""
        documents = self.documents(nodes)
        return np.lexsort((nodes, documents["id"], -documents["length"], nodes < self.own))

    def holders(self, nodes: np.ndarray) -> Iterator[tuple[Job, np.ndarray]]:
        """The shards that hold some of these sorted document numbers, each with their rows."""
        cuts = np.searchsorted(nodes, [*self.firsts, self.total])
        for job, low, high in zip(self.jobs, cuts[:-1], cuts[1:], strict=True):
            if high > low:
                yield job, nodes[low:high] - job["first"]

    def documents(self, nodes: np.ndarray) -> np.ndarray:
        """The survey's records (id, length, place) of sorted document numbers."""
        return np.concatenate(
            [shingles.load(self.scratch, "document", job["index"])[rows] for job, rows in self.holders(nodes)]
        )

    def near(self) -> tuple[np.ndarray, np.ndarray]:
        """Verified pairs (smaller number first, int64 [m, 2]) with their true Jaccard similarity (float32 [m])."""
        size = max(1, min(-(-self.cfg.bands // 4), 1_000_000 // max(self.total, 1)))
        groups = [(b, min(b + size, self.cfg.bands)) for b in range(0, self.cfg.bands, size)]
        pairs = self.ranges("candidates", shingles.candidates_job, groups)
        pairs = np.unique(pairs[pairs[:, 0] < self.own], axis=0)  # of two earlier documents neither can go
        if not len(pairs):
            return pairs, np.zeros(0, np.float32)
        pairs = pairs[self.estimate(pairs) >= self.cfg.threshold - SLACK]
        if not len(pairs):
            return pairs, np.zeros(0, np.float32)
        return pairs, self.similarity(pairs)

    def estimate(self, pairs: np.ndarray) -> np.ndarray:
        """Signature agreement of each pair, from the signatures of the documents in candidate pairs."""
        nodes, index = np.unique(pairs, return_inverse=True)
        signatures = []
        for job, rows in self.holders(nodes):
            stored, documents = (shingles.load(self.scratch, kind, job["index"]) for kind in ("signature", "document"))
            signatures.append(stored[documents["place"][rows]])
        found = np.concatenate(signatures)
        return minhash.agreement(found, found, index.reshape(-1, 2))

    def similarity(self, pairs: np.ndarray) -> np.ndarray:
        """True Jaccard similarity of each pair, from shingle sets made again for the documents that need them."""
        wanted, index = np.unique(pairs, return_inverse=True)
        _save(self.scratch / "wanted.npy", wanted)
        sizes = [n for result in self.phase("sets", shingles.sets_job, self.jobs) for n in result["sizes"]]
        sets = np.concatenate([shingles.load(self.scratch, "set", job["index"]) for job in self.jobs])
        return minhash.jaccard(sets, np.cumsum([0, *sizes]), index.reshape(-1, 2))

    def choose(self, pairs: np.ndarray, similarity: np.ndarray) -> np.ndarray:
        """(dropped, kept, similarity) of near copies: float64 [m, 3]; numbers are exact in a float64 up to 2**53."""
        if not len(pairs):
            return np.zeros((0, 3))
        nodes, index = np.unique(pairs, return_inverse=True)
        index = index.reshape(-1, 2)
        self.clusters = len(np.unique(minhash.components(len(nodes), index)))
        ends = np.concatenate([index, index[:, ::-1]])
        alike = np.concatenate([similarity, similarity])
        by_node = np.lexsort((ends[:, 1], ends[:, 0]))
        ends, alike = ends[by_node], alike[by_node]
        starts = np.searchsorted(ends[:, 0], np.arange(len(nodes) + 1))
        copy_of = minhash.choose(starts, np.ascontiguousarray(ends[:, 1]), self.preference(nodes))
        drop = np.flatnonzero((copy_of >= 0) & (nodes < self.own))
        edge = np.searchsorted(ends[:, 0] * len(nodes) + ends[:, 1], drop * len(nodes) + copy_of[drop])
        return np.stack([nodes[drop], nodes[copy_of[drop]], alike[edge]], 1)

    def save_drops(self, exact: np.ndarray, near: np.ndarray) -> None:
        """Leave what the filter jobs read: drops (number, kept, exact), similarities and the kept documents' ids, by
        number."""
        ones, zeros = np.ones(len(exact), np.int64), np.zeros(len(near), np.int64)
        drops = np.concatenate(
            [np.stack([exact[:, 1], exact[:, 0], ones], 1), np.c_[near[:, :2].astype(np.int64), zeros]]
        )
        order = np.argsort(drops[:, 0])
        drops = drops[order]
        _save(self.scratch / "drops.npy", drops)
        _save(self.scratch / "similarity.npy", np.concatenate([np.ones(len(exact)), near[:, 2]])[order])
        keepers, back = np.unique(drops[:, 1], return_inverse=True)
        ids = self.documents(keepers)["id"][back] if len(keepers) else np.zeros(0, "S1")
        _save(self.scratch / "keeper-id.npy", ids)

    def sampled(self, pairs: np.ndarray, similarity: np.ndarray) -> np.ndarray:
        """Positions of up to PAIRS verified pairs of each histogram bin, those of the smallest ids, bin by bin."""
        if not len(pairs):
            return np.zeros(0, np.int64)
        nodes, index = np.unique(pairs, return_inverse=True)
        left, right = self.documents(nodes)["id"][index.reshape(-1, 2)].T
        bins = np.minimum(similarity, 0.9999) // 0.05
        order = np.lexsort((right, left, bins))
        position = np.arange(len(order)) - np.searchsorted(bins[order], bins[order])
        return order[position < PAIRS]

    def filter_and_show(self, pairs: np.ndarray, similarity: np.ndarray) -> list[Job]:
        """Write the parts, and ``pairs.jsonl`` with excerpts of these pairs from where they first differ; returns the
        filter jobs' results."""
        nodes = np.unique(pairs)
        rows = {job["index"]: rows.tolist() for job, rows in self.holders(nodes)}
        jobs = [{**job, "shown": rows.get(job["index"], [])} for job in self.jobs]
        results = self.phase("filter", shingles.filter_job, [job for job in jobs if not job["earlier"]])
        earlier = self.phase("texts", shingles.texts_job, [job for job in jobs if job["earlier"] and job["shown"]])
        texts = dict(
            zip(nodes.tolist(), (text for result in [*results, *earlier] for text in result["texts"]), strict=True)
        )
        ids = dict(zip(nodes.tolist(), self.documents(nodes)["id"].tolist(), strict=True)) if len(nodes) else {}
        with open(self.out / "pairs.jsonl", "w", encoding="utf-8") as lines:
            for (a, b), alike, copies in zip(
                pairs.tolist(), similarity.tolist(), (similarity >= self.cfg.threshold).tolist(), strict=True
            ):
                at = max(0, first_difference(texts[a], texts[b]) - 80)
                pair = {"similarity": round(alike, 4), "a": ids[a].decode(), "b": ids[b].decode(), "copies": copies}
                pair |= {"text_a": texts[a][at : at + EXCERPT], "text_b": texts[b][at : at + EXCERPT]}
                lines.write(json.dumps(pair, ensure_ascii=False) + "\n")
        return results
