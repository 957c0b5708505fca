"""Records to a token dataset with loss masks: what conversations and preference pairs have in common.

A record that cannot be trained on is dropped, counted by reason and sampled with file and line in ``dropped.jsonl``.
The validation split is chosen by a hash of the content, so the same record always falls on the same side for the same
data, and copies never lie on both sides.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from model.tokens.jinja import TemplateRefuses
from model.tokens.turns import Message
from pipeline.config.base import Progress
from pipeline.data.counted import Counted
from pipeline.formats.record import Record
from pipeline.tokens.encoder import Encoder, dataset_meta, flat_counts, write_meta

_TELL_SECONDS = 0.5
Sequence = tuple[list[int], list[int]]
"""Ids and mask."""


class Unusable(Exception):
    """Why a record cannot be trained on; the word is the reason under which it is counted."""


class Made(NamedTuple):
    """What a record becomes: its sequences, UTF-8 bytes of the targets' text, messages that the window left out, and
    messages after the last answer."""

    sequences: list[Sequence]
    size: int
    left_out: int
    unanswered: int = 0


def fit(chat: Encoder, messages: list[Message], room: int) -> tuple[list[Message], int]:
    """What fits of a history, and how many messages went. Raises Unusable("too_long")."""
    kept = chat.fit(messages, room)
    if kept is None:
        raise Unusable("too_long")
    return kept


def context_only(message: Message) -> Message:
    """A message of the history: nothing in it is learnt."""
    return {**message, "learn": False} if message["role"] == "assistant" else message


class _Spool:
    """Sequences on disk, what is needed to split them in memory: lengths, bytes and a hash a record."""

    def __init__(self, directory: Path, dtype: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.paths = directory / "spool.bin", directory / "spool.mask"
        self.files = [open(path, "wb") for path in self.paths]  # noqa: SIM115 - open as long as the spool
        self.dtype = dtype
        self.lengths: list[list[int]] = []
        self.sizes: list[int] = []
        self.hashes: list[int] = []
        self.weights: list[float] = []

    def add(self, sequences: list[Sequence], size: int, digest: int, weight: float = 1.0) -> None:
        for ids, mask in sequences:
            np.array(ids, dtype=self.dtype).tofile(self.files[0])
            np.array(mask, dtype=np.uint8).tofile(self.files[1])
        self.lengths.append([len(ids) for ids, _ in sequences])
        self.sizes.append(size)
        self.hashes.append(digest)
        self.weights.append(weight)

    def copies(self, seed: int) -> np.ndarray:
        """How often each record appears in training (int64): its weight, the fraction by a hash of its content."""
        weights = np.array(self.weights)
        chances = [_hash([seed, "copies", digest]) / 2**64 for digest in self.hashes]
        return np.floor(weights).astype(np.int64) + (np.array(chances) < weights % 1)

    def validation(self, share: float) -> np.ndarray:
        """Which records are held out (bool): those of the lowest hashes, at least one; none when that would leave
        nothing."""
        count = math.ceil(share * len(self.hashes))
        if count == 0 or len(self.hashes) < 2:
            return np.zeros(len(self.hashes), dtype=bool)
        held = np.array(self.hashes, dtype=np.uint64) <= np.uint64(sorted(self.hashes)[count - 1])
        return held if not held.all() else np.zeros_like(held)

    def write(self, out: Path, split: str, copies: np.ndarray) -> dict[str, int]:
        """Copy the records as often as ``copies`` [records] says to ``<split>.{bin,mask.bin,idx.npy}``, first copies
        before second ones, so that equal ones lie apart; returns the split's counts."""
        chosen = np.concatenate([np.flatnonzero(copies > k) for k in range(int(copies.max(initial=0)))] or [copies[:0]])
        for file in self.files:
            file.flush()
        ids = np.memmap(self.paths[0], dtype=self.dtype, mode="r")
        mask = np.memmap(self.paths[1], dtype=np.uint8, mode="r")
        ends = np.cumsum([sum(lengths) for lengths in self.lengths])
        lengths: list[int] = []
        supervised = 0
        with open(out / f"{split}.bin", "wb") as id_sink, open(out / f"{split}.mask.bin", "wb") as mask_sink:
            for i in chosen:
                span = slice(int(ends[i]) - sum(self.lengths[i]), int(ends[i]))
                ids[span].tofile(id_sink)
                mask[span].tofile(mask_sink)
                supervised += int(np.count_nonzero(mask[span]))
                lengths += self.lengths[i]
        np.save(out / f"{split}.idx.npy", np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)]))
        size = sum(self.sizes[i] for i in chosen)
        return {"sequences": len(lengths), "tokens": sum(lengths), "bytes": size, "supervised": supervised}

    def remove(self) -> None:
        for file, path in zip(self.files, self.paths, strict=True):
            file.close()
            path.unlink()


