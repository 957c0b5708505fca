"""What is withdrawn: one small file per withdrawal in ``<store>/withdrawn/``, deleted to undo it.

A withdrawal names sources by the digests they had, and artifacts by stage, key and the run that made them. An artifact
counts as withdrawn when a file lists it, or when its lineage record names a withdrawn source among all it was made
from, so artifacts made later or on another machine are reached too; one that was built again from other data is not.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from storage.digest import write_json
from storage.lineage import descent


class Withdrawals:
    """The withdrawals of a store. ``directories`` are read together; new ones are written to the first."""

    def __init__(self, *directories: Path) -> None:
        self.directories = directories

    def rules(self) -> list[dict[str, Any]]:
        """All withdrawals, oldest first."""
        paths = {p.name: p for d in reversed(self.directories) for p in d.glob("*.json")}
        return sorted(
            (json.loads(p.read_text("utf-8")) for p in paths.values()), key=lambda r: (r["created"], r["what"])
        )

    def because(self, record: dict[str, Any], rules: list[dict[str, Any]] | None = None) -> str | None:
        """Why an artifact is withdrawn, or None. ``rules``: those of :meth:`rules`, when many records are asked
        about."""
        for rule in self.rules() if rules is None else rules:
            if [record["stage"], record["key"], record.get("run")] in rule["artifacts"]:
                return f"{rule['reason']} ({rule['what']})"
            if set(rule["sources"]) & {s["digest"] for s in record.get("sources", [])}:
                return f"{rule['reason']} ({rule['what']})"
        return None

    def source(self, digest: str) -> str | None:
        """Why a source with these bytes is withdrawn, or None."""
        return next((f"{rule['reason']} ({rule['what']})" for rule in self.rules() if digest in rule["sources"]), None)

    def add(self, rule: dict[str, Any]) -> str:
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


def rule_for(records: dict[tuple[str, str], dict[str, Any]], what: str, reason: str) -> dict[str, Any] | None:
    """The withdrawal of ``what``: a source's name or the start of its digest, or an artifact's reference ``stage/key``.

    or the start of its digest. None when nothing in ``records`` is called so. Raises ValueError when a reference means
    several artifacts.
    """
    long = len(what) >= 8
    sources = {
        s["digest"]
        for r in records.values()
        for s in r.get("sources", [])
        if s["name"] == what or (long and s["digest"].startswith(what))
    }
    start = [r for r in records.values() if sources & {s["digest"] for s in r.get("sources", [])}]
    stage, _, prefix = what.rpartition("/")
    if not start and stage and prefix:
        start = [r for r in records.values() if r["stage"] == stage and r["key"].startswith(prefix)]
        if len(start) > 1:
            raise ValueError(f"{what}  means {len(start)} artifacts; give more of the key")
        what = f"{stage}/{start[0]['key'][:12]}" if start else what
    elif not start and long:
        start = [r for r in records.values() if r["digest"].startswith(what)]
    if not start:
        return None
    reached = {(r["stage"], r["key"]): r for first in start for r in descent(records, first)}
    return {
        "what": what,
        "reason": reason,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "sources": sorted(sources),
        "artifacts": sorted([r["stage"], r["key"], r.get("run")] for r in reached.values()),
    }


def _name(what: str) -> str:
    return hashlib.sha256(what.encode()).hexdigest()[:16] + ".json"
