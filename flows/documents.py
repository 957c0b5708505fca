"""``pipeline lineage`` for single documents: which models read one, and which documents of a source a model read."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from flows.dag import of_kind, stage_names
from flows.environment import say
from flows.inspect import find_record, store
from pipeline.data.jsonl import read_jsonl
from storage.lineage import LineageRecord, ancestry, descent
from storage.store import Store

SHOWN = 90
"""Characters of a document that are shown."""


@dataclass(frozen=True)
class Found:
    """A document in an artifact: where it came from, in which ``split`` of shards it is, and the ``text`` around what
    was looked for."""

    stage: str
    key: str
    id: str
    source: str
    path: str
    line: int
    split: str
    text: str


def trace(what: str, within: str | None, as_json: bool) -> int:
    """Print where a document (its id, or a piece of its text) is among the artifacts that models learn from, and the
    models that descend from those; of one that no model learnt from, the last stage that still had it."""
    place = store()
    records = place.everywhere()
    try:
        allowed = _reached(place, find_record(within)) if within else list(records.values())
    except LookupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    last = [r for r in allowed if r["stage"] in learnt_from()]
    found = [hit for record in last for hit in search(place, record, what)]
    lost = [] if found else _last_seen(place, allowed, what)
    models = {
        hit.stage + hit.key: [
            r for r in descent(records, [records[hit.stage, hit.key]]) if r["stage"] in of_kind("model")
        ]
        for hit in found
    }
    if as_json:
        named = [{**asdict(hit), "models": [_name(r) for r in models[hit.stage + hit.key]]} for hit in found]
        say({"learnt": named, "dropped": [asdict(hit) for hit in lost]})
        return 0 if found or lost else 1
    for hit in found:
        split = f" ({hit.split})" if hit.split else ""
        print(f"{hit.id}  {hit.source}: {hit.path}:{hit.line}  in {hit.stage}/{hit.key[:12]}{split}\n    {hit.text}")
        held = hit.split == "val"
        readers = models[hit.stage + hit.key]
        for record in readers:
            how = "is validated on it" if held else "learnt from it"
            print(f"    {_name(record)} of run {record.get('run')} {how}")
        if not readers:
            print("    no model was made from it")
    for hit in lost:
        print(f"{hit.id}  {hit.source}: {hit.path}:{hit.line}  last in {hit.stage}/{hit.key[:12]}\n    {hit.text}")
        print("    no model learnt from it; the funnel page of the run shows what later stages drop, and why")
    if not found and not lost:
        print(f"no document of {place.root} has the id or the text {what!r}", file=sys.stderr)
    return 0 if found or lost else 1


def of_source(ref: str, source: str, limit: int, as_json: bool) -> int:
    """Print the documents of a source that a model (or any artifact) was made from, up to ``limit`` of them."""
    place = store()
    try:
        record = find_record(ref)
    except LookupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    wanted = source.rstrip("/") or source
    found = [
        hit
        for made in _reached(place, record)
        if made["stage"] in learnt_from()
        for hit in search(place, made, None)
        if hit.source == wanted
    ]
    if as_json:
        say([asdict(hit) for hit in found[: limit or None]])
    for hit in () if as_json else found[: limit or None]:
        print(f"{hit.id}  {hit.path}:{hit.line}  {hit.stage}{' ' + hit.split if hit.split else ''}  {hit.text}")
    if not as_json:
        more = f"; {limit} shown, --limit 0 shows all" if limit and len(found) > limit else ""
        print(f"{len(found):,} documents of {wanted} went into {record['stage']}/{record['key'][:12]}{more}")
    return 0 if found else 1


def learnt_from() -> tuple[str, ...]:
    """Stages whose artifacts models are trained on: the last one of documents, and those of records."""
    return (*of_kind("documents")[-1:], *of_kind("records"))


def search(place: Store, record: LineageRecord, what: str | None) -> Iterator[Found]:
    """The documents or records of an artifact with this id, or with this text in them; all of them without ``what``."""
    artifact = place.lookup(record["stage"], record["key"])
    if artifact is None:
        return
    if (artifact.path / "records.jsonl").is_file():
        yield from _in_records(artifact.path / "records.jsonl", record, what)
    for part in sorted(artifact.path.glob("**/part-*.parquet")):
        yield from _in_part(part, record, what, part.parent.name if part.parent != artifact.path else "")


def _in_part(part: Path, record: LineageRecord, what: str | None, split: str) -> Iterator[Found]:
    import pyarrow.compute  # pyright: ignore[reportMissingTypeStubs]
    import pyarrow.parquet  # pyright: ignore[reportMissingTypeStubs]

    parquet, pc = cast(Any, pyarrow.parquet), cast(Any, pyarrow.compute)  # pyarrow says no types
    for batch in parquet.ParquetFile(part).iter_batches(columns=["id", "text", "source", "path", "line"]):
        if what is not None:
            hits = pc.or_(pc.equal(batch["id"], what), pc.match_substring(batch["text"], what))
            batch = batch.filter(hits)
        for row in batch.to_pylist():
            excerpt = _excerpt(row.pop("text"), what)
            yield Found(record["stage"], record["key"], split=split, text=excerpt, **row)


def _in_records(path: Path, record: LineageRecord, what: str | None) -> Iterator[Found]:
    for row in read_jsonl(path):
        said = json.dumps(row, ensure_ascii=False)
        if what is None or row.get("id") == what or json.dumps(what, ensure_ascii=False)[1:-1] in said:
            text = "\n".join(
                _strings({k: v for k, v in row.items() if k not in ("id", "source", "path", "lang", "line")})
            )
            place = (str(row.get("id") or ""), str(row.get("source")), str(row.get("path")), int(row.get("line") or 0))
            yield Found(record["stage"], record["key"], *place, split="", text=_excerpt(text, what))


def _strings(value: object) -> Iterator[str]:
    """The texts in a record, depth first; names of fields and roles left out."""
    if isinstance(value, dict):
        for name, item in cast(dict[str, object], value).items():
            if name != "role":
                yield from _strings(item)
    elif isinstance(value, list):
        for item in cast(list[object], value):
            yield from _strings(item)
    elif isinstance(value, str):
        yield value


def _excerpt(text: str, what: str | None) -> str:
    """One line of the text around what was looked for."""
    at = max(0, text.find(what)) if what else 0
    begin = max(0, at - SHOWN // 3)
    piece = " ".join(text[begin : begin + SHOWN].split())
    return ("…" if begin else "") + piece + ("…" if begin + SHOWN < len(text) else "")


def _last_seen(place: Store, allowed: list[LineageRecord], what: str) -> list[Found]:
    """The document in the artifacts of the last document stage that has it."""
    for stage in reversed([name for name in stage_names() if name in of_kind("documents")]):
        found = [hit for record in allowed if record["stage"] == stage for hit in search(place, record, what)]
        if found:
            return found
    return []


def _reached(place: Store, record: LineageRecord) -> list[LineageRecord]:
    return ancestry(place.record, (record["stage"], record["key"]))


def _name(record: LineageRecord) -> str:
    return f"{record['stage']}/{record['key'][:12]}"
