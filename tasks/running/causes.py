"""Why two artifacts of one stage differ: the config field, code file, library or source file at the root of it.

An input that differs is followed to the artifacts that it came from, so that the answer names what somebody changed
and not what merely followed from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from storage.lineage import Input, LineageRecord, Place, SourceEntry, SourceFile, SourceListing
from tasks.running.plan import differences_by_kind

FILES_NAMED = 5
"""Files of a source that are named one by one."""


@dataclass(frozen=True)
class Cause:
    """What differs at one stage itself, in lines for a person."""

    stage: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Library:
    """Where records and the files of sources are read: a store's ``record``, and the listings of an artifact."""

    record: Callable[[Place], LineageRecord | None]
    listings: Callable[[Place], Sequence[SourceListing]]


def causes(at: Library, old: LineageRecord, new: LineageRecord) -> list[Cause]:
    """The root causes of the difference between two artifacts of one stage, what was made first before the rest."""
    found: dict[str, Cause] = {}
    seen: set[tuple[Place, Place]] = set()

    def visit(before: LineageRecord, after: LineageRecord) -> None:
        places = (_place(before), _place(after))
        if places in seen or places[0] == places[1]:
            return
        seen.add(places)
        for name, then, now in _changed(before, after):
            pair = (at.record(_place(then)), at.record(_place(now))) if then and now else (None, None)
            if pair[0] and pair[1] and pair[0]["stage"] == pair[1]["stage"]:
                visit(pair[0], pair[1])
            elif then and now and "sources" not in now:
                found.setdefault(after["stage"] + name, Cause(after["stage"], (f"input {name} changed",)))
        if lines := own_differences(at, before, after):
            found.setdefault(after["stage"], Cause(after["stage"], tuple(lines)))

    visit(old, new)
    return list(found.values())


def own_differences(at: Library, old: LineageRecord, new: LineageRecord) -> list[str]:
    """What differs at this stage itself: options, sources, code, libraries, version, and inputs that came or went."""
    if "identity" not in old or "identity" not in new:
        return ["its lineage does not tell how it was made"] if old["key"] != new["key"] else []
    kinds = differences_by_kind(old["identity"], new["identity"])
    lines = list(kinds["section"])
    for name, then, now in _changed(old, new):
        if then is None or now is None:
            lines.append(f"input {name} {'added' if now else 'left out'}")
        elif "sources" in then or "sources" in now:
            lines += _source_lines(then.get("sources", []), now.get("sources", []), _files(at, old), _files(at, new))
    return [*lines, *kinds["code"], *kinds["libs"], *kinds["version"]]


def _changed(old: LineageRecord, new: LineageRecord) -> list[tuple[str, Input | None, Input | None]]:
    """Inputs of other content, by name."""
    before, after = ({entry["name"]: entry for entry in record["inputs"]} for record in (old, new))
    return [
        (name, before.get(name), after.get(name))
        for name in dict.fromkeys([*before, *after])
        if name not in before or name not in after or before[name]["digest"] != after[name]["digest"]
    ]


def _place(entry: Input | LineageRecord) -> Place:
    return entry["stage"], entry["key"]


def _files(at: Library, record: LineageRecord) -> dict[str, list[SourceFile]]:
    return {listing["name"]: listing["files"] for listing in at.listings(_place(record))}


def _source_lines(
    old: Sequence[SourceEntry],
    new: Sequence[SourceEntry],
    old_files: Mapping[str, list[SourceFile]],
    new_files: Mapping[str, list[SourceFile]],
) -> list[str]:
    """A line for each source that came, went or has other files."""
    before, after = ({source["name"]: source["digest"] for source in side} for side in (old, new))
    lines: list[str] = []
    for name in dict.fromkeys([*before, *after]):
        if name not in before or name not in after:
            lines.append(f"source {name} {'added' if name in after else 'left out'}")
        elif before[name] != after[name]:
            lines.append(f"source {name}: " + _file_changes(old_files.get(name, []), new_files.get(name, [])))
    return lines


def _file_changes(old: list[SourceFile], new: list[SourceFile]) -> str:
    """``2 files added (a, b), 1 changed (c)``."""
    before, after = ({file["path"]: file["sha256"] for file in side} for side in (old, new))
    groups = {
        "added": sorted(after.keys() - before.keys()),
        "removed": sorted(before.keys() - after.keys()),
        "changed": sorted(path for path in before.keys() & after.keys() if before[path] != after[path]),
    }
    told = [
        f"{len(paths)} {'file' if len(paths) == 1 else 'files'} {what} ({', '.join(paths[:FILES_NAMED])}"
        + (" …)" if len(paths) > FILES_NAMED else ")")
        for what, paths in groups.items()
        if paths
    ]
    return ", ".join(told) or "other content"
