"""The encode stage: document shards to one memory-mapped token dataset, on all cores, the same bytes for any worker
count.

tiktoken encodes with the tokenizer's own merges, ids equal to `tokenizers` at five times its speed; a tokenizer that
tiktoken cannot repeat exactly is run by `tokenizers` itself. The dataset is read by the training workers with numpy
alone.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.tokens.chat import IM_END, IM_START, ChatTokenizer
from pipeline.config.base import Progress, quiet
from pipeline.config.tokens import EncodeSection
from pipeline.tokens.bpe import to_tiktoken

if TYPE_CHECKING:
    import tiktoken
    from tokenizers import Tokenizer

_CHAT_MARKS = re.compile(f"({re.escape(IM_START)}|{re.escape(IM_END)})")
_PROBES = (
    "Hello,  world!\n\n\tif x: it's 12345\r\n",
    "语言模型，是怎样炼成的？\n第二行 ",
    "naïve café 😀 ́ ",
    "<|im_start|>user\n<|endoftext|>",
)
_JOB_BYTES = (
    2 << 20
)  # a fifth of a second: enough to repay what a job costs, little enough to keep all cores busy to the end


class Encoder(ChatTokenizer):
    """The chat tokenizer with a faster engine inside: "tiktoken" where it gives the ids of `tokenizers`, else that
    itself."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._fast: tiktoken.Encoding | None = None
        super().__init__(tokenizer)
        unknown = getattr(tokenizer.model, "unk_token", None)
        self.unknown_id = tokenizer.token_to_id(unknown) if unknown else -1
        added = tokenizer.get_added_tokens_decoder().values()
        self._literal = {token.content for token in added if not token.special}  # these are text to `tokenizers` too
        expected = [self.encode(text) for text in _PROBES]
        self._fast = to_tiktoken(tokenizer.to_str())
        if self._fast and [self.encode(text) for text in _PROBES] != expected:
            self._fast = None
        self.engine = "tiktoken" if self._fast else "tokenizers"

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; nothing is added and nothing is parsed."""
        return self.ids(text).tolist() if self._fast else super().encode(text)

    def ids(self, text: str, *, parse_chat: bool = False) -> np.ndarray:
        """Ids (uint32). With ``parse_chat``, written ``<|im_start|>`` and ``<|im_end|>`` become their ids; else they
        are text."""
        if self._fast:
            allowed = {*self._literal, IM_START, IM_END} if parse_chat else self._literal
            return self._fast.encode_to_numpy(text, allowed_special=allowed, disallowed_special=())
        if not parse_chat:
            return np.array(self.encode(text), dtype=np.uint32)
        marks = {IM_START: [self.bos_id], IM_END: [self.eos_id]}
        return np.array(
            [i for piece in _CHAT_MARKS.split(text) for i in marks.get(piece) or self.encode(piece)], dtype=np.uint32
        )


def encode_text(
    cfg: EncodeSection,
    shards: Path,
    tokenizer: Path,
    out: Path,
    *,
    workers: int = 1,
    engine: str = "local",
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Encode ``shards/{train,val}/part-*.parquet`` into a token dataset of kind "text" at ``out``; returns flat
    metrics.

    Documents of kind "chat" have their ChatML marks parsed, text never. Raises ValueError when there is nothing to
    train on.
    """
    from pipeline.running.executor import run_shards

    meta = dataset_meta("text", tokenizer)
    jobs = _jobs(cfg, shards, tokenizer, out, meta)
    if not any(job["split"] == "train" for job in jobs):
        raise ValueError(f"{shards}: no training documents (train/part-*.parquet has no rows)")
    done = run_shards(
        _encode_job, jobs, workers=workers, done=out / "_run" / "encode", engine=engine, progress=progress
    )
    for split in ("train", "val"):
        mine = [(job, counts) for job, counts in zip(jobs, done, strict=True) if job["split"] == split]
        _join([Path(job["prefix"]) for job, _ in mine], out / split)
        meta["splits"][split] = {
            key: sum(counts[key] for _, counts in mine) for key in ("sequences", "tokens", "bytes", "supervised")
        }
    write_meta(out, meta)
    shutil.rmtree(out / "_run" / "encode")  # markers before parts: a marker promises its part
    shutil.rmtree(out / "_run" / "encode.parts")
    return flat_counts(meta)


def dataset_meta(kind: str, tokenizer: Path) -> dict[str, Any]:
    """The head of a token dataset's ``meta.json``: format, kind, dtype, special ids, the tokenizer's sha256; no splits
    yet."""
    chat = ChatTokenizer.load(tokenizer)
    return {
        "format": "tokens/1",
        "kind": kind,
        "dtype": "uint16" if chat.vocab_size <= 2**16 else "uint32",
        "vocab_size": chat.vocab_size,
        "eos_id": chat.end_of_text_id if kind == "text" else chat.eos_id,
        "bos_id": chat.bos_id,
        "pad_id": chat.pad_id,
        "tokenizer": hashlib.sha256(Path(tokenizer, "tokenizer.json").read_bytes()).hexdigest(),
        "splits": {},
    }


