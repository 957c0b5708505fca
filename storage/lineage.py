"""Lineage records: what one is, how one is read, and the walks over them as a graph.

A record is JSON that may come from another machine, so :func:`parse` takes only what has the shape of one and belongs
to the place where it lay. All questions (what was this made from, what was made from that, which models read this
file) are answered by the two walks, :func:`ancestry` and :func:`descent`, over the one step :func:`parents`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypeAlias, TypedDict, cast

Place = tuple[str, str]
"""Stage and key of an artifact."""
PLAIN = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""What a stage or a key may be called: they name directories."""
INPUTS = "inputs.json"
"""Beside the lineage record of an artifact that read sources: the files of each, see :class:`SourceListing`."""


class SourceEntry(TypedDict):
    """A source from outside as an input's record tells it; ``files`` and ``bytes`` are counts."""

    name: str
    digest: str
    files: NotRequired[int]
    bytes: NotRequired[int]


class SourceFile(TypedDict):
    """One file of a source: its path in the source, size, and sha256 (of an S3 object: of its ETag and size)."""

    path: str
    bytes: int
    sha256: str


class SourceListing(TypedDict):
    """The files of one source, as they were read."""

    name: str
    digest: str
    files: list[SourceFile]


class Input(TypedDict):
    """An input of an artifact: another artifact, or (``stage`` "source") sources from outside."""

    name: str
    stage: str
    key: str
    digest: str
    sources: NotRequired[list[SourceEntry]]


Identity: TypeAlias = dict[str, Any]
"""What a cache key is hashed from: stage, version, code, libs, section, inputs."""


class AdoptedFrom(TypedDict):
    """The artifact of older code whose bytes were taken over."""

    stage: str
    key: str
    digest: str
    created: str
    differences: list[str]


class LineageRecord(TypedDict):
    """From what an artifact was made, by which code, in which run; ``lineage.json``. ``sources`` are all it comes from
    at any distance; ``withdrawn`` is added where records are listed."""

    stage: str
    key: str
    digest: str
    inputs: list[Input]
    sources: list[SourceEntry]
    created: str
    run: NotRequired[str | None]
    seconds: NotRequired[float]
    metrics: NotRequired[dict[str, Any]]
    identity: NotRequired[Identity]
    resources: NotRequired[dict[str, Any]]
    kind: NotRequired[str]
    base: NotRequired[str | None]
    adopted_from: NotRequired[AdoptedFrom]
    withdrawn: NotRequired[str]


class Node(TypedDict):
    """One line of a tree that is shown, and the nodes below it."""

    stage: str
    key: str
    digest: str
    name: str
    what: str
    links: list[Node]


class FileUse(TypedDict):
    """A file of a source, and an artifact that read it."""

    source: str
    source_digest: str
    file: SourceFile
    record: LineageRecord


Records = Mapping[Place, LineageRecord]
"""Lineage records by (stage, key)."""


def parse(data: bytes | str, stage: str, key: str) -> LineageRecord:
    """The record of the artifact ``stage/key`` from its JSON. Raises ValueError in words when it is not one."""
    loaded = json.loads(data)
    if not isinstance(loaded, dict):
        raise ValueError("the lineage record is not an object")
    record = cast(dict[str, Any], loaded)
    if (record.get("stage"), record.get("key")) != (stage, key):
        raise ValueError("the lineage record is that of another artifact")
    if not isinstance(record.get("digest"), str):
        raise ValueError("the lineage record has no digest")
    given: object = record.setdefault("inputs", [])
    if not isinstance(given, list) or not all(_is_input(entry) for entry in cast(list[object], given)):
        raise ValueError("the lineage record's inputs are no inputs")
    if not _are_sources(record.setdefault("sources", [])):
        raise ValueError("the lineage record's sources are no sources")
    if "adopted_from" in record and not _is_place(record["adopted_from"]):
        raise ValueError("the lineage record was adopted from nothing that can be")
    if not isinstance(record.setdefault("created", ""), str):
        raise ValueError("the lineage record has no date")
    return cast(LineageRecord, record)


def _is_place(entry: object) -> bool:
    """Whether an entry names an artifact by stage, key (empty for a source) and digest."""
    if not isinstance(entry, dict):
        return False
    place = cast(dict[str, object], entry)
    stage, key = place.get("stage"), place.get("key")
    plain = isinstance(stage, str) and PLAIN.fullmatch(stage) and isinstance(key, str)
    return bool(plain and (not key or PLAIN.fullmatch(str(key))) and isinstance(place.get("digest"), str))


def _is_input(entry: object) -> bool:
    if not _is_place(entry):
        return False
    given = cast(dict[str, object], entry)
    return isinstance(given.get("name"), str) and ("sources" not in given or _are_sources(given["sources"]))


def _are_sources(entries: object) -> bool:
    return isinstance(entries, list) and all(_is_source(entry) for entry in cast(list[object], entries))


def _is_source(entry: object) -> bool:
    if not isinstance(entry, dict):
        return False
    source = cast(dict[str, object], entry)
    return isinstance(source.get("name"), str) and isinstance(source.get("digest"), str)


def read_listings(artifact: Path) -> list[SourceListing]:
    """The sources that an artifact read directly, file by file; empty when it read none or the record is not one."""
    try:
        loaded = json.loads((artifact / INPUTS).read_text("utf-8", "surrogateescape"))
        return [
            {
                "name": str(s["name"]),
                "digest": str(s["digest"]),
                "files": [
                    {"path": str(f["path"]), "bytes": int(f["bytes"]), "sha256": str(f["sha256"])} for f in s["files"]
                ],
            }
            for s in loaded["sources"]
        ]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def parents(record: LineageRecord) -> list[Place]:
    """The artifacts that one was made from, and the one it was adopted from."""
    adopted = [record["adopted_from"]] if "adopted_from" in record else []
    return [(i["stage"], i["key"]) for i in [*record["inputs"], *adopted]]


