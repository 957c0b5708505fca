"""The encode stage: document shards to one memory-mapped token dataset, on all cores, the same bytes for any worker
count.

tiktoken encodes with the tokenizer's own merges, ids equal to `tokenizers` at five times its speed; a tokenizer that
tiktoken cannot repeat exactly is run by `tokenizers` itself. The dataset is read by the training workers with numpy
alone.
"""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config.base import Progress, quiet
from pipeline.config.tokens import EncodeSection
from pipeline.running.jobs import Job
from pipeline.tokens.encoder import CHAT_MARKS, Encoder, dataset_meta, flat_counts, write_meta

if TYPE_CHECKING:
    pass

_JOB_BYTES = (
    2 << 20
)  # a fifth of a second: enough to repay what a job costs, little enough to keep all cores busy to the end


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


def _jobs(cfg: EncodeSection, shards: Path, tokenizer: Path, out: Path, meta: dict[str, Any]) -> list[Job]:
    """Runs of whole row groups, about ``_JOB_BYTES`` of text each (however long its documents are), in document
    order."""
    import pyarrow.parquet as pq

    parts = out / "_run" / "encode.parts"
    parts.mkdir(parents=True, exist_ok=True)
    end = meta["eos_id"] if cfg.append_end_of_text else None
    common = {"tokenizer": str(tokenizer), "dtype": meta["dtype"], "end": end}
    jobs: list[Job] = []
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


def _encode_job(job: Job) -> dict[str, int]:
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
                sizes.append(len((CHAT_MARKS.sub("", text) if kind == "chat" else text).encode()))
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
