"""The lineage page of a model directory, drawn from its record and those of the store it lies in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.pages.lineage.page import page
from pipeline.pages.lineage.records import Record
from storage.lineage import LineageRecord, ancestry, parse
from storage.places import home
from storage.store import open_store


def lineage_page(directory: Path, title: str) -> str:
    """The page as HTML. Raises OSError or ValueError when the directory has no record."""
    text = (directory / "lineage.json").read_text("utf-8")
    loaded = json.loads(text)
    own = parse(text, loaded["stage"], loaded["key"])
    start = own["stage"], own["key"]
    store = open_store(home() / "store")
    chain = ancestry(lambda place: own if place == start else store.record(place), start)
    return page([_shown(record) for record in chain], title, lambda run: None)


def _shown(record: LineageRecord) -> Record:
    section: dict[str, Any] = record.get("identity", {}).get("section") or {}
    shown: Record = {
        "stage": record["stage"],
        "key": record["key"],
        "digest": record["digest"],
        "state": "cached",
        "inputs": [*record["inputs"]],  # type: ignore[typeddict-item]
        "metrics": record.get("metrics", {}),
        "section": section,
    }
    if "seconds" in record:
        shown["seconds"] = record["seconds"]
    return shown
