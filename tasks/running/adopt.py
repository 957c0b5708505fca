"""Adopt: accept an artifact that older code made as what today's code would make (design §4.8).

For the case that a change of code or of a library cannot change the bytes (a renamed helper, a faster loop) and
building again would cost hours. The artifact gets a second entry under today's key; its files are hard links where the
file system has them, and its lineage says from what it was adopted and what differed.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

from storage.digest import RECORDS, VOLATILE
from storage.store import Artifact, Store
from tasks.running.plan import Planned, differences_by_kind

HARMLESS = ("code", "libs")
"""What may differ without being forced."""
FORCED = ("section", "version")
"""What may differ when forced. Other inputs never: the lineage would tell a story that is not true."""


class NotAdopted(ValueError):
    """Why an artifact cannot be adopted, a line per reason."""


def adopt(store: Store, record: dict[str, Any], plan: Planned, force: bool = False) -> Artifact:
    """Publish the artifact of ``record`` under the key that ``plan`` computed. Raises NotAdopted with everything that
    speaks against it."""
    if record.get("withdrawn"):
        raise NotAdopted(f"{record['stage']}/{record['key'][:12]} was withdrawn: {record['withdrawn']}")
    found = differences_by_kind(record["identity"], plan.identity or {})
    against = [
        line
        for kind, lines in found.items()
        if kind not in HARMLESS and not (force and kind in FORCED)
        for line in lines
    ]
    if against:
        hint = "" if found["inputs"] else "\n--force adopts it all the same"
        raise NotAdopted(
            "\n".join(against) + f"\nmore than code and libraries differs, so today's bytes would too{hint}"
        )
    problems = store.verify(record["stage"], record["key"])
    if problems:
        raise NotAdopted("\n".join(problems))
    with store.lease(plan.stage, plan.key) as lease:
        made = store.lookup(plan.stage, plan.key)
        if made is None:
            _link(store.directory(record["stage"], record["key"]), store.partial(plan.stage, plan.key))
            lease.confirm()
            made = store.publish(
                plan.stage, plan.key, _record(store, record, plan, [line for lines in found.values() for line in lines])
            )
    return made


def _record(store: Store, old: dict[str, Any], plan: Planned, differences: list[str]) -> dict[str, Any]:
    """The lineage of the adopted artifact: today's identity and inputs, the numbers and the run of the one that made
    the bytes."""
    kept = {name: old[name] for name in ("resources", "metrics", "seconds", "kind", "run")}
    return {
        **kept,
        "identity": plan.identity,
        "inputs": plan.given,
        "base": plan.base,
        "sources": store.sources_of(plan.given),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "adopted_from": {
            "stage": old["stage"],
            "key": old["key"],
            "digest": old["digest"],
            "created": old["created"],
            "differences": differences,
        },
    }


def _link(source: Path, target: Path) -> None:
    """The files of an artifact again in ``target``, without its records and checkpoints; what a failed attempt left
    there goes."""
    shutil.rmtree(target)

    def skip(directory: str, names: list[str]) -> set[str]:
        if Path(directory) == source:
            return set(names) & set(RECORDS)
        return {"checkpoints"} if Path(directory) == source / VOLATILE else set()

    shutil.copytree(source, target, ignore=skip, copy_function=_link_or_copy)
    (target / VOLATILE).mkdir(exist_ok=True)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