def write_meta(out: Path, meta: dict[str, Any]) -> None:
    """Write ``meta.json``; it comes last, so a dataset without it is one whose making was cut short."""
    (out / "meta.json").write_text(json.dumps(meta, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def flat_counts(meta: dict[str, Any]) -> dict[str, float]:
    """``{train_tokens: …, val_sequences: …}`` of a dataset, with bytes per token of the training split."""
    flat = {f"{split}_{name}": n for split, row in meta["splits"].items() for name, n in row.items()}
    train = meta["splits"]["train"]
    return {**flat, "bytes_per_token": round(train["bytes"] / max(1, train["supervised"]), 4)}


def _jobs(cfg: EncodeSection, shards: Path, tokenizer: Path, out: Path, meta: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs of whole row groups, about ``_JOB_BYTES`` of text each (however long its documents are), in document
    order."""
    import pyarrow.parquet as pq

    parts = out / "_run" / "encode.parts"
    parts.mkdir(parents=True, exist_ok=True)
    end = meta["eos_id"] if cfg.append_end_of_text else None
    common = {"tokenizer": str(tokenizer), "dtype": meta["dtype"], "end": end}
    jobs: list[dict[str, Any]] = []
    for split in ("train", "val"):
        for path in sorted((shards / split).glob("part-*.parquet")):
            file = pq.ParquetFile(path).metadata
            groups: list[int] = []
            held = 0
            for group in range(file.num_row_groups):
                groups.append(group)
                held += file.row_group(group).total_byte_size
                if held >= _JOB_BYTES or group == file.num_row_groups - 1:
                    prefix = str(parts / f"{split}-{len(jobs):05d}")
                    jobs.append(
                        {
                            "shard": f"{split}/{path.name}",
                            "split": split,
                            "path": str(path),
                            "groups": groups,
                            "prefix": prefix,
                            **common,
                        }
                    )
                    groups, held = [], 0
    return [job for job in jobs if job["groups"]]


_encoder = functools.lru_cache(maxsize=1)(Encoder.load)  # one a worker process: building it costs more than a small job


def _encode_job(job: dict[str, Any]) -> dict[str, int]:
    """Encode some row groups of one shard to ``prefix.bin`` and ``prefix.idx.npy`` (lengths); returns the counts."""
    import pyarrow.parquet as pq

    encoder = _encoder(job["tokenizer"])
    end = np.array([] if job["end"] is None else [job["end"]], dtype=job["dtype"])
    lengths: list[int] = []
    sizes: list[int] = []
    with pq.ParquetFile(job["path"]) as file, open(job["prefix"] + ".bin", "wb") as sink:
        for batch in file.iter_batches(batch_size=512, row_groups=job["groups"], columns=["text", "kind"]):
            pieces = []
            for text, kind in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True):
                ids = encoder.ids(text, parse_chat=kind == "chat")
                pieces += [ids.astype(job["dtype"]), end]
                lengths.append(len(ids) + len(end))
                # a mark that becomes a special token spells nothing
                sizes.append(len((_CHAT_MARKS.sub("", text) if kind == "chat" else text).encode()))
            np.concatenate(pieces).tofile(sink)
    np.save(job["prefix"] + ".idx.npy", np.array(lengths, dtype=np.int64))
    np.save(job["prefix"] + ".bytes.npy", np.array(sizes, dtype=np.int64))
    tokens = sum(lengths)
    return {"sequences": len(lengths), "tokens": tokens, "bytes": sum(sizes), "supervised": tokens}


def _join(prefixes: list[Path], target: Path) -> None:
    """Put the jobs' parts one after another as ``<target>.bin``, ``<target>.idx.npy`` (offsets, int64 [n + 1]) and
    ``<target>.bytes.npy`` (UTF-8 bytes of each document's text, int64 [n])."""
    with open(f"{target}.bin", "wb") as sink:
        for prefix in prefixes:
            with open(f"{prefix}.bin", "rb") as part:
                shutil.copyfileobj(part, sink, 1 << 22)
    lengths = [np.load(f"{prefix}.idx.npy") for prefix in prefixes]
    offsets = np.cumsum(np.concatenate([np.zeros(1, dtype=np.int64), *lengths]), dtype=np.int64)
    np.save(f"{target}.idx.npy", offsets)
    sizes = [np.load(f"{prefix}.bytes.npy") for prefix in prefixes]
    np.save(f"{target}.bytes.npy", np.concatenate([np.zeros(0, dtype=np.int64), *sizes]))
