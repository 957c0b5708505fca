"""The store on S3: a bucket that many machines share, with the local directory as a write-through, read-through cache
of it.

``PIPELINE_STORE=s3://bucket/prefix``; credentials and region from ``AWS_*``, any S3 server by ``AWS_ENDPOINT_URL``. An
artifact is ``<prefix>/<stage>/<key>/``: its files go up first, then ``manifest.json``, and ``lineage.json`` last, which
commits it; what has no ``lineage.json`` is never a hit. Leases are objects written with ``If-None-Match`` and
``If-Match``, so one machine at a time builds a key. A server that does not know conditional writes has no such lease:
two machines may then both build a key, the later upload stays, and as stages are deterministic that costs time only. An
unreachable bucket is a StoreError, never a miss.

What lies in the bucket is data that anyone with its credentials may have written: records are read by us and must have
their form; only files that the manifest lists and plain files of ``_run/`` are brought here, under names that stay
inside the artifact, and each listed one is checked against the manifest's sha256.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict, cast

from storage.bucket import TRANSFERS, Bucket, ObjectJournal, ObjectPlace
from storage.digest import VOLATILE, FileInfo, Manifest, digest_of, listing, parse_manifest, sha256_file, stays_inside
from storage.files import sweep_entry, write_json
from storage.lease import Lease, is_dead, parse_holder
from storage.lineage import INPUTS, PLAIN, LineageRecord, Place, SourceListing, parse
from storage.room import DiskFull, room
from storage.store import Artifact, Look, Store, StoreError
from storage.unfinished import Unfinished
from storage.whole import read_manifest
from storage.withdrawal import Rule, Withdrawals, is_name

KEPT_BYTES = 32 << 20
"""Files of ``_run/`` up to this size are uploaded; checkpoints and intermediate data (its sub-directories but logs)
never are."""
RUNS = "runs"
"""Where machines that share a bucket note what their runs need, for :meth:`S3Store.noted_runs`."""
SYNC_SECONDS = 5.0
"""How old the local copy of the bucket's withdrawals may be."""


class NotedRun(TypedDict):
    """What a run on any machine needs: stage and key of its artifacts; ``pinned`` ones are never cleared away."""

    nodes: list[Place]
    pinned: bool


