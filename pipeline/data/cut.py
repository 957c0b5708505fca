"""Cutting input files into pieces of about one part each, so that one large file keeps all workers busy.

Plain JSONL is cut at line ends by byte offsets. A compressed JSONL file has no such places, so a moderate one is
inflated into pieces on disk (``spool``), which are read like plain ones; one above :data:`SPOOL_LIMIT`, or one of many,
is read by one worker from end to end. Parquet is cut at row groups. How a file is cut depends on the files and the
config alone, never on the number of workers. A single file is cut while its first pieces are read already; several are
cut side by side before.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from pipeline.config.data import IngestSection
from pipeline.readers.legacy import unmarked_utf16
from pipeline.readers.streams import CHUNK, Broken, Range, chunks, local_path
from pipeline.running.executor import run_shards
from pipeline.running.jobs import Job
from pipeline.sources.kinds import compression_of, format_of
from storage.files import write_bytes

SPOOL_LIMIT = 1 << 29
"""Compressed bytes up to which a file is inflated to disk first (about 2 GB of text)."""
_SPOOL_FILES = 16
"""With more compressed files than this there is enough to do side by side without inflating them first."""
_PIECES, _LEAST = 32, 1 << 20
"""A small input is cut into about 32 pieces, so that no worker waits long for the last; but into none of less than a
megabyte."""


def cut_files(files: list[Job], cfg: IngestSection, work: Path, *, workers: int, engine: str) -> Iterator[Job]:
    """Pieces of ``files`` in order. A file has source, relpath, location, bytes, sha256; a piece adds format, and
    start, end, first_line or groups."""
    size = piece_bytes(files, cfg)
    squeezed = sum(compression_of(f["location"]) is not None for f in files) <= _SPOOL_FILES
    jobs = {}
    for i, file in enumerate(files):
        how = _how(file, size, squeezed)
        if how:
            sizes = {"size": size, "longest": cfg.max_record_mb << 20}
            jobs[i] = {
                "file": file,
                "how": how,
                "spool": str(work / "spool" / f"{i:05d}"),
                "shard": file["relpath"],
                **sizes,
            }
    cut = {}
    if len(jobs) > 1:
        done = run_shards(cut_job, list(jobs.values()), workers=workers, done=work / "cut", engine=engine)
        cut = {i: result["pieces"] for i, result in zip(jobs, done, strict=True)}
    for i, file in enumerate(files):
        yield from cut[i] if i in cut else _pieces(jobs[i]) if i in jobs else _whole(file, cfg)


def piece_bytes(files: list[Job], cfg: IngestSection) -> int:
    """About how large a piece is: ``part_mb``, less for a small input."""
    return max(_LEAST, min(cfg.part_mb << 20, sum(map(_inflated, files)) // _PIECES))


def _inflated(file: Job) -> int:
    """Bytes when inflated: compressed text comes out about four times as large."""
    return file["bytes"] * (4 if compression_of(file["location"]) else 1)


def _how(file: Job, size: int, squeezed: bool) -> str | None:
    """ "lines", "spool" or "groups" for a file that is worth cutting."""
    kind, location = format_of(file["location"]), file["location"]
    if location.startswith("s3://"):
        return None
    if kind == "parquet" and file["bytes"] > size and not compression_of(location):
        return "groups"
    if kind != "jsonl":
        return None
    if compression_of(location):
        return "spool" if squeezed and size // 8 < file["bytes"] <= SPOOL_LIMIT else None
    return "lines" if file["bytes"] > size else None


def _whole(file: Job, cfg: IngestSection) -> list[Job]:
    """A file that is not cut, as one piece; python-docs as its runs."""
    from pipeline.sources.python_docs import LOCATION, runs
    from pipeline.sources.teaching import FACTS

    if file["location"] == LOCATION:
        return [{**file, **run, "format": LOCATION, "bytes": cfg.part_mb << 20} for run in runs(cfg.python_docs_chars)]
    if file["location"] == "arithmetic":
        return [{**file, "format": "arithmetic"}]
    if file["source"] == "teaching" and Path(file["location"]).parent == FACTS:
        return [{**file, "format": "teaching"}]
    return [{**file, "format": format_of(file["location"]), "bytes": _inflated(file)}]


def cut_job(job: Job) -> Job:
    """Cut one file; returns ``{"pieces": […]}``."""
    return {"pieces": list(_pieces(job))}


def _pieces(job: Job) -> Iterator[Job]:
    """The pieces of one file. One that cannot be opened is one piece, and its reader says what is wrong."""
    base, size = {**job["file"], "format": format_of(job["file"]["location"])}, job["size"]
    try:
        whole = job["how"] != "groups" and _must_stay_whole(base["location"])
        runs = list(_groups(base, size)) if job["how"] == "groups" else []
    except (OSError, ValueError, Broken):
        whole, runs = True, []
    if whole:
        yield base
    elif job["how"] == "spool":
        yield from _spooled(base, size, job["longest"], Path(job["spool"]))
    else:
        yield from runs or _ranges(base, size)


def _must_stay_whole(location: str) -> bool:
    """A ``.jsonl`` file may hold one JSON array, or UTF-16: its reader finds out, and needs the whole file for it."""
    head = next(chunks({"location": location}), b"")
    marked = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[" or marked or unmarked_utf16(head) is not None


def _ranges(base: Job, size: int) -> Iterator[Job]:
    """Byte ranges that begin and end at line ends, with the number of their first line."""
    start, line, at = 0, 1, 0
    number = 1
    with open(local_path(base["location"]), "rb") as file:
        while data := file.read(CHUNK):
            at += len(data)
            end = data.rfind(b"\n") + 1
            if end and at - len(data) + end - start >= size:
                stop = at - len(data) + end
                yield {**base, "start": start, "end": stop, "bytes": stop - start, "first_line": line}
                start, line = stop, number + data.count(b"\n", 0, end)
            number += data.count(b"\n")
    if at > start:
        yield {**base, "start": start, "end": at, "bytes": at - start, "first_line": line}


def _spooled(base: Job, size: int, longest: int, spool: Path) -> Iterator[Job]:
    """Inflate into files of whole lines below ``spool``. Where the compression breaks off, the last piece carries the
    reason.

    What cannot be spooled (a line is longer than a record may be) is one last piece, which its reader inflates again. A
    full disk is an error: another cut of the same file would give other parts.
    """
    index, line, at, held, broken = 0, 1, 0, 0, None
    kept: list[bytes] = []
    spool.mkdir(parents=True, exist_ok=True)
    stream = chunks(cast(Range, base))
    while True:
        try:
            data = next(stream, b"")
        except Broken as error:
            data, broken = b"", [error.reason, error.detail]
        except OSError:  # its reader says so
            yield {**base, "skip": at, "first_line": line}
            return
        end = data.rfind(b"\n") + 1
        if data and (not end or held + end < size):
            kept.append(data)
            held += len(data)
            if held > longest + size:
                yield {**base, "skip": at, "first_line": line}
                return
            continue
        whole = b"".join([*kept, data[:end]])
        if whole or broken:
            path = spool / f"{index:05d}.jsonl"
            write_bytes(path, whole)
            piece = {
                **base,
                "location": str(path),
                "whole": base["location"],
                "start": 0,
                "end": len(whole),
                "bytes": len(whole),
                "first_line": line,
            }
            yield {**piece, "broken": broken} if broken else piece
        if not data:
            return
        index, line, at, kept, held = (
            index + 1,
            line + whole.count(b"\n"),
            at + len(whole),
            [data[end:]],
            len(data) - end,
        )


def _groups(base: Job, size: int) -> Iterator[Job]:
    """Runs of row groups of about ``size`` bytes uncompressed, with the number of their first row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        meta = pq.ParquetFile(local_path(base["location"])).metadata
    except pa.ArrowException as error:
        raise ValueError(str(error)) from None
    groups, held, row, first = [], 0, 1, 1
    for group in range(meta.num_row_groups):
        groups.append(group)
        held += meta.row_group(group).total_byte_size
        row += meta.row_group(group).num_rows
        if held >= size or group == meta.num_row_groups - 1:
            yield {**base, "groups": groups, "first_line": first, "bytes": held}
            groups, held, first = [], 0, row
