"""Lineage records read as a graph: from an artifact up to its sources, and from a source down to all it reached."""

from __future__ import annotations

from typing import Any

Records = dict[tuple[str, str], dict[str, Any]]
"""Lineage records by (stage, key)."""


def ancestors(records: Records, record: dict[str, Any]) -> dict[str, Any]:
    """The tree of what ``record`` was made from: nodes with stage, key, name, what, links. Shared ancestors show where
    first met."""
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
                tree["links"] += [
                    {
                        "stage": "source",
                        "key": "",
                        "digest": s["digest"],
                        "name": s["name"],
                        "links": [],
                        "what": f"{s['files']:,} files, {s['bytes']:,} bytes, sha256 {s['digest'][:12]}",
                    }
                    for s in given["sources"]
                ]
            else:
                tree["links"].append(node(given, given["name"]))
        return tree

    return node(record, record["stage"])


def descendants(records: Records, record: dict[str, Any]) -> dict[str, Any]:
    """The tree of everything made from ``record``."""
    seen: set[tuple[str, str]] = set()

    def node(made: dict[str, Any]) -> dict[str, Any]:
        tree = {
            "stage": made["stage"],
            "key": made["key"],
            "digest": made["digest"],
            "name": made["stage"],
            "what": describe(made),
            "links": [],
        }
        if (made["stage"], made["key"]) in seen:
            return {**tree, "what": "(above)"}
        seen.add((made["stage"], made["key"]))
        tree["links"] = [node(r) for r in records.values() if (made["stage"], made["key"]) in _parents(r)]
        return tree

    return node(record)


def descent(records: Records, record: dict[str, Any]) -> list[dict[str, Any]]:
    """``record`` and every record made from it, or adopted from one of them."""
    found, todo = {}, [record]
    while todo:
        made = todo.pop()
        place = (made["stage"], made["key"])
        if place not in found:
            found[place] = made
            todo += [r for r in records.values() if place in _parents(r)]
    return list(found.values())


def _parents(record: dict[str, Any]) -> list[tuple[str, str]]:
    adopted = [record["adopted_from"]] if "adopted_from" in record else []
    return [(i["stage"], i["key"]) for i in [*record["inputs"], *adopted]]


def source_users(records: Records, name: str) -> list[dict[str, Any]]:
    """Records that read a source of this name directly."""
    return [r for r in records.values() if any(s["name"] == name for i in r["inputs"] for s in i.get("sources", []))]


def describe(record: dict[str, Any]) -> str:
    """One line about an artifact: digest, when, how long, by which run; adopted or withdrawn if it is."""
    line = f"sha256 {record['digest'][:12]}, {record['created']}, {record['seconds']:.1f} s, run {record['run']}"
    if "adopted_from" in record:
        line += f", adopted from {record['stage']}/{record['adopted_from']['key'][:12]}"
    return line + (f", WITHDRAWN: {record['withdrawn']}" if record.get("withdrawn") else "")
