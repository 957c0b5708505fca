"""The decontaminate stage: find documents that hold the texts of evaluation sets, drop or report them, and judge each
item.

An item's n-grams (13 words as in GPT-3, arXiv 2005.14165 appendix C; 24 characters for Chinese) are hashed and looked
up in every document. A shorter item must occur whole. A document overlaps an item when it holds at least `min_share` of
the item's n-grams: one shared stock phrase in a long question is no leak. Case, white space and punctuation do not
count.

Each item comes out ``clean``, ``overlapping``, ``in_distribution`` (its set is made from training data on purpose, and
is never a reason to drop anything) or ``too_short`` to be judged, so that scores can be read apart.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config.base import Progress, quiet
from pipeline.config.cleaning import DecontaminateSection
from pipeline.data.batches import batches
from pipeline.data.documents import Tally, finish, flat, plan, read_job, write_kept
from pipeline.kernels import alphabet, scripts, tokens
from pipeline.kernels.alphabet import HAN, KANA, UNSPACED
from pipeline.running.executor import run_shards
from pipeline.running.jobs import Job


def decontaminate(
    cfg: DecontaminateSection,
    docs: Path,
    evals: Sequence[dict[str, Any]],
    out: Path,
    *,
    workers: int = 1,
    engine: str = "local",
    progress: Progress = quiet,
) -> dict[str, float]:
    """Write `docs` without the documents that hold evaluation texts, and ``contamination.jsonl``; returns flat metrics.

    Args:
        evals: items ``{"id", "set", "text"}``; the text is what must not be trained on (usually the question alone).
    ``contamination.jsonl`` has one line an item: {"id", "set", "result", "documents" (how many overlap), "left" (how
    many of them are not dropped), "examples" (their ids)}. Raises:
        ValueError: `docs` holds no parts, or an item lacks a field (all such items are named). ShardFailed: a shard
            could not be done.
    """
    bad = [str(i) for i, e in enumerate(evals) if not all(isinstance(e.get(k), str) for k in ("id", "set", "text"))]
    if bad:
        raise ValueError(f"evaluation items {', '.join(bad[:20])} lack a string id, set or text")
    (out / "_run").mkdir(parents=True, exist_ok=True)
    grams = _item_grams(cfg, [e["text"] for e in evals])
    grams["drops"] = np.array([e["set"] not in cfg.in_distribution and cfg.action == "drop" for e in evals], bool)
    grams["names"] = np.array([f"{e['set']}/{e['id']}" for e in evals], str)
    # no name among them is that of an option of savez
    np.savez(out / "_run" / "evals.npz", **grams)  # pyright: ignore[reportArgumentType]
    told = {"out": str(out), "evals": str(out / "_run" / "evals.npz"), "cfg": cfg.model_dump(mode="json")}
    told["digest"] = hashlib.sha256(
        b"".join(array.tobytes() for array in grams.values())
    ).hexdigest()  # other items are another job
    jobs = [{**job, **told} for job in plan(docs)]
    results = run_shards(
        decontaminate_job, jobs, workers=workers, done=out / "_run" / "done", engine=engine, progress=progress
    )
    counts = _write_items(cfg, evals, np.diff(grams["starts"]) > 0, results, out)
    return flat(finish(out, results, evaluation=counts)) | {f"items/{k}": n for k, n in counts["all"].items()}


def _item_grams(cfg: DecontaminateSection, texts: list[str]) -> dict[str, np.ndarray]:
    """Each item's unique n-gram hashes ("grams" uint64, "starts" int64 [n + 1]), the lengths n in use ("sizes" int64),
    and "anchors": all shortest n-grams of all items, without one of which a text cannot overlap any item.

    The n of a gram is mixed into its hash, so that grams of several lengths share one table.
    """
    data, places = alphabet.utf8(texts)
    hashes, starts = tokens.tokenize(data, places)
    counts = scripts.scripts(data, places)
    unspaced = counts[:, HAN] + counts[:, KANA] + counts[:, UNSPACED]
    length = np.diff(starts)
    least = np.where(unspaced * 2 > length, cfg.min_characters, cfg.min_words)
    size = np.minimum(np.where(unspaced * 2 > length, cfg.characters, cfg.words), length)
    size[length < least] = 0
    grams, owner = _grams(hashes, starts, size)
    anchors = _grams(hashes, starts, np.where(size > 0, least, 0))[0]
    return {
        "grams": grams,
        "starts": np.searchsorted(owner, np.arange(len(texts) + 1)),
        "sizes": np.unique(size[size > 0]).astype(np.int64),
        "anchors": np.unique(anchors),
        "anchor_sizes": np.unique(least[size > 0]).astype(np.int64),
    }


def _grams(hashes: np.ndarray, starts: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unique salted n-gram hashes of each item, n = `size` [items], none where that is 0: (uint64 [m], item of each
    int64 [m]), by item."""
    found, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for n in np.unique(size[size > 0]).tolist():
        items = np.flatnonzero(size == n)
        ends = np.concatenate([[0], np.cumsum(starts[items + 1] - starts[items])])
        grams, offsets = tokens.ngrams(np.concatenate([hashes[starts[i] : starts[i + 1]] for i in items]), ends, n)
        found.append(np.maximum(grams ^ _salt(n), np.uint64(1)))
        owners.append(np.repeat(items, np.diff(offsets)))
    grams, owner = np.concatenate(found), np.concatenate(owners)
    order = np.lexsort((grams, owner))
    grams, owner = grams[order], owner[order]
    new = np.ones(len(grams), bool)
    new[1:] = (grams[1:] != grams[:-1]) | (owner[1:] != owner[:-1])
    return grams[new], owner[new]