class S3Store(Store):
    """A :class:`Store` whose artifacts also lie in a bucket. Every promise of the base class holds for both
    together."""

    def __init__(self, root: Path, address: str, log: Callable[[str], None] = lambda line: None) -> None:
        super().__init__(root, log)
        self.bucket = Bucket(address)
        self.withdrawals = SharedWithdrawals(
            self.bucket, self.root / "withdrawn-shared", self.root / "withdrawn", self._sources_holding
        )
        self._conditional: bool | None = None

    @property
    def where(self) -> str:
        return self.bucket.address

    def check(self) -> None:
        super().check()
        self._can_lease()

    def _can_lease(self) -> bool:
        if self._conditional is None:
            self._conditional = self.bucket.conditional()
            if not self._conditional:
                self.log(
                    f"{self.bucket.address} does not keep conditional writes: two machines may build the same stage at"
                    " the same time"
                )
        return self._conditional

    @contextlib.contextmanager
    def lease(self, stage: str, key: str, waiting: Callable[[str], None] = lambda holder: None) -> Generator[Any]:
        with super().lease(stage, key, waiting) as here:
            if not self._can_lease():
                yield here
                return
            with Lease(ObjectPlace(self.bucket, f"{stage}/{key}.lease"), waiting) as shared:
                yield shared

    def examine(self, stage: str, key: str) -> Look:
        look = super().examine(stage, key)
        if look.state == "here":
            return look
        record = self._shared_record(stage, key)
        if record is None:
            return look
        withdrawn = self.withdrawals.because(record)
        if withdrawn:
            return Look("withdrawn", why=f"{stage}/{key[:12]} was withdrawn: {withdrawn}")
        return Look(
            "there",
            Artifact(stage, key, record["digest"], self.directory(stage, key)),
            record,
            f"in {self.bucket.address}, not here yet",
        )

    def ready(self, stage: str, key: str) -> Artifact | None:
        look = super().examine(stage, key)
        if look.state != "here":
            if look.state != "absent" or self.examine(stage, key).state != "there":
                return None  # a damaged copy is the lease holder's to deal with
            with super().lease(stage, key):  # of this machine only: one download at a time
                return super().examine(stage, key).artifact or self._fetch(stage, key)
        if self._shared_record(stage, key) is None:
            with self.lease(stage, key):  # built while the bucket was away, or before there was one
                if self._shared_record(stage, key) is None:
                    self._upload(stage, key)
        return self._tidied(look.artifact)

    def lookup(self, stage: str, key: str) -> Artifact | None:
        found = super().lookup(stage, key)
        return found or (self._fetch(stage, key) if self.examine(stage, key).artifact else None)

    def publish(self, stage: str, key: str, record: dict[str, Any], sources: Sequence[SourceListing] = ()) -> Artifact:
        artifact = super().publish(stage, key, record, sources)
        try:
            self._upload(stage, key)
        except StoreError as error:
            raise StoreError(
                f"{artifact.ref} is built and kept on this machine, but not shared: {error}; run again, it will be"
                " uploaded then"
            ) from error
        with contextlib.suppress(StoreError):  # `pipeline gc` takes what stays
            self.unfinished(stage, key).remove()
        return artifact

    def unfinished(self, stage: str, key: str) -> Unfinished:
        """The checkpoints of an unfinished training in the bucket. Raises StoreError for a name that is none."""
        self._partial(stage, key)
        return Unfinished(self.bucket, stage, key)

    def forgotten(self, days: float) -> list[Unfinished]:
        """Checkpoints in the bucket whose stage is published, or that nobody has added to for so many days."""
        ages: dict[Place, float] = {}
        for name, age in self.bucket.ages("").items():
            stage, _, rest = name.partition("/")
            key, _, _ = rest.partition(".unfinished/")
            if key != rest and PLAIN.fullmatch(stage) and PLAIN.fullmatch(key):
                ages[stage, key] = min(age, ages.get((stage, key), age))
        return [
            self.unfinished(*place)
            for place, age in sorted(ages.items())
            if age > days * 86400 or self._shared_record(*place)
        ]

    def settle(self, stage: str, key: str) -> None:
        path, rel = self.directory(stage, key), f"{VOLATILE}/mlflow.json"
        if (path / rel).is_file():
            self.bucket.upload(path / rel, f"{stage}/{key}/{rel}")

    def note_run(self, name: str, nodes: Sequence[Place], pinned: bool) -> None:
        told = {"nodes": [list(node) for node in nodes], "pinned": pinned}
        self.bucket.put(f"{RUNS}/{name}.json", json.dumps(told, sort_keys=True).encode())

    def journal(self, folder: str, name: str) -> ObjectJournal:
        return ObjectJournal(self.bucket, f"{folder}/{name}.jsonl", super().journal(folder, name), self._can_lease)

    def journals(self, folder: str) -> list[str]:
        there = (name.removeprefix(f"{folder}/") for name in self.bucket.names(f"{folder}/"))
        shared = {name.removesuffix(".jsonl") for name in there if name.endswith(".jsonl") and "/" not in name}
        return sorted(shared | set(super().journals(folder)))

    def noted_runs(self) -> dict[str, NotedRun]:
        """The runs of all machines that used this bucket; what is not the record of one is left out."""
        found: dict[str, NotedRun] = {}
        for name in self.bucket.names(f"{RUNS}/"):
            if run := _noted(self.bucket.get(name)):
                found[name.removeprefix(f"{RUNS}/").removesuffix(".json")] = run
        return found

    def shared_places(self) -> list[Place]:
        """Stage and key of every whole artifact in the bucket."""
        return [place for name in sorted(self.bucket.names("")) if (place := _place_of(name))]

    def younger_than(self, seconds: float) -> set[Place]:
        """Artifacts that were put into the bucket less than so long ago, by its server's clock."""
        ages = self.bucket.ages("").items()
        return {place for name, age in ages if age < seconds and (place := _place_of(name))}

    def remove_shared(self, stage: str, key: str) -> None:
        """Delete an artifact from the bucket; it is no hit from the first object on."""
        with self.lease(stage, key):
            self.bucket.delete(f"{stage}/{key}/lineage.json")
            for name in self.bucket.names(f"{stage}/{key}/"):
                self.bucket.delete(name)

    def everywhere(self) -> dict[Place, LineageRecord]:
        places = self.shared_places()
        with ThreadPoolExecutor(TRANSFERS) as pool:
            told = pool.map(self._shared_record, (stage for stage, _ in places), (key for _, key in places))
            found = [record for record in told if record]
        return {(r["stage"], r["key"]): r for r in found} | super().everywhere()

    def sweep(self) -> None:
        """Also of the leases in the bucket those whose holders were processes of this machine that have ended."""
        super().sweep()
        for name in self.bucket.names(""):
            if name.endswith(".lease"):
                place = ObjectPlace(self.bucket, name)
                found = place.read()
                if found and is_dead(parse_holder(found[0])):
                    place.delete(found[1])

    def _shared_record(self, stage: str, key: str) -> LineageRecord | None:
        """The lineage record in the bucket; None when there is none, or (with a line in the log) when it is not one."""
        data = self.bucket.get(f"{stage}/{key}/lineage.json")
        try:
            return parse(data, stage, key) if data else None
        except ValueError as error:
            self._distrust(stage, key, str(error))
            return None

    def _distrust(self, stage: str, key: str, why: str) -> None:
        self.log(f"{stage}/{key[:12]} is damaged in {self.bucket.address} ({why}); it will be made anew")

    def _upload(self, stage: str, key: str) -> None:
        """Files, manifest, lineage. What was there (refresh, damage) is no hit from the first changed byte on."""
        path, base = self.directory(stage, key), f"{stage}/{key}/"
        listed = read_manifest(path)
        self.bucket.delete(base + "lineage.json")
        run = [
            p
            for p in [*(path / VOLATILE).glob("*"), *(path / VOLATILE / "logs").rglob("*")]
            if p.is_file() and not p.is_symlink() and not p.name.startswith(".") and p.stat().st_size <= KEPT_BYTES
        ]
        told = [rel for rel in (INPUTS, "manifest.json") if (path / rel).is_file()]
        files = [*listed, *(p.relative_to(path).as_posix() for p in run), *told]
        with ThreadPoolExecutor(TRANSFERS) as pool:
            list(pool.map(self.bucket.upload, (path / rel for rel in files), (base + rel for rel in files)))
        self.bucket.upload(path / "lineage.json", base + "lineage.json")

    def files(self, stage: str, key: str) -> dict[str, str]:
        """As of any store; of an artifact that is in the bucket only, by the manifest there."""
        if self.directory(stage, key).is_dir():
            return super().files(stage, key)
        data = self.bucket.get(f"{stage}/{key}/manifest.json")
        return {rel: info["sha256"] for rel, info in parse_manifest(data).items()} if data else {}

    def _fetch(self, stage: str, key: str, again: bool = True) -> Artifact | None:
        """Bring an artifact here: all of it and checked, or not at all. None (with a line in the log) when the bucket's
        copy is damaged."""
        base, place = f"{stage}/{key}/", self.directory(stage, key).with_name(f"{key}.download")
        record = self._shared_record(stage, key)
        data = self.bucket.get(base + "manifest.json")
        if record is None or data is None:
            return None
        try:
            listed = parse_manifest(data)
            if digest_of(listed) != record["digest"]:
                raise ValueError("its digest is not that of its manifest")
        except ValueError as error:
            if again and self._shared_record(stage, key) != record:
                return self._fetch(stage, key, again=False)  # replaced while it was read
            self._distrust(stage, key, str(error))
            return None
        problems = self._download(base, place, listed)
        if problems and again and self._shared_record(stage, key) != record:
            return self._fetch(stage, key, again=False)
        if problems:
            self._distrust(stage, key, problems[0])
            shutil.rmtree(place)
            return None
        write_json(place / "manifest.json", listed)
        write_json(place / "lineage.json", record)
        return Artifact(stage, key, record["digest"], self._put_in_place(place, stage, key))

    def _download(self, base: str, place: Path, listed: Manifest) -> list[str]:
        """Bring the listed files and those of ``_run/`` to ``place``; what is wrong with them. What an earlier attempt
        brought stays, what does not belong there goes."""
        there = self.bucket.names(base)
        if place.is_symlink():
            place.unlink()
        place.mkdir(parents=True, exist_ok=True)
        sweep_entry(place)
        for rel in set(listing(place)) - set(listed):
            (place / rel).unlink()
        extra = [rel for name, size in there.items() if _is_kept(rel := name[len(base) :], size)]
        need = sum(info["bytes"] for info in listed.values())
        have = sum((place / rel).stat().st_size for rel in listed if (place / rel).is_file())
        try:
            with (
                room(place, f"the download of {base[:-1]}", max(0, need - have)),
                ThreadPoolExecutor(TRANSFERS) as pool,
            ):
                started = [pool.submit(self._file, base, rel, info, place, there) for rel, info in listed.items()]
                beside = [pool.submit(self.bucket.download, base + rel, place / rel) for rel in extra]
                found = [future.result() for future in started]
                for future in beside:
                    future.result()
        except DiskFull as error:
            raise StoreError(str(error)) from error
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            return [f"{error.filename} is both a file and a directory"]
        return [problem for problem in found if problem]

    def _file(self, base: str, rel: str, info: FileInfo, place: Path, there: dict[str, int]) -> str | None:
        """Download one file unless an earlier attempt has it; what is wrong with it, if anything is."""
        path = place / rel
        if path.is_file() and path.stat().st_size == info["bytes"] and sha256_file(path) == info["sha256"]:
            return None
        if there.get(base + rel) != info["bytes"]:
            return f"{rel} has {there.get(base + rel, 'no')} bytes, the manifest says {info['bytes']}"
        self.bucket.download(base + rel, path)
        return None if sha256_file(path) == info["sha256"] else f"{rel}: content differs from the manifest"


