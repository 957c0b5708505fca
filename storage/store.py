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
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage import files, lease, lineage
from storage.digest import RECORDS, VOLATILE, digest_of, fsync_tree, listing, manifest
from storage.errors import Failed
from storage.files import write_json
from storage.journal import FileJournal, Journal
from storage.lease import Lease
from storage.lineage import PLAIN, Input, LineageRecord, Place, SourceListing
from storage.places import below_home
from storage.room import filled, free_bytes, human
from storage.whole import Damaged, check, read_manifest, remember, verify
from storage.withdrawal import Withdrawals

if TYPE_CHECKING:
    from storage.unfinished import Unfinished

_LEFT = re.compile(r"[A-Za-z0-9_-]+\.(partial|download|damaged-\d+|replaced-\d+|.*\.tmp)")
"""Names of directories that are no artifact and that the store itself made."""


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
    record: LineageRecord | None = None
    why: str = ""


class StoreError(Failed):
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
        self.withdrawals = Withdrawals(self.root / "withdrawn", holding=self._sources_holding)

    @property
    def where(self) -> str:
        """Its address, for people."""
        return str(self.root)

    def check(self) -> None:
        """Raise StoreError unless the store can be written; called before a run so that an outage is not taken for a
        miss. Leases that dead processes of this machine left are taken away."""
        try:
            below_home(self.root)
            probe = self.root / f".probe-{os.getpid()}"
            probe.write_text("ok")
            probe.unlink()
        except OSError as error:
            why = f"{error.strerror or error}; set PIPELINE_HOME to a writable directory"
            if filled(error, self.root):
                why = (
                    f"no space left on its disk, {human(free_bytes(self.root))} are free; room for what the stages make"
                    " is needed: set PIPELINE_HOME to a larger disk, or remove something (`pipeline gc`)"
                )
            raise StoreError(f"artifact store {self.root}: {why}") from error
        Store.sweep(self)

    def directory(self, stage: str, key: str) -> Path:
        """Where an artifact lies. Raises StoreError for a name that would lead out of the store."""
        return self._below(stage) / _plain(key)

    def partial(self, stage: str, key: str) -> Path:
        """The directory an attempt builds in; what an earlier failed attempt finished there is kept for resuming, what
        it did not finish is taken away. Only for the holder of the lease."""
        path = self._partial(stage, key)
        if path.is_symlink():
            path.unlink()
        (path / VOLATILE).mkdir(parents=True, exist_ok=True)
        _clean(path)
        (path / VOLATILE).mkdir(exist_ok=True)
        return path

    def _partial(self, stage: str, key: str) -> Path:
        return self._below(stage) / f"{_plain(key)}.partial"

    def _below(self, stage: str) -> Path:
        path = self.root / _plain(stage)
        if path.is_symlink():
            raise StoreError(f"{path} is a link, which would lead out of the store; set PIPELINE_HOME to another disk")
        return path

    def lease(
        self, stage: str, key: str, waiting: Callable[[str], None] = lambda holder: None
    ) -> contextlib.AbstractContextManager[Any]:
        """Hold a key: the context waits until nobody else builds it. Gives an object whose ``confirm()`` raises
        LeaseLost."""
        return Lease(self._below(stage) / f"{_plain(key)}.lease", waiting)

    def examine(self, stage: str, key: str) -> Look:
        """What lies under a key. A hit is whole: its record is its own, its files have the content that the manifest
        says (hashed once on this machine, then known by size, times and inode). Changes nothing."""
        path = self.directory(stage, key)
        if not path.is_dir():
            return Look()
        try:
            record, _ = check(path, stage, key)
        except Damaged as error:
            return Look("damaged", why=f"{stage}/{key[:12]} is damaged ({error})")
        withdrawn = self.withdrawals.because(record)
        if withdrawn:
            return Look("withdrawn", why=f"{stage}/{key[:12]} was withdrawn: {withdrawn}")
        return Look("here", Artifact(stage, key, record["digest"], path), record)

    def ready(self, stage: str, key: str) -> Artifact | None:
        """The artifact, if it is whole and here or can be brought here, without files that are not its own. Needs no
        lease."""
        return self._tidied(Store.examine(self, stage, key).artifact)

    def lookup(self, stage: str, key: str) -> Artifact | None:
        """As :meth:`ready`, and a damaged artifact is set aside. Only for the holder of the lease."""
        look = Store.examine(self, stage, key)
        if look.state == "damaged":
            self.set_aside(stage, key, look.why)
        return self._tidied(look.artifact)

    def _tidied(self, artifact: Artifact | None) -> Artifact | None:
        """The artifact after files that its manifest does not list went to ``_run/unlisted/``: a stage reads what is
        there by pattern."""
        if artifact is None:
            return None
        try:
            _, strangers = check(artifact.path, artifact.stage, artifact.key)
            for rel in strangers:
                target = artifact.path / VOLATILE / "unlisted" / rel
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(artifact.path / rel, target)
                self.log(f"{artifact.ref}: {rel} is no part of it; moved to {VOLATILE}/unlisted")
        except (Damaged, FileNotFoundError):
            return None  # replaced just now
        return artifact

    def set_aside(self, stage: str, key: str, why: str) -> Path:
        """Move an artifact out of the way, keeping it for inspection. Only for the holder of the lease."""
        path = self.directory(stage, key)
        n = 1
        while (target := path.with_name(f"{key}.damaged-{n}")).exists():
            n += 1
        path.rename(target)
        self.log(f"{why}; set aside as {target.name}, it will be made anew")
        return target

    def publish(self, stage: str, key: str, record: dict[str, Any], sources: Sequence[SourceListing] = ()) -> Artifact:
        """Turn the partial directory into the artifact: fsync, manifest, lineage last, one rename. Only for the holder
        of the lease.

        ``record`` is the lineage record; the digest is added to it here. ``sources``: the files of the sources that
        the stage read itself. Raises ValueError when the stage left a link or a special file.
        """
        partial = self._partial(stage, key)
        _clean(partial, volatile=False)
        seen = listing(partial)
        listed = manifest(partial)
        fsync_tree(partial)
        digest = digest_of(listed)
        if sources:
            write_json(partial / lineage.INPUTS, {"sources": list(sources)})
        write_json(partial / "manifest.json", listed)
        write_json(partial / "lineage.json", {**record, "stage": stage, "key": key, "digest": digest})
        final = self._put_in_place(partial, stage, key, seen)
        return Artifact(stage, key, digest, final)

    def _put_in_place(self, made: Path, stage: str, key: str, seen: Mapping[str, os.stat_result] | None = None) -> Path:
        """Rename a finished directory, whose files were just hashed (and were in the state ``seen`` before that), to
        its final name. An artifact that it replaces (refresh) is never seen half deleted."""
        final = self.directory(stage, key)
        for left in final.parent.glob(f"{key}.replaced-*"):
            shutil.rmtree(left, ignore_errors=True)
        old = final.with_name(f"{key}.replaced-{os.getpid()}")
        if final.exists():
            os.rename(final, old)
        os.rename(made, final)
        files.sync_directory(final)
        files.sync_directory(final.parent)
        remember(final, seen)
        shutil.rmtree(old, ignore_errors=True)
        return final

    def unfinished(self, stage: str, key: str) -> Unfinished | None:
        """Where checkpoints of an unfinished training are shared; None where they stay in the partial directory."""
        return None

    def forgotten(self, days: float) -> Sequence[Unfinished]:
        """Shared checkpoints that no training will go on from."""
        return []

    def settle(self, stage: str, key: str) -> None:
        """Keep what was written beside an artifact after it was published (MLflow's ids) where other machines find
        it."""

    def note_run(self, name: str, nodes: Sequence[Place], pinned: bool) -> None:
        """Tell other machines what a run needs, where there is a place that they share."""

    def journal(self, folder: str, name: str) -> Journal:
        """A journal that all who use this store share."""
        return FileJournal(self.root / folder / f"{name}.jsonl")

    def journals(self, folder: str) -> list[str]:
        """Names of the journals in a folder."""
        return sorted(path.stem for path in (self.root / folder).glob("*.jsonl"))

    def lineage(self, stage: str, key: str) -> LineageRecord:
        """The lineage record of a published artifact. Raises OSError or ValueError when there is none to read."""
        return lineage.parse((self.directory(stage, key) / "lineage.json").read_bytes(), stage, key)

    def files(self, stage: str, key: str) -> dict[str, str]:
        """Path and sha256 of every file of a published artifact."""
        return {rel: info["sha256"] for rel, info in read_manifest(self.directory(stage, key)).items()}

    def record(self, place: Place) -> LineageRecord | None:
        """The lineage record under (stage, key), here or where other machines share theirs; None when there is
        none."""
        return self.own(place) or (self.examine(*place).record if place[1] else None)

    def own(self, place: Place) -> LineageRecord | None:
        """The lineage record under (stage, key) that lies here; None when it cannot be read (damaged, being replaced):
        a hit is refused elsewhere."""
        try:
            return self.lineage(*place)
        except (OSError, ValueError, StoreError):
            return None

    def records(self, stage: str | None = None) -> Iterator[LineageRecord]:
        """Lineage records of all artifacts here (of one stage), oldest first; ``withdrawn`` is added to those that
        are."""
        found: list[LineageRecord] = []
        rules = self.withdrawals.rules()
        for place in self._places(stage):
            if record := self.own(place):
                withdrawn = self.withdrawals.because(record, rules)
                if withdrawn:
                    record["withdrawn"] = withdrawn
                found.append(record)
        yield from sorted(found, key=lambda r: (r["created"], r["stage"], r["key"]))

    def _places(self, stage: str | None = None) -> list[Place]:
        """Stage and key of every directory that can be an artifact."""
        return [
            (path.parent.parent.name, path.parent.name)
            for name in ([stage] if stage and PLAIN.fullmatch(stage) else self._stages())
            for path in (self.root / name).glob("*/lineage.json")
            if PLAIN.fullmatch(path.parent.name)
        ]

    def _stages(self) -> list[str]:
        return sorted(
            p.name for p in self.root.glob("*") if PLAIN.fullmatch(p.name) and p.is_dir() and not p.is_symlink()
        )

    def sweep(self) -> None:
        """Take away the leases that dead processes of this machine left."""
        for stage in self._stages():
            lease.sweep(self.root / stage)

    def leftovers(self) -> list[Path]:
        """Directories beside the artifacts that attempts, downloads and damage left, and that nobody holds."""
        return [
            path
            for stage in self._stages()
            for path in sorted((self.root / stage).iterdir())
            if _LEFT.fullmatch(path.name)
            and path.is_dir()
            and not path.is_symlink()
            and not path.with_name(f"{path.name.partition('.')[0]}.lease").exists()
        ]

    def _sources_holding(self, wanted: set[str]) -> set[str]:
        """Digests of the sources known here that hold a file with one of these sha256."""
        return {
            listing["digest"]
            for place in self._places()
            for listing in lineage.read_listings(self.directory(*place))
            if any(file["sha256"] in wanted for file in listing["files"])
        }

    def sources_of(self, inputs: Sequence[Input]) -> list[dict[str, str]]:
        """Name and digest of every outside source that the inputs of a record were made from, at any distance."""
        pairs: set[tuple[str, str]] = set()
        for given in inputs:
            made = None if "sources" in given else self.record((given["stage"], given["key"]))
            entries = given.get("sources", []) if made is None else made["sources"]
            pairs |= {(s["name"], s["digest"]) for s in entries}
        return [{"name": name, "digest": digest} for name, digest in sorted(pairs)]

    def everywhere(self) -> dict[Place, LineageRecord]:
        """Lineage records by (stage, key), of other machines' artifacts too when they share this store."""
        return {(r["stage"], r["key"]): r for r in self.records()}

    def find(self, ref: str) -> list[LineageRecord]:
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
        return verify(self.directory(stage, key), stage, key)

    def contents(self, stage: str, key: str) -> dict[str, int]:
        """Sizes of an artifact's files by relative path, by its manifest; empty when that cannot be read."""
        try:
            return {rel: info["bytes"] for rel, info in read_manifest(self.directory(stage, key)).items()}
        except Damaged:
            return {}


def _plain(name: str) -> str:
    if not PLAIN.fullmatch(name):
        raise StoreError(f"{name!r} cannot be the name of a stage or a key")
    return name


def _clean(partial: Path, volatile: bool = True) -> None:
    """Take away what earlier attempts left unfinished in a partial directory, and the records of one that died in
    publishing: they describe another attempt's files. ``volatile``: in ``_run/`` too, before an attempt begins."""
    for name in RECORDS:
        (partial / name).unlink(missing_ok=True)
    for path in partial.iterdir():
        if path.name == VOLATILE and not volatile and not path.is_symlink():
            continue
        files.sweep_entry(path)
