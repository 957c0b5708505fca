"""The per-shard jobs of the dedup stage: signatures and keys of a shard, candidate pairs of a band, shingle sets,
filtering.

Shards leave numpy files in a scratch directory and read each other's through memory maps. Documents are numbered over
all shards (``first`` of the shard plus the row). Keys are stored sorted, so that a range of keys is a slice of every
shard's file: a band is merged range by range, in memory that does not grow with the number of documents.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.batches import batches
from pipeline.data.documents import Tally, read_job, write_kept
from pipeline.kernels import alphabet, minhash, tokens
from pipeline.running.jobs import Job
from storage.files import whole

EVERYONE, RECENT = 32, 8
"""Groups of equal band keys up to 32 give all pairs; larger ones each document with the first and the 8 before it."""
_MIX = np.uint64(0x9E3779B97F4A7C15)


def exact_keys(data: np.ndarray, places: np.ndarray) -> np.ndarray:
    """xxh3-128 of each text without its white space: uint64 [n, 2]."""
    import xxhash

    bare, ends = alphabet.squeeze(data, places)
    view, ends = bare.data, ends.tolist()
    digests = [xxhash.xxh3_128_digest(view[start:end]) for start, end in itertools.pairwise(ends)]
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)


def shingles(texts: list[str] | pa.ChunkedArray, ngram: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the `ngram`-token shingles of each text, in order, with repetition: (uint32 [m], offsets int64 [n +
    1])."""
    return _shingles(*alphabet.utf8(texts), ngram)


def _shingles(data: np.ndarray, places: np.ndarray, ngram: int) -> tuple[np.ndarray, np.ndarray]:
    hashes, starts = tokens.tokenize(data, places)
    grams, offsets = tokens.ngrams(hashes, starts, ngram)
    return (grams >> np.uint64(32)).astype(np.uint32), offsets


