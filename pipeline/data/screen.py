"""Chats and preference pairs on their way to training: read in any form, searched for evaluation texts, written in
normal form.

A record's texts are searched as documents are (:mod:`pipeline.data.decontaminate`): what a model is asked must come
from its fine-tuning data no more than from its text. Short questions, which have no n-gram to look for, count when a
message is that question and nothing else; case and punctuation aside. The artifact holds ``records.jsonl`` (one record
of the normal form a line, in source, file and line order), ``stats.json``, ``samples.jsonl`` and
``contamination.jsonl`` like the document stages'.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.base import Progress, quiet
from pipeline.config.cleaning import DecontaminateSection
from pipeline.data.decontaminate import decontaminate
from pipeline.data.documents import SCHEMA, Tally, finish, flat, parts, write_part
from pipeline.data.jsonl import read_jsonl
from pipeline.data.records import Losses
from pipeline.data.text import whole
from pipeline.formats.record import Record
from pipeline.sources import Source

Read = Callable[..., Iterator[Record]]
_ROWS = 4096
_TELL_SECONDS = 0.5
_SHORT = 80
"""Letters and digits up to which a question is looked for as a whole message."""


def screen(
    cfg: DecontaminateSection,
    read: Read,
    sources: Sequence[Source],
    evals: Sequence[Record],
    out: Path,
    *,
    workers: int = 1,
    engine: str = "local",
    progress: Progress = quiet,
) -> dict[str, float]:
    """Write what ``read`` (read_chats or read_preferences) finds in ``sources`` to ``out``, without records that hold
    an item of ``evals``.

    Returns flat metrics. Raises ValueError when a source is worse than ``cfg.max_bad_records`` allows, or when nothing
    is left.
    """
    work, losses, tally, short = out / "_run", Losses(), Tally(), _Short(cfg, evals)
    for name in ("docs", "kept"):
        shutil.rmtree(work / name, ignore_errors=True)
        (work / name).mkdir(parents=True)
    part = number = 0
    with open(work / "all.jsonl", "w", encoding="utf-8") as lines:
        found = read(sources, max_bad_share=cfg.max_bad_records, ignored=cfg.ignore_fields, losses=losses)
        for records in _batches(_told(found, progress)):
            records = [record for record in records if not short.drops(record, tally)]
            told = [whole(json.dumps(record, ensure_ascii=False, sort_keys=True)) for record in records]
            lines.writelines(line + "\n" for line in told)
            if records:
                write_part(work / "docs", part, _table(records, told, number))
            part, number = part + 1, number + len(records)
    results = [tally.json(), _unread(losses)]
    counts: dict[str, Counter[str]] = {"all": Counter()}
    if any((work / "docs").iterdir()):
        decontaminate(cfg, work / "docs", evals, work / "kept", workers=workers, engine=engine, progress=progress)
        results.append(_screened(work / "kept"))
        counts = short.write(list(read_jsonl(work / "kept" / "contamination.jsonl")), out)
    stats = finish(out, results, evaluation=counts)
    if not stats["docs_out"]:
        raise ValueError(
            f"no record is left: {', '.join(f'{reason} {n}' for reason, n in stats['dropped'].items())}; see"
            f" {out / 'samples.jsonl'}"
        )
    _write(work, out)
    shutil.rmtree(work / "docs")
    shutil.rmtree(work / "kept")
    (work / "all.jsonl").unlink()
    return flat(stats) | {f"items/{result}": n for result, n in counts["all"].items()}


class _Short:
    """Evaluation items of few characters, which are found as whole messages."""

    def __init__(self, cfg: DecontaminateSection, evals: Sequence[Record]) -> None:
        self.cfg, self.evals = cfg, evals
        self.items: dict[str, list[int]] = {}
        for i, item in enumerate(evals):
            if len(text := _plain(item["text"])) <= _SHORT:
                self.items.setdefault(text, []).append(i)
        self.hits: dict[int, list[str]] = {i: [] for items in self.items.values() for i in items}

    def drops(self, record: Record, tally: Tally) -> bool:
        """Book the items that a message of the record is; whether the record has to go for one of them."""
        said = [message["content"] for message in record.get("messages") or record["prompt"]]
        found = [i for text in said if len(text) <= 2 * _SHORT for i in self.items.get(_plain(text), ())]
        drop = False
        for i in dict.fromkeys(found):
            self.hits[i].append(_name(json.dumps(record, sort_keys=True)))
            drop |= self.cfg.action == "drop" and self.evals[i]["set"] not in self.cfg.in_distribution
        if drop:
            place = {"id": self.hits[found[0]][-1], **{key: record[key] for key in ("source", "path", "line")}}
            item = self.evals[found[0]]
            tally.note(
                "dropped",
                "contaminated",
                place,
                lambda: (whole(_text(record)), ""),
                f"asks evaluation item {item['set']}/{item['id']}",
            )
            tally.numbers["docs_in"] += 1
            tally.by["by_source"].setdefault(record["source"], Counter())["docs_in"] += 1
        return drop

    def write(self, found: list[Record], out: Path) -> dict[str, Counter[str]]:
        """Write ``contamination.jsonl``, the short items' results put in; returns how many items of each set came out
        how."""
        counts: dict[str, Counter[str]] = {"all": Counter()}
        with open(out / "contamination.jsonl", "w", encoding="utf-8") as lines:
            for i, item in enumerate(found):
                hits = self.hits.get(i, [])
                item["documents"] += len(hits)
                item["left"] += (
                    0 if self.cfg.action == "drop" and item["set"] not in self.cfg.in_distribution else len(hits)
                )
                item["examples"] = sorted([*item["examples"], *hits])[:5]
                if i in self.hits and item["result"] in ("clean", "too_short"):
                    item["result"] = "overlapping" if hits else "clean"
                for name in ("all", item["set"]):
                    counts.setdefault(name, Counter())[item["result"]] += 1
                lines.write(json.dumps(item, ensure_ascii=False) + "\n")
        return counts


def _plain(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())


def _name(line: str) -> str:
    return hashlib.blake2b(line.encode(), digest_size=16).hexdigest()


def _told(records: Iterable[Record], progress: Progress) -> Iterator[Record]:
    """The records; how many there were so far is told twice a second and at the end."""
    last, number = time.monotonic(), 0
    for number, record in enumerate(records, 1):
        yield record
        if time.monotonic() - last > _TELL_SECONDS:
            progress(number, None, "records")
            last = time.monotonic()
    progress(number, number, "records")


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    iterator = iter(records)
    while rows := list(islice(iterator, _ROWS)):
        yield rows


def _table(records: Sequence[Record], told: Sequence[str], first: int) -> pa.Table:
    """Records as documents: their texts a line each, the number of the record as origin."""
    rows = [
        (
            _name(line),
            whole(_text(record)),
            None,
            record["source"],
            record["path"],
            record["line"],
            str(first + i),
            "chat",
        )
        for i, (record, line) in enumerate(zip(records, told, strict=True))
    ]
    columns = zip(zip(*rows, strict=True), SCHEMA, strict=True)
    return pa.Table.from_arrays([pa.array(column, field.type) for column, field in columns], schema=SCHEMA)


def _text(record: Record) -> str:
    messages = record["messages"] if "messages" in record else record["prompt"]
    said = [message["content"] for message in messages] + [
        record[side] for side in ("chosen", "rejected") if side in record
    ]
    return "\n".join(said)


def _unread(losses: Losses) -> dict[str, Any]:
    """What could not be read, as a job's result."""
    samples: dict[str, list[Record]] = {}
    for sample in losses.samples:
        samples.setdefault(sample["rule"], []).append({"id": "", "before": "", "after": "", **sample})
    by_source = {source: {"docs_in": n} for source, n in losses.by_source.items()}
    return {
        "numbers": {"docs_in": losses.dropped.total()},
        "dropped": losses.dropped,
        "changed": losses.changed,
        "by_source": by_source,
        "by_lang": {},
        "samples": samples,
    }


def _screened(kept: Path) -> dict[str, Any]:
    """What decontaminate found, as a job's result."""
    stats = json.loads((kept / "stats.json").read_text(encoding="utf-8"))
    samples: dict[str, list[Record]] = {}
    for sample in read_jsonl(kept / "samples.jsonl"):
        samples.setdefault(sample["rule"], []).append(sample)
    numbers = {key: stats[key] for key in ("docs_in", "docs_out", "chars_in", "chars_out")}
    return {key: stats[key] for key in ("dropped", "changed", "by_source", "by_lang")} | {
        "numbers": numbers,
        "samples": samples,
    }


def _write(work: Path, out: Path) -> None:
    """Copy the lines of the records that stayed."""
    numbers = iter(
        int(n)
        for part in parts(work / "kept")
        for n in pq.read_table(part, columns=["origin_id"])["origin_id"].to_pylist()
    )
    wanted = next(numbers, -1)
    with (
        open(work / "all.jsonl", encoding="utf-8") as lines,
        open(out / "records.jsonl", "w", encoding="utf-8") as kept,
    ):
        for number, line in enumerate(lines):
            if number == wanted:
                kept.write(line)
                wanted = next(numbers, -1)