def _salt(n: int) -> np.uint64:
    return np.uint64((n * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF)


def decontaminate_job(job: Job) -> Job:
    """Do one shard and write its part; returns its tally and {"hits": {item: [documents, some ids]}}."""
    cfg, table, tally = DecontaminateSection(**job["cfg"]), read_job(job), Tally()
    evals = np.load(job["evals"])
    drops, names = evals["drops"], evals["names"]
    index = _Index(evals, cfg.min_share)
    tally.count("in", table)
    keep = np.ones(table.num_rows, bool)
    hits: dict[str, list[Any]] = {}
    first = 0
    for batch in batches(table):
        for row, item, share in index.overlaps(batch["text"]):
            place = {k: batch[k][row].as_py() for k in ("id", "source", "path", "line")}
            entry = hits.setdefault(str(item), [0, []])
            entry[0] += 1
            entry[1] = sorted([*entry[1], place["id"]])[:5]
            drop = bool(drops[item])
            if not drop or keep[first + row]:
                why = f"holds {share:.0%} of the n-grams of evaluation item {names[item]}"
                texts_shown = partial(_shown, batch["text"][int(row)].as_py(), drop)
                tally.note(
                    "dropped" if drop else "reported",
                    "contaminated" if drop else "overlap_reported",
                    place,
                    texts_shown,
                    why,
                )
            keep[first + row] &= not drop
        first += batch.num_rows
    tally.count("out", write_kept(Path(job["out"]), job, table, keep))
    return {**tally.json(), "hits": hits}


def _shown(text: str, drop: bool) -> tuple[str, str]:
    return text, "" if drop else text


class _Index:
    """The evaluation items' n-grams, ready to be looked up."""

    def __init__(self, evals: Any, min_share: float) -> None:
        grams, starts = evals["grams"], evals["starts"]
        self.counts, self.min_share = np.diff(starts), min_share
        owner = np.repeat(np.arange(len(starts) - 1), self.counts)
        order = np.lexsort((owner, grams))
        self.grams, self.owner = grams[order], owner[order]  # a gram of two items is there twice
        self.sizes, self.anchor_sizes = evals["sizes"], evals["anchor_sizes"]
        self.table, self.anchors = (_lookup_table(grams) for grams in (self.grams, evals["anchors"]))

    def overlaps(self, texts: pa.ChunkedArray):
        """Yield (row, item, share of the item's n-grams in the text) for each overlap, by row and item."""
        hashes, starts = tokens.tokenize(*alphabet.utf8(texts))
        touched = [_found(hashes, starts, n, self.anchors)[0] for n in self.anchor_sizes]
        rows = np.unique(np.concatenate([np.zeros(0, np.int64), *touched]))
        if not len(rows):
            return
        pieces = [hashes[starts[row] : starts[row + 1]] for row in rows]
        hashes, starts = np.concatenate(pieces), np.concatenate([[0], np.cumsum([len(p) for p in pieces])])
        shares: Counter[tuple[int, int]] = Counter()
        for n in self.sizes:
            where, grams = _found(hashes, starts, n, self.table)
            for row, gram in sorted(set(zip(rows[where].tolist(), grams.tolist(), strict=True))):
                low, high = (np.searchsorted(self.grams, np.uint64(gram), side) for side in ("left", "right"))
                shares.update((row, item) for item in self.owner[low:high].tolist())
        for (row, item), count in sorted(shares.items()):
            if count >= self.min_share * self.counts[item]:
                yield row, item, count / self.counts[item]


def _lookup_table(grams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return tokens.hash_set(grams), tokens.sieve(grams)


def _found(
    hashes: np.ndarray, starts: np.ndarray, n: int, table: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    grams, offsets = tokens.ngrams(hashes, starts, int(n))
    return tokens.lookup(grams, offsets, _salt(int(n)), *table)


def _write_items(
    cfg: DecontaminateSection,
    evals: Sequence[dict[str, Any]],
    judged: np.ndarray,
    results: list[dict[str, Any]],
    out: Path,
) -> dict[str, Any]:
    """Write ``contamination.jsonl`` and return how many items of each set came out how, with the sum under "all"."""
    hits: dict[str, list[Any]] = {}
    for result in results:
        for item, (count, ids) in result["hits"].items():
            entry = hits.setdefault(item, [0, []])
            hits[item] = [entry[0] + count, sorted(entry[1] + ids)[:5]]
    counts: dict[str, Any] = {"all": Counter()}
    with open(out / "contamination.jsonl", "w", encoding="utf-8") as lines:
        for i, e in enumerate(evals):
            count, ids = hits.get(str(i), [0, []])
            result = (
                "in_distribution"
                if e["set"] in cfg.in_distribution
                else "overlapping"
                if count
                else "clean"
                if judged[i]
                else "too_short"
            )
            counts["all"][result] += 1
            counts.setdefault(e["set"], Counter())[result] += 1
            left = count if cfg.action == "report" or e["set"] in cfg.in_distribution else 0
            item = {"id": e["id"], "set": e["set"], "result": result, "documents": count, "left": left, "examples": ids}
            lines.write(json.dumps(item, ensure_ascii=False) + "\n")
    return counts