def _noted(data: bytes | None) -> NotedRun | None:
    """A run's record from the bucket, which anyone may have written; None when it is not one."""
    try:
        loaded = cast(dict[str, Any], json.loads(data or b""))
        nodes = [(str(stage), str(key)) for stage, key in loaded["nodes"]]
        return {"nodes": nodes, "pinned": loaded["pinned"] is True}
    except (ValueError, TypeError, KeyError):
        return None


def _is_kept(rel: str, size: int) -> bool:
    """Whether an object is one that comes along beside the listed files: the list of sources, or a plain file of
    ``_run/`` or its logs, no larger than those that are uploaded."""
    parts = rel.split("/")
    run = parts[0] == VOLATILE and (len(parts) == 2 or (len(parts) > 2 and parts[1] == "logs"))
    return (rel == INPUTS or run) and stays_inside(rel) and size <= KEPT_BYTES


def _place_of(name: str) -> Place | None:
    """Stage and key of the artifact that an object of this name makes whole."""
    stage, _, rest = name.partition("/")
    key, _, file = rest.partition("/")
    whole = file == "lineage.json" and PLAIN.fullmatch(stage) and PLAIN.fullmatch(key)
    return (stage, key) if whole else None


class SharedWithdrawals(Withdrawals):
    """The bucket's withdrawals, as a copy in ``mirror`` that is at most ``SYNC_SECONDS`` old, and this machine's
    own."""

    def __init__(self, bucket: Bucket, mirror: Path, own: Path, holding: Callable[[set[str]], set[str]]) -> None:
        super().__init__(mirror, own, holding=holding)
        self.bucket, self.mirror, self._synced = bucket, mirror, -SYNC_SECONDS

    def rules(self) -> list[Rule]:
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self._sync()
        return super().rules()

    def add(self, rule: Rule) -> str:
        name = super().add(rule)
        self.bucket.upload(self.mirror / name, f"withdrawn/{name}")
        return name

    def remove(self, what: str) -> str | None:
        self._sync()
        name = super().remove(what)
        if name:
            self.bucket.delete(f"withdrawn/{name}")
        return name

    def _sync(self) -> None:
        sizes = {name.removeprefix("withdrawn/"): size for name, size in self.bucket.names("withdrawn/").items()}
        there = [name for name, size in sizes.items() if is_name(name) and size <= KEPT_BYTES]
        self.mirror.mkdir(parents=True, exist_ok=True)
        for path in self.mirror.glob("*.json"):
            if path.name not in there:
                path.unlink(missing_ok=True)
        for name in there:  # few and small; one that was given a new reason must be read again
            self.bucket.download(f"withdrawn/{name}", self.mirror / name)
        self._synced = time.monotonic()
