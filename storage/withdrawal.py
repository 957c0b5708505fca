"""What is withdrawn: one small file per withdrawal in ``<store>/withdrawn/``, deleted to undo it.

A withdrawal names sources by the digests they had, single files by their sha256, and artifacts by stage, key and the
run that made them. An artifact counts as withdrawn when a file lists it, or when its lineage record names a withdrawn
source (or one that holds a withdrawn file) among all it was made from, so artifacts made later or on another machine
are reached too; one that was built again from other data is not.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypedDict, cast

from storage.files import write_json
from storage.lineage import FileUse, LineageRecord, Records, descent

_NAME = re.compile(r"[0-9a-f]{16}\.json")


class Rule(TypedDict):
    """One withdrawal: what was named, why and when; digests of sources, sha256 of files, [stage, key, run] of
    artifacts."""

    what: str
    reason: str
    created: str
    sources: list[str]
    files: list[str]
    artifacts: list[list[str | None]]


class Withdrawals:
    """The withdrawals of a store. ``directories`` are read together; new ones are written to the first.

    ``holding`` gives the digests of the known sources that hold one of these files (by sha256).
    """

    def __init__(self, *directories: Path, holding: Callable[[set[str]], set[str]] = lambda files: set()) -> None:
        self.directories, self.holding = directories, holding

    def rules(self) -> list[Rule]:
        """All withdrawals, oldest first. What has not the shape of one withdraws nothing."""
        paths = {p.name: p for d in reversed(self.directories) for p in d.glob("*.json")}
        found = [rule for path in paths.values() if (rule := _read(path))]
        for rule in found:
            if rule["files"]:
                rule["sources"] = sorted({*rule["sources"], *self.holding(set(rule["files"]))})
        return sorted(found, key=lambda r: (r["created"], r["what"]))

    def because(self, record: LineageRecord, rules: list[Rule] | None = None) -> str | None:
        """Why an artifact is withdrawn, or None. ``rules``: those of :meth:`rules`, when many records are asked
        about."""
        for rule in self.rules() if rules is None else rules:
            if [record["stage"], record["key"], record.get("run")] in rule["artifacts"]:
                return _why(rule)
            if set(rule["sources"]) & {s["digest"] for s in record.get("sources", [])}:
                return _why(rule)
        return None

    def source(self, digest: str, files: Iterable[str] = ()) -> str | None:
        """Why a source with these bytes, or with one of these files (by sha256), is withdrawn, or None."""
        rules, held = self.rules(), set(files)
        return next((_why(r) for r in rules if digest in r["sources"] or held & set(r["files"])), None)

    def add(self, rule: Rule) -> str:
        """Write a withdrawal; gives its file's name. The same thing withdrawn again replaces the earlier reason."""
        self.directories[0].mkdir(parents=True, exist_ok=True)
        write_json(self.directories[0] / _name(rule["what"]), rule)
        return _name(rule["what"])

    def remove(self, what: str) -> str | None:
        """Undo the withdrawal of ``what`` (as its file says); gives the file's name, or None when there was none."""
        paths = [d / _name(what) for d in self.directories if (d / _name(what)).exists()]
        for path in paths:
            path.unlink()
        return _name(what) if paths else None


def is_name(name: str) -> bool:
    """Whether a file of this name can be a withdrawal."""
    return _NAME.fullmatch(name) is not None


def rule_for(records: Records, what: str, reason: str, uses: list[FileUse] | None = None) -> Rule | None:
    """The withdrawal of ``what``: a source's name or the start of its digest, an artifact's reference ``stage/key`` or
    the start of its digest, or (with ``uses``, what :func:`storage.lineage.file_users` found) a file of a source.

    None when nothing in ``records`` is called so. Raises ValueError when a reference means several artifacts, or a
    file's name several files.
    """
    long = len(what) >= 8
    wanted = what.rstrip("/") or what
    sources = {
        s["digest"]
        for r in records.values()
        for s in r.get("sources", [])
        if s["name"] == wanted or (long and s["digest"].startswith(what))
    }
    start = [r for r in records.values() if sources & {s["digest"] for s in r.get("sources", [])}]
    what = wanted if start else what
    stage, _, prefix = what.rpartition("/")
    if not start and stage and prefix:
        start = [r for r in records.values() if r["stage"] == stage and r["key"].startswith(prefix)]
        if len(start) > 1:
            raise ValueError(f"{what}  means {len(start)} artifacts; give more of the key")
        what = f"{stage}/{start[0]['key'][:12]}" if start else what
    elif not start and long:
        start = [r for r in records.values() if r["digest"].startswith(what)]
    files: set[str] = set()
    if not start and uses:
        files = {use["file"]["sha256"] for use in uses}
        if len(files) > 1:
            paths = ", ".join(sorted({f"{u['source']}/{u['file']['path']}" for u in uses})[:4])
            raise ValueError(
                f"{what}  means {len(files)} different files: {paths}; give more of the path, or the sha256"
            )
        sources = {use["source_digest"] for use in uses}
        start = [r for r in records.values() if sources & {s["digest"] for s in r.get("sources", [])}]
        start = start or [use["record"] for use in uses]
    if not start:
        return None
    return {
        "what": what,
        "reason": reason,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "sources": sorted(sources),
        "files": sorted(files),
        "artifacts": sorted([r["stage"], r["key"], r.get("run")] for r in descent(records, start)),
    }


def _why(rule: Rule) -> str:
    return f"{rule['reason']} ({rule['what']})"


def _read(path: Path) -> Rule | None:
    try:
        loaded: Any = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(loaded, dict):
        return None
    rule = cast(dict[str, Any], loaded)
    rule.setdefault("files", [])
    texts = all(isinstance(rule.get(name), str) for name in ("what", "reason", "created"))
    lists = all(isinstance(rule.get(name), list) for name in ("sources", "files", "artifacts"))
    hashable = lists and all(isinstance(d, str) for name in ("sources", "files") for d in rule[name])
    return cast(Rule, rule) if texts and hashable else None


def _name(what: str) -> str:
    return hashlib.sha256(what.encode("utf-8", "surrogateescape")).hexdigest()[:16] + ".json"
