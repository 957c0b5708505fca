"""The artifact store: directories named by stage and key, published whole, checked on every hit.

``<root>/<stage>/<key>/`` is an artifact; ``<key>.partial/`` is one being made (a failed attempt keeps it, and the
next resumes from it); ``<key>.damaged-N/`` is one that no longer matched its manifest. Inside an artifact,
``manifest.json`` lists its files and ``lineage.json``, written last, says from what it was made. Everything is
relative, so a moved store keeps every hit.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.digest import VOLATILE, digest_of, fsync_tree, manifest, sha256_file, write_json


@dataclass(frozen=True)
class Artifact:
    """What stages hand to each other: a published directory and the digest of its bytes."""

    stage: str
    key: str
    digest: str
    path: Path

    @property
    def ref(self) -> str:
        """The name people use for it: ``stage/first 12 of the key``."""
        return f"{self.stage}/{self.key[:12]}"


class StoreError(RuntimeError):
    """The store cannot be used (unreachable, not writable): an error, never a cache miss."""


class Store:
    """Artifacts below one directory. ``log`` receives a line when something is set aside."""

    def __init__(self, root: Path, log: Callable[[str], None] = lambda line: None) -> None:
        self.root, self.log = Path(root), log

    def check(self) -> None:
        """Raise StoreError unless the store can be written; called before a run so that an outage is not taken for a miss."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{os.getpid()}"
            probe.write_text("ok")
            probe.unlink()
        except OSError as error:
            raise StoreError(f"artifact store {self.root}: {error.strerror or error}; set PIPELINE_HOME to a writable directory") from error

    def directory(self, stage: str, key: str) -> Path:
        return self.root / stage / key

    def partial(self, stage: str, key: str) -> Path:
        """The directory an attempt builds in; what an earlier failed attempt left there is kept for resuming."""
        path = self.root / stage / f"{key}.partial"
        (path / VOLATILE).mkdir(parents=True, exist_ok=True)
        return path

    def lookup(self, stage: str, key: str) -> Artifact | None:
        """The published artifact of this key, if it is whole. A damaged one is set aside, and None returned."""
        path = self.directory(stage, key)
        if not path.is_dir():
            return None
        problem = _problem(path)
        if problem:
            self.set_aside(stage, key, problem)
            return None
        return Artifact(stage, key, self.lineage(stage, key)["digest"], path)

    def set_aside(self, stage: str, key: str, why: str) -> Path:
        """Move an artifact out of the way, keeping it for inspection."""
        path = self.directory(stage, key)
        n = 1
        while (target := path.with_name(f"{key}.damaged-{n}")).exists():
            n += 1
        path.rename(target)
        self.log(f"{stage}/{key[:12]} is damaged ({why}); set aside as {target.name}, it will be made anew")
        return target

    def publish(self, stage: str, key: str, record: dict[str, Any]) -> Artifact:
        """Turn the partial directory into the artifact: fsync, manifest, lineage last, one rename.

        ``record`` is the lineage record; the digest is added to it here.
        """
        partial, final = self.partial(stage, key), self.directory(stage, key)
        files = manifest(partial)
        fsync_tree(partial)
        digest = digest_of(files)
        write_json(partial / "manifest.json", files)
        write_json(partial / "lineage.json", {**record, "stage": stage, "key": key, "digest": digest})
        if final.exists():
            shutil.rmtree(final)
        os.rename(partial, final)
        return Artifact(stage, key, digest, final)

    def lineage(self, stage: str, key: str) -> dict[str, Any]:
        """The lineage record of a published artifact."""
        return json.loads((self.directory(stage, key) / "lineage.json").read_text())

    def records(self, stage: str | None = None) -> Iterator[dict[str, Any]]:
        """Lineage records of all whole artifacts (of one stage), oldest first."""
        found = []
        for path in self.root.glob(f"{stage or '*'}/*/lineage.json"):
            if "." not in path.parent.name:
                found.append(json.loads(path.read_text()))
        yield from sorted(found, key=lambda r: (r.get("created", ""), r["stage"], r["key"]))

    def find(self, ref: str) -> list[dict[str, Any]]:
        """Records whose ``stage/key``, key or digest starts with ``ref``; ``stage`` alone gives its newest."""
        records = list(self.records())
        if any(r["stage"] == ref for r in records):
            return [[r for r in records if r["stage"] == ref][-1]]
        stage, _, prefix = ref.rpartition("/")
        return [r for r in records if (not stage or r["stage"] == stage) and prefix
                and (r["key"].startswith(prefix) or r["digest"].startswith(prefix))]

    def verify(self, stage: str, key: str) -> list[str]:
        """Problems found by hashing every file of an artifact again; empty when it is sound."""
        path = self.directory(stage, key)
        problem = _problem(path)
        if problem:
            return [problem]
        listed = json.loads((path / "manifest.json").read_text())
        wrong = [f"{rel}: content differs from the manifest" for rel, info in listed.items() if sha256_file(path / rel) != info["sha256"]]
        extra = sorted(set(manifest(path)) - set(listed))
        return wrong + [f"{rel}: not in the manifest" for rel in extra]

    def remove(self, stage: str, key: str) -> None:
        """Delete an artifact and what attempts at it left."""
        for path in (self.root / stage).glob(f"{key}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _problem(path: Path) -> str | None:
    """Why a directory is not a whole artifact, by existence and size of every listed file (cheap enough for each hit)."""
    try:
        listed = json.loads((path / "manifest.json").read_text())
        json.loads((path / "lineage.json").read_text())["digest"]
    except (OSError, ValueError, KeyError) as error:
        return f"unreadable record: {error}"
    for rel, info in listed.items():
        try:
            size = (path / rel).stat().st_size
        except OSError:
            return f"{rel} is missing"
        if size != info["bytes"]:
            return f"{rel} has {size} bytes, the manifest says {info['bytes']}"
    return None