def ancestry(get: Callable[[Place], LineageRecord | None], start: Place) -> list[LineageRecord]:
    """Every record that ``start`` was made from, and its own last; each once, what was made first before what was made
    from it. ``get`` finds a record (``records.get``), or None for what is not known."""
    found: dict[Place, LineageRecord] = {}
    open_places: set[Place] = set()

    def visit(place: Place) -> None:
        record = None if place in open_places else get(place)
        if record is None:
            return
        open_places.add(place)
        for given in record["inputs"]:
            visit((given["stage"], given["key"]))
        found[place] = record

    visit(start)
    return list(found.values())


def descent(records: Records, start: Iterable[LineageRecord]) -> list[LineageRecord]:
    """The records of ``start`` and every record made from one of them, or adopted from one; each once."""
    children: dict[Place, list[LineageRecord]] = {}
    for record in records.values():
        for place in parents(record):
            children.setdefault(place, []).append(record)
    found: dict[Place, LineageRecord] = {}
    todo = list(start)
    while todo:
        record = todo.pop()
        place = (record["stage"], record["key"])
        if place not in found:
            found[place] = record
            todo += children.get(place, [])
    return list(found.values())


def ancestors(records: Records, record: LineageRecord) -> Node:
    """The tree of what ``record`` was made from, down to the sources. Shared ancestors show where first met."""
    seen: set[Place] = set()

    def node(entry: LineageRecord | Input, name: str) -> Node:
        place = (entry["stage"], entry["key"])
        made = records.get(place)
        tree: Node = {**_named(entry, name), "what": "" if entry["stage"] == "source" else "(no longer in the store)"}
        if made is None:
            return tree
        tree["what"] = "(above)" if place in seen else describe(made)
        if place not in seen:
            seen.add(place)
            for given in made["inputs"]:
                tree["links"] += (
                    [_source(s) for s in given["sources"]] if "sources" in given else [node(given, given["name"])]
                )
        return tree

    return node(record, record["stage"])


def descendants(records: Records, record: LineageRecord) -> Node:
    """The tree of everything made from ``record``."""
    seen: set[Place] = set()
    below = {(r["stage"], r["key"]): r for r in descent(records, [record])}

    def node(made: LineageRecord) -> Node:
        place = (made["stage"], made["key"])
        tree: Node = {**_named(made, made["stage"]), "what": "(above)" if place in seen else describe(made)}
        if place not in seen:
            seen.add(place)
            tree["links"] = [node(r) for r in below.values() if place in parents(r)]
        return tree

    return node(record)


def _named(entry: LineageRecord | Input, name: str) -> Node:
    return {
        "stage": entry["stage"],
        "key": entry["key"],
        "digest": entry["digest"],
        "name": name,
        "what": "",
        "links": [],
    }


def _source(entry: SourceEntry) -> Node:
    size = f"{entry.get('files', 0):,} files, {entry.get('bytes', 0):,} bytes, sha256 {entry['digest'][:12]}"
    return {"stage": "source", "key": "", "digest": entry["digest"], "name": entry["name"], "what": size, "links": []}


def source_users(records: Records, name: str) -> list[LineageRecord]:
    """Records that read a source of this name (``books/`` is ``books``) directly."""
    wanted = name.rstrip("/") or name
    return [r for r in records.values() if any(s["name"] == wanted for i in r["inputs"] for s in i.get("sources", []))]


def file_users(records: Records, where: Callable[[Place], Path], what: str, sha256: str | None = None) -> list[FileUse]:
    """Which artifacts read a file directly: ``what`` is its path or the end of it, its name, or the start (8 digits or
    more) of its sha256; ``sha256``: the digest of the file that lies at ``what`` now, which finds it under any name.
    ``where`` gives an artifact's directory."""
    found: list[FileUse] = []
    for place, record in records.items():
        if not any("sources" in given for given in record["inputs"]):
            continue
        for listing in read_listings(where(place)):
            name, digest = listing["name"], listing["digest"]
            found += [
                FileUse(source=name, source_digest=digest, file=file, record=record)
                for file in listing["files"]
                if _means(what, sha256, name, file)
            ]
    return found


def _means(what: str, sha256: str | None, source: str, file: SourceFile) -> bool:
    if sha256 is not None:
        return file["sha256"] == sha256
    if len(what) >= 8 and file["sha256"].startswith(what):
        return True
    name, path = what.removeprefix("./"), file["path"]
    whole = path if source.split("/")[-1] == path else f"{source}/{path}"
    return name == path or f"/{whole}".endswith(f"/{name.lstrip('/')}") or f"/{name.lstrip('/')}".endswith(f"/{whole}")


def describe(record: LineageRecord) -> str:
    """One line about an artifact: digest, when, how long, by which run; adopted or withdrawn if it is."""
    made = f"{record['created']}, {record.get('seconds', 0.0):.1f} s, run {record.get('run')}"
    line = f"sha256 {record['digest'][:12]}, {made}"
    if "adopted_from" in record:
        line += f", adopted from {record['stage']}/{record['adopted_from']['key'][:12]}"
    withdrawn = record.get("withdrawn")
    return f"{line}, WITHDRAWN: {withdrawn}" if withdrawn else line
