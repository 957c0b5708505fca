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
import secrets
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from storage.digest import VOLATILE, FileInfo, Manifest, digest_of, listing, parse_manifest, sha256_file, stays_inside
from storage.files import sweep_entry, whole, write_json
from storage.lease import Lease, is_dead, parse_holder
from storage.lineage import INPUTS, PLAIN, LineageRecord, Place, SourceListing, parse
from storage.room import DiskFull, room
from storage.store import Artifact, Look, Store, StoreError
from storage.whole import read_manifest
from storage.withdrawal import Rule, Withdrawals, is_name

KEPT_BYTES = 32 << 20
"""Files of ``_run/`` up to this size are uploaded; checkpoints and intermediate data (its sub-directories but logs)
never are."""
TRANSFERS = 8
SYNC_SECONDS = 5.0
"""How old the local copy of the bucket's withdrawals may be."""


class Bucket:
    """The few S3 operations that the store needs, below one prefix. Whatever goes wrong is a StoreError that names the
    bucket."""

    def __init__(self, address: str) -> None:
        rest = address.removeprefix("s3://")
        self.name, _, prefix = rest.partition("/")
        self.prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        if not address.startswith("s3://") or not self.name:
            raise StoreError(
                f"PIPELINE_STORE={address}: write s3://bucket/prefix, or unset it to keep the store on this machine"
            )
        import boto3
        from botocore.config import Config

        with self._worded("open"):
            self.client: Any = boto3.client(  # pyright: ignore[reportUnknownMemberType] - made at run time
                "s3",
                config=Config(
                    connect_timeout=5,
                    read_timeout=60,
                    retries={"max_attempts": 3, "mode": "standard"},
                    max_pool_connections=4 * TRANSFERS,
                ),
            )

    @property
    def address(self) -> str:
        return f"s3://{self.name}/{self.prefix}".rstrip("/")

    @contextlib.contextmanager
    def _worded(self, what: str) -> Generator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (Boto3Error, BotoCoreError, ClientError) as error:
            raise StoreError(
                f"artifact store {self.address}: cannot {what}: {error}; PIPELINE_STORE, AWS_ENDPOINT_URL and the AWS"
                " credentials say where it is and who asks"
            ) from error

    def get(self, name: str) -> bytes | None:
        """A small object's bytes, or None."""
        found = self.read(name)
        return found[0] if found else None

    def read(self, name: str) -> tuple[bytes, str] | None:
        """A small object's bytes and its ETag, or None."""
        with self._worded(f"read {name}"):
            try:
                answer = self.client.get_object(Bucket=self.name, Key=self.prefix + name)
                return answer["Body"].read(), answer["ETag"]
            except self.client.exceptions.NoSuchKey:
                return None

    def put(self, name: str, data: bytes, **condition: str) -> str | None:
        """Write a small object; its ETag, or None when a condition (``IfMatch``, ``IfNoneMatch``) did not hold."""
        from botocore.exceptions import ClientError

        with self._worded(f"write {name}"):
            try:
                return self.client.put_object(Bucket=self.name, Key=self.prefix + name, Body=data, **condition)["ETag"]
            except ClientError as error:
                answer = cast(Any, error).response
                if condition and answer["Error"].get("Code") in (
                    "PreconditionFailed",
                    "ConditionalRequestConflict",
                    "NoSuchKey",
                ):
                    # a conflict: another conditional write was going on; no such key: If-Match of what is gone
                    return None
                raise

    def delete(self, name: str) -> None:
        with self._worded(f"delete {name}"):
            self.client.delete_object(Bucket=self.name, Key=self.prefix + name)

    def names(self, below: str) -> dict[str, int]:
        """Names and sizes of all objects below a name."""
        with self._worded(f"list {below}"):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=self.prefix + below)
            return {o["Key"][len(self.prefix) :]: o["Size"] for page in pages for o in page.get("Contents", ())}

    def upload(self, path: Path, name: str) -> None:
        with self._worded(f"upload {name}"):
            self.client.upload_file(str(path), self.name, self.prefix + name)

    def download(self, name: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._worded(f"download {name}"), whole(path) as partial:
            self.client.download_file(self.name, self.prefix + name, str(partial))

    def conditional(self) -> bool:
        """Whether the bucket can be written (StoreError if not), and keeps the promise of ``If-None-Match``."""
        probe = f".probe-{secrets.token_hex(8)}"
        self.put(probe, b"")
        try:
            return self.put(probe, b"", IfNoneMatch="*") is None
        except StoreError:  # a server that refuses the header
            return False
        finally:
            self.delete(probe)


class ObjectPlace:
    """A lease as an object of a bucket; its ETag is the token, as every heartbeat changes the text."""

    heartbeat, stale, poll = 10.0, 90.0, 2.0

    def __init__(self, bucket: Bucket, name: str) -> None:
        self.bucket, self.name = bucket, name

    def create(self, text: str) -> str | None:
        return self.bucket.put(self.name, text.encode(), IfNoneMatch="*")

    def read(self) -> tuple[str, str] | None:
        found = self.bucket.read(self.name)
        return (found[0].decode("utf-8", "replace"), found[1]) if found else None

    def replace(self, token: str, text: str) -> str | None:
        return self.bucket.put(self.name, text.encode(), IfMatch=token)

    def delete(self, token: str) -> None:
        """Not conditional (few servers can): a lease is taken over only after ``stale`` seconds, so the look before is
        enough."""
        if (found := self.read()) and found[1] == token:
            self.bucket.delete(self.name)


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
        return artifact

    def settle(self, stage: str, key: str) -> None:
        path, rel = self.directory(stage, key), f"{VOLATILE}/mlflow.json"
        if (path / rel).is_file():
            self.bucket.upload(path / rel, f"{stage}/{key}/{rel}")

    def everywhere(self) -> dict[Place, LineageRecord]:
        places: list[Place] = []
        for name in sorted(self.bucket.names("")):
            stage, _, rest = name.partition("/")
            key, _, file = rest.partition("/")
            if file == "lineage.json" and PLAIN.fullmatch(stage) and PLAIN.fullmatch(key):
                places.append((stage, key))
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


def _is_kept(rel: str, size: int) -> bool:
    """Whether an object is one that comes along beside the listed files: the list of sources, or a plain file of
    ``_run/`` or its logs, no larger than those that are uploaded."""
    parts = rel.split("/")
    run = parts[0] == VOLATILE and (len(parts) == 2 or (len(parts) > 2 and parts[1] == "logs"))
    return (rel == INPUTS or run) and stays_inside(rel) and size <= KEPT_BYTES


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
