"""The artifact store: directories named by stage and key, published whole, checked on every hit.

``<root>/<stage>/<key>/`` is an artifact; ``<key>.partial/`` is one being made (a failed attempt keeps it, and the
next resumes from it); ``<key>.damaged-N/`` is one that no longer matched its manifest. Inside an artifact,
``manifest.json`` lists its files and ``lineage.json``, written last, says from what it was made. Everything is
relative, so a moved store keeps every hit. What is withdrawn is told by ``<root>/withdrawn/`` (storage/withdrawal.py).

With ``PIPELINE_STORE=s3://bucket/prefix`` the directory is a cache of a bucket that many machines share
(storage/s3.py). Whoever changes what lies under a key holds its lease; looking (:meth:`Store.examine`) never changes
anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.digest import VOLATILE, digest_of, fsync_tree, manifest, sha256_file, write_json
from storage.lease import Lease
from storage.withdrawal import Withdrawals


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


@dataclass(frozen=True)
class Look:
    """What lies under a key: ``state`` absent, damaged, withdrawn, here or there (in the bucket only), in words in
    ``why``.

    The artifact and its lineage record are given when it is a hit, here or there.
    """

    state: str = "absent"
    artifact: Artifact | None = None
    record: dict[str, Any] | None = None
    why: str = ""


class StoreError(RuntimeError):
    """The store cannot be used (unreachable, not writable): an error, never a cache miss."""


def open_store(root: Path, log: Callable[[str], None] = lambda line: None) -> Store:
    """The store at ``root``, in front of the bucket that ``PIPELINE_STORE`` names if it is set. Raises StoreError for a
    wrong address."""
    address = os.environ.get("PIPELINE_STORE", "")
    if not address:
        return Store(root, log)
    from storage.s3 import S3Store

    return S3Store(root, address, log)


class Store:
    """Artifacts below one directory. ``log`` receives a line when something is set aside."""

    def __init__(self, root: Path, log: Callable[[str], None] = lambda line: None) -> None:
        self.root, self.log = Path(root), log
        self.withdrawals = Withdrawals(self.root / "withdrawn")

    def check(self) -> None:
        """Raise StoreError unless the store can be written; called before a run so that an outage is not taken for a
        miss."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{os.getpid()}"
            probe.write_text("ok")
            probe.unlink()
        except OSError as error:
            raise StoreError(
                f"artifact store {self.root}: {error.strerror or error}; set PIPELINE_HOME to a writable directory"
            ) from error

    def directory(self, stage: str, key: str) -> Path:
        return self.root / stage / key

    def partial(self, stage: str, key: str) -> Path:
        """The directory an attempt builds in; what an earlier failed attempt left there is kept for resuming."""
        path = self.root / stage / f"{key}.partial"
        (path / VOLATILE).mkdir(parents=True, exist_ok=True)
        return path

    def lease(
        self, stage: str, key: str, waiting: Callable[[str], None] = lambda holder: None
    ) -> contextlib.AbstractContextManager[Any]:
        """Hold a key: the context waits until nobody else builds it. Gives an object whose ``confirm()`` raises
        LeaseLost."""
        return Lease(self.root / stage / f"{key}.lease", waiting)

    def examine(self, stage: str, key: str) -> Look:
        """What lies under a key, by existence and size of every file (cheap enough for each hit). Changes nothing."""
        path = self.directory(stage, key)
        if not path.is_dir():
            return Look()
        problem = _problem(path)
        if problem:
            return Look("damaged", why=f"{stage}/{key[:12]} is damaged ({problem})")
        record = _record(path / "lineage.json")
        if record is None:
            return Look()  # it was replaced just now
        withdrawn = self.withdrawals.because(record)
        if withdrawn:
            return Look("withdrawn", why=f"{stage}/{key[:12]} was withdrawn: {withdrawn}")
        return Look("here", Artifact(stage, key, record["digest"], path), record)

    def ready(self, stage: str, key: str) -> Artifact | None:
        """The artifact, if it is whole and here or can be brought here. Needs no lease."""
        return self.examine(stage, key).artifact

    def lookup(self, stage: str, key: str) -> Artifact | None:
        """As :meth:`ready`, and a damaged artifact is set aside. Only for the holder of the lease."""
        look = Store.examine(self, stage, key)
        if look.state == "damaged":
            self.set_aside(stage, key, look.why)
        return look.artifact

    def set_aside(self, stage: str, key: str, why: str) -> Path:
        """Move an artifact out of the way, keeping it for inspection. Only for the holder of the lease."""
        path = self.directory(stage, key)
        n = 1
        while (target := path.with_name(f"{key}.damaged-{n}")).exists():
            n += 1
        path.rename(target)
        self.log(f"{why}; set aside as {target.name}, it will be made anew")
        return target

    def publish(self, stage: str, key: str, record: dict[str, Any]) -> Artifact:
        """Turn the partial directory into the artifact: fsync, manifest, lineage last, one rename. Only for the holder
        of the lease.

        ``record`` is the lineage record; the digest is added to it here.
        """
        partial = self.partial(stage, key)
        files = manifest(partial)
        fsync_tree(partial)
        digest = digest_of(files)
        write_json(partial / "manifest.json", files)
        write_json(partial / "lineage.json", {**record, "stage": stage, "key": key, "digest": digest})
        (partial / "prefect.json").unlink(missing_ok=True)  # an adopted or downloaded copy's record is not this one's
        final = self._put_in_place(partial, stage, key)
        return Artifact(stage, key, digest, final)

    def _put_in_place(self, made: Path, stage: str, key: str) -> Path:
        """Rename a finished directory to its final name. An artifact that it replaces (refresh) is never seen half
        deleted."""
        final = self.directory(stage, key)
        old = final.with_name(f"{key}.replaced-{os.getpid()}")
        if final.exists():
            os.rename(final, old)
        os.rename(made, final)
        _fsync_directory(final)
        _fsync_directory(final.parent)
        shutil.rmtree(old, ignore_errors=True)
        return final

    def settle(self, stage: str, key: str) -> None:
        """Keep what was written beside an artifact after it was published (Prefect's record, MLflow's ids) where other
        machines find it."""

    def lineage(self, stage: str, key: str) -> dict[str, Any]:
        """The lineage record of a published artifact."""
        return json.loads((self.directory(stage, key) / "lineage.json").read_text())

    def files(self, stage: str, key: str) -> dict[str, str]:
        """Path and sha256 of every file of a published artifact."""
        listed = json.loads((self.directory(stage, key) / "manifest.json").read_text())
        return {path: info["sha256"] for path, info in listed.items()}

    def records(self, stage: str | None = None) -> Iterator[dict[str, Any]]:
        """Lineage records of all artifacts here (of one stage), oldest first; ``withdrawn`` is added to those that
        are."""
        found, rules = [], self.withdrawals.rules()
        for path in self.root.glob(f"{stage or '*'}/*/lineage.json"):
            if "." not in path.parent.name and (record := _record(path)):
                withdrawn = self.withdrawals.because(record, rules)
                found.append({**record, "withdrawn": withdrawn} if withdrawn else record)
        yield from sorted(found, key=lambda r: (r.get("created", ""), r["stage"], r["key"]))

    def sources_of(self, inputs: list[dict[str, Any]]) -> list[dict[str, str]]:
        """Name and digest of every outside source that the inputs of a record were made from, at any distance."""
        pairs = set()
        for given in inputs:
            path = self.directory(given["stage"], given["key"]) / "lineage.json"
            made = (
                {} if "sources" in given else _record(path) or self.examine(given["stage"], given["key"]).record or {}
            )
            pairs |= {(s["name"], s["digest"]) for s in given.get("sources", made.get("sources", []))}
        return [{"name": name, "digest": digest} for name, digest in sorted(pairs)]

    def everywhere(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Lineage records by (stage, key), of other machines' artifacts too when they share this store."""
        return {(r["stage"], r["key"]): r for r in self.records()}

    def find(self, ref: str) -> list[dict[str, Any]]:
        """Records whose ``stage/key``, key or digest starts with ``ref``; ``stage`` alone gives its newest."""
        records = list(self.records())
        if any(r["stage"] == ref for r in records):
            return [[r for r in records if r["stage"] == ref][-1]]
        stage, _, prefix = ref.rpartition("/")
        return [
            r
            for r in records
            if (not stage or r["stage"] == stage)
            and prefix
            and (r["key"].startswith(prefix) or r["digest"].startswith(prefix))
        ]

    def verify(self, stage: str, key: str) -> list[str]:
        """Problems found by hashing every file of an artifact again; empty when it is sound."""
        path = self.directory(stage, key)
        problem = _problem(path)
        if problem:
            return [problem]
        listed = json.loads((path / "manifest.json").read_text())
        wrong = [
            f"{rel}: content differs from the manifest"
            for rel, info in listed.items()
            if sha256_file(path / rel) != info["sha256"]
        ]
        extra = sorted(set(manifest(path)) - set(listed))
        return wrong + [f"{rel}: not in the manifest" for rel in extra]


def _problem(path: Path) -> str | None:
    """Why a directory is not a whole artifact, by existence and size of every listed file."""
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


def _record(path: Path) -> dict[str, Any] | None:
    """A lineage record; None when it cannot be read (damaged, or being replaced): a hit on it is refused elsewhere."""
    try:
        record = json.loads(path.read_text())
        return record if {"stage", "key", "digest"} <= record.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _fsync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