def band_keys(signatures: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """One 64-bit key for each band of each signature: uint64 [bands, n]."""
    parts = signatures[:, : bands * rows].reshape(len(signatures), bands, rows).astype(np.uint64)
    keys = np.zeros(parts.shape[:2], np.uint64)
    for row in range(rows):
        keys = (keys ^ parts[:, :, row]) * _MIX
        keys ^= keys >> np.uint64(29)
    return np.ascontiguousarray(keys.T)


def survey_job(job: Job) -> Job:
    """What later phases ask of one shard, left in the scratch directory as ``<kind>-<index>.npy``:

    document: a record for each row (id, length, and its row among the signatures or -1); signature: uint32 [m,
    permutations]; exact: uint64 [3, n], sorted exact keys and their rows; band: uint64 [2, bands, m], the same of each
    band.
    """
    table = read_job(job, ["id", "text", "kind"])
    exact, signed, rows, lengths = [np.zeros((0, 2), np.uint64)], [], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    a, b = minhash.permutations(job["permutations"], job["seed"])
    first = 0
    for batch in batches(table):
        data, places = alphabet.utf8(batch["text"])
        # pyarrow makes this function on import
        counted = pc.utf8_length(batch["text"])  # pyright: ignore[reportAttributeAccessIssue]
        lengths.append(counted.to_numpy().astype(np.int64))
        exact.append(exact_keys(data, places))
        if job["near"]:
            plain = np.array([kind != "chat" for kind in batch["kind"].to_pylist()], bool)
            hashes, offsets = _shingles(data, places, job["ngram"])
            has = np.flatnonzero(plain & (np.diff(offsets) > 0))
            signed.append(minhash.signatures(hashes, offsets, a, b)[has])
            rows.append(first + has)
        first += batch.num_rows
    ids, row = np.array(table["id"].to_pylist(), dtype="S"), np.concatenate(rows)
    document = np.empty(table.num_rows, [("id", ids.dtype), ("length", np.int64), ("place", np.int64)])
    document["id"], document["length"], document["place"] = ids, np.concatenate(lengths), -1
    document["place"][row] = np.arange(len(row))
    _save(job, "document", document)
    keys = np.concatenate(exact)
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    _save(job, "exact", np.stack([*keys[order].T, order.astype(np.uint64)]))
    if job["near"]:
        signatures = np.concatenate(signed or [np.zeros((0, a.size), np.uint32)])
        keys = band_keys(signatures, job["bands"], job["band_rows"])
        order = np.argsort(keys, axis=1, kind="stable")
        _save(job, "signature", signatures)
        _save(job, "band", np.stack([np.take_along_axis(keys, order, 1), row.astype(np.uint64)[order]]))
    return {"rows": table.num_rows}


def exact_job(job: Job) -> Job:
    """Groups of equal exact keys in one range of keys: pairs (first of the group, other), int64 [m, 2], saved as
    ``exact-pairs``."""
    *keys, numbers = _range(job, _files(job, "exact"))
    order = np.lexsort((numbers, keys[1], keys[0]))
    keys, numbers = np.stack(keys)[:, order], numbers[order].astype(np.int64)
    same = np.all(keys[:, 1:] == keys[:, :-1], axis=0)
    start = np.concatenate([[0], np.flatnonzero(~same) + 1, [len(numbers)]]) if len(numbers) else np.zeros(1, int)
    leader = numbers[np.repeat(start[:-1], np.diff(start))]
    pairs = np.stack([leader, numbers], 1)[leader != numbers]
    _save(job, "exact-pairs", pairs)
    return {"pairs": len(pairs)}


def candidates_job(job: Job) -> Job:
    """Candidate pairs of some bands in one range of keys, without documents that are exact copies: saved as
    ``candidates``."""
    gone = np.load(Path(job["scratch"]) / "gone.npy", mmap_mode="r")
    found = []
    files = _files(job, "band")
    for band in range(*job["bands"]):
        keys, numbers = _range(job, [(first, columns[:, band]) for first, columns in files])
        numbers = numbers.astype(np.int64)
        stays = ~np.isin(numbers, gone)
        keys, numbers = keys[stays], numbers[stays]
        order = np.lexsort((numbers, keys))
        pairs = numbers[order][minhash.group_pairs(keys[order], EVERYONE, RECENT)]
        found.append(np.unique(pairs, axis=0) if len(pairs) else pairs)
    _save(job, "candidates", np.concatenate(found))
    return {"pairs": int(sum(map(len, found)))}


def sets_job(job: Job) -> Job:
    """Sorted unique shingle hashes of the wanted documents of one shard, saved as ``set`` in order of number; returns
    how many each has."""
    wanted = np.load(Path(job["scratch"]) / "wanted.npy", mmap_mode="r")
    low, high = np.searchsorted(wanted, [job["first"], job["first"] + job["rows"]])
    table = read_job(job, ["text"]).take(pa.array(np.asarray(wanted[low:high]) - job["first"]))
    sets, sizes = [], []
    for batch in batches(table):
        hashes, offsets = shingles(batch["text"], job["ngram"])
        owner = np.repeat(np.arange(len(offsets) - 1, dtype=np.uint64), np.diff(offsets))
        both = np.sort((owner << np.uint64(32)) | hashes)  # one sort for the whole batch: by owner, then by hash
        both = both[np.concatenate([[True], both[1:] != both[:-1]])] if len(both) else both
        sets.append(both.astype(np.uint32))
        ends = np.searchsorted(both, np.arange(1, len(offsets), dtype=np.uint64) << np.uint64(32))
        sizes += np.diff(ends, prepend=0).tolist()
    _save(job, "set", np.concatenate(sets or [np.zeros(0, np.uint32)]))
    return {"sizes": sizes}


def texts_job(job: Job) -> Job:
    """The texts of the rows ``shown`` of one shard, which is not filtered."""
    return {"texts": _texts(job, read_job(job, ["text"]))}


def _texts(job: Job, table: pa.Table) -> list[str]:
    return [table["text"][row].as_py()[:50_000] for row in job["shown"]]


def filter_job(job: Job) -> Job:
    """Write one shard's part without the dropped documents; ``drops.npy`` holds (number, kept number, exact) sorted by
    number.

    Returns its tally and, as "texts", those of the rows ``shown``.
    """
    drops = np.load(Path(job["scratch"]) / "drops.npy", mmap_mode="r")
    similarity = np.load(Path(job["scratch"]) / "similarity.npy", mmap_mode="r")
    low, high = np.searchsorted(drops[:, 0], [job["first"], job["first"] + job["rows"]])
    table, tally = read_job(job), Tally()
    tally.count("in", table)
    rows = np.asarray(drops[low:high, 0]) - job["first"]
    places = table.select(["id", "source", "path", "line"]).take(pa.array(rows)).to_pylist()
    keepers = np.load(Path(job["scratch"]) / "keeper-id.npy", mmap_mode="r")[low:high]
    for row, place, (_, _, exact), alike, keeper in zip(
        rows, places, drops[low:high], similarity[low:high], keepers, strict=True
    ):
        rule = "exact_duplicate" if exact else "near_duplicate"
        why = (
            f"the same text as document {keeper.decode()}"
            if exact
            else f"Jaccard similarity {alike:.3f} to document {keeper.decode()}"
        )
        tally.note("dropped", rule, place, lambda row=row: (table["text"][int(row)].as_py(), ""), why)
    keep = np.ones(table.num_rows, bool)
    keep[rows] = False
    tally.count("out", write_kept(Path(job["out"]), job, table, keep))
    return {**tally.json(), "texts": _texts(job, table)}


def _files(job: Job, kind: str) -> list[tuple[int, np.ndarray]]:
    """(number of the first document, memory map) of each shard."""
    return [(first, load(job["scratch"], kind, index)) for index, first in job["shards"]]


def _range(job: Job, shards: list[tuple[int, np.ndarray]]) -> np.ndarray:
    """One range of keys from all shards. Of a shard it takes, and returns, columns uint64 [k, n]: sorted keys of one or
    two columns, cut by the first, and rows, which become document numbers."""
    low, high = ((job["range"] + step) * (1 << 64) // job["ranges"] for step in (0, 1))
    found = []
    for first, columns in shards:
        a = np.searchsorted(columns[0], np.uint64(low))
        b = columns.shape[1] if high == 1 << 64 else np.searchsorted(columns[0], np.uint64(high))
        part = np.array(columns[:, a:b])
        part[-1] += np.uint64(first)
        found.append(part)
    return np.concatenate(found, axis=1)


def _save(job: Job, kind: str, array: np.ndarray) -> None:
    path = Path(job["scratch"]) / f"{kind}-{job['index']}.npy"
    with whole(path) as partial, open(partial, "wb") as file:
        np.save(file, array)


def load(scratch: str | Path, kind: str, index: int) -> np.ndarray:
    """A shard's array as a memory map."""
    return np.lib.format.open_memmap(f"{scratch}/{kind}-{index}.npy", "r")  # np.load opens the file once more
