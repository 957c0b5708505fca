"""Lineage records read as a graph: from an artifact up to its sources, and from a source down to all it reached."""

from __future__ import annotations

from typing import Any

Records = dict[tuple[str, str], dict[str, Any]]
"""Lineage records by (stage, key)."""


def ancestors(records: Records, record: dict[str, Any]) -> dict[str, Any]:
    """The tree of what ``record`` was made from: nodes with stage, key, name, what, links. Shared ancestors show where first met."""
    seen: set[tuple[str, str]] = set()

    def node(entry: dict[str, Any], name: str) -> dict[str, Any]:
        place = (entry["stage"], entry["key"])
        made = records.get(place)
        tree = {"stage": entry["stage"], "key": entry["key"], "digest": entry["digest"], "name": name, "links": []}
        if made is None:
            tree["what"] = "" if entry["stage"] == "source" else "(no longer in the store)"
            return tree
        tree["what"] = describe(made)
        if place in seen:
            tree["what"] = "(above)"
            return tree
        seen.add(place)
        for given in made["inputs"]:
            if "sources" in given:
                tree["links"] += [{"stage": "source", "key": "", "digest": s["digest"], "name": s["name"], "links": [],
                                   "what": f"{s['files']:,} files, {s['bytes']:,} bytes, sha256 {s['digest'][:12]}"} for s in given["sources"]]
            else:
                tree["links"].append(node(given, given["name"]))
        return tree

    return node(record, record["stage"])


def descendants(records: Records, record: dict[str, Any]) -> dict[str, Any]:
    """The tree of everything made from ``record``."""
    seen: set[tuple[str, str]] = set()

    def node(made: dict[str, Any]) -> dict[str, Any]:
        tree = {"stage": made["stage"], "key": made["key"], "digest": made["digest"], "name": made["stage"], "what": describe(made), "links": []}
        if (made["stage"], made["key"]) in seen:
            return {**tree, "what": "(above)"}
        seen.add((made["stage"], made["key"]))
        tree["links"] = [node(r) for r in records.values() if any(i["stage"] == made["stage"] and i["key"] == made["key"] for i in r["inputs"])]
        return tree

    return node(record)


def source_users(records: Records, name: str) -> list[dict[str, Any]]:
    """Records that read a source of this name directly."""
    return [r for r in records.values() if any(s["name"] == name for i in r["inputs"] for s in i.get("sources", []))]


def describe(record: dict[str, Any]) -> str:
    """One line about an artifact: digest, when, how long, the code's state."""
    return f"sha256 {record['digest'][:12]}, {record['created']}, {record['seconds']:.1f} s, run {record['run']}"