def write_dataset(
    records: Iterable[Record],
    make: Callable[[Record, Encoder, int], Made],
    kind: str,
    tokenizer: Path,
    out: Path,
    max_tokens: int,
    val_share: float,
    seed: int,
    progress: Progress,
    weights: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, Any]:
    """Encode records to a token dataset at ``out``; see :func:`pipeline.tokens.chats.encode_chats`.

    ``weights``: how many times a source's records appear in training, 1 where not named. A record of weight 0 is not
    encoded. Raises ValueError when nothing is left to train on.
    """
    meta = dataset_meta(kind, tokenizer)
    spool = _Spool(out / "_run", meta["dtype"])
    counts = {"records": 0, "truncated": 0, "messages_left_out": 0, "messages_unanswered": 0}
    dropped = Counted()
    wanted = (record for record in records if weights.get(record.get("source", ""), 1.0))
    for record, made in _usable(wanted, make, Encoder.load(tokenizer), max_tokens, counts, dropped, progress):
        spool.add(made.sequences, made.size, _digest(record, seed), weights.get(record.get("source", ""), 1.0))
        counts["truncated"] += made.left_out > 0
        counts["messages_left_out"] += made.left_out
        counts["messages_unanswered"] += made.unanswered
    if not spool.hashes:
        raise ValueError(
            f"no {kind} records left to train on; dropped: {dict(dropped.counts) or 'none were given'} (window:"
            f" {max_tokens} tokens)"
        )
    held = spool.validation(val_share)
    copies = np.where(held, 0, spool.copies(seed))
    if not copies.any():
        raise ValueError(f"no {kind} record is left to train on: the weights of their sources are 0 or too small")
    meta["splits"] = {"train": spool.write(out, "train", copies), "val": spool.write(out, "val", held.astype(int))}
    spool.remove()
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in dropped.samples]
    (out / "dropped.jsonl").write_text("".join(lines), encoding="utf-8")
    write_meta(out, meta)
    return {
        **flat_counts(meta),
        **counts,
        "dropped": sum(dropped.counts.values()),
        **{f"dropped_{k}": n for k, n in sorted(dropped.counts.items())},
    }


def _usable(
    records: Iterable[Record],
    make: Callable[[Record, Encoder, int], Made],
    chat: Encoder,
    limit: int,
    counts: dict[str, int],
    dropped: Counted,
    progress: Progress,
) -> Iterator[tuple[Record, Made]]:
    told = time.monotonic()
    for record in records:
        counts["records"] += 1
        try:
            yield record, make(record, chat, limit)
        except Unusable as reason:
            dropped.add(str(reason), _example(str(reason), record))
        except TemplateRefuses as refusal:
            dropped.add("template_refuses", _example("template_refuses", record, str(refusal)))
        if time.monotonic() - told > _TELL_SECONDS:
            progress(counts["records"], None, "records")
            told = time.monotonic()
    progress(counts["records"], counts["records"], "records")


def _example(reason: str, record: Record, why: str = "") -> dict[str, Any]:
    """A dropped record as an example of why."""
    place = {key: record.get(key) for key in ("source", "path", "line")}
    excerpt = json.dumps(record.get("messages") or record.get("prompt"), ensure_ascii=False)[:400]
    return {"reason": reason, **({"why": why} if why else {}), **place, "excerpt": excerpt}


def _digest(record: Record, seed: int) -> int:
    content = record.get("messages") or [record["prompt"], record["chosen"], record["rejected"]]
    return _hash([seed, content])


def _hash(value: object) -> int:
    data = json.dumps(value, ensure_ascii=False, sort_keys=True).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
