"""The record from which Prefect knows a hit: written here, never taken from where an artifact came from.

Prefect reads ``prefect.json`` inside the artifact with whatever serializer the file itself names, and a serializer can
be pickle or any importable function. Whoever can write to a shared store could so run code on every machine that hits
it. So at each hit the record is written anew from the lineage record that the store has checked, with the JSON
serializer and nothing else, and it is never shared.
"""

from __future__ import annotations

import json

from storage.files import write_bytes
from storage.store import Artifact

NAME = "prefect.json"


def vouch(artifact: Artifact) -> None:
    """Write Prefect's record of a checked artifact. Raises OSError when the artifact's directory cannot be written."""
    path = artifact.path / NAME
    result = json.dumps({"stage": artifact.stage, "key": artifact.key, "digest": artifact.digest})
    metadata = {"storage_key": str(path), "serializer": {"type": "json"}}
    write_bytes(path, json.dumps({"metadata": metadata, "result": result}).encode())
