"""The store on S3: a bucket that many machines share, with the local directory as a write-through, read-through cache
of it.

``PIPELINE_STORE=s3://bucket/prefix``; credentials and region from ``AWS_*``, any S3 server by ``AWS_ENDPOINT_URL``. An
artifact is ``<prefix>/<stage>/<key>/``: its files go up first, then ``manifest.json``, and ``lineage.json`` last, which
commits it; what has no ``lineage.json`` is never a hit. A download is checked against the manifest's sha256, file by
file. Leases are objects written with ``If-None-Match`` and ``If-Match``, so one machine at a time builds a key. A
server that does not know conditional writes has no such lease: two machines may then both build a key, the later upload
stays, and as stages are deterministic that costs time only. An unreachable bucket is a StoreError, never a miss.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from storage.digest import VOLATILE, sha256_file, write_json
from storage.lease import Lease
from storage.store import Artifact, Look, Store, StoreError
from storage.withdrawal import Withdrawals

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
            self.client = boto3.client(
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
    def _worded(self, what: str) -> Iterator[None]:
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
                if condition and error.response["Error"].get("Code") in (
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
        with self._worded(f"download {name}"):
            self.client.download_file(self.name, self.prefix + name, str(path))

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
        return (found[0].decode(), found[1]) if found else None

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
        self.withdrawals = SharedWithdrawals(self.bucket, self.root / "withdrawn-shared", self.root / "withdrawn")
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
    def lease(self, stage: str, key: str, waiting: Callable[[str], None] = lambda holder: None) -> Iterator[Any]:
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
        return look.artifact

    def lookup(self, stage: str, key: str) -> Artifact | None:
        found = super().lookup(stage, key)
        return found or (self._fetch(stage, key) if self.examine(stage, key).artifact else None)

    def publish(self, stage: str, key: str, record: dict[str, Any]) -> Artifact:
        artifact = super().publish(stage, key, record)
        try:
            self._upload(stage, key)
        except StoreError as error:
            raise StoreError(
                f"{artifact.ref} is built and kept on this machine, but not shared: {error}; run again, it will be"
                " uploaded then"
            ) from error
        return artifact

    def settle(self, stage: str, key: str) -> None:
        path = self.directory(stage, key)
        for rel in ("prefect.json", f"{VOLATILE}/mlflow.json"):
            if (path / rel).is_file():
                self.bucket.upload(path / rel, f"{stage}/{key}/{rel}")

    def everywhere(self) -> dict[tuple[str, str], dict[str, Any]]:
        places = [name for name in self.bucket.names("") if name.count("/") == 2 and name.endswith("/lineage.json")]
        with ThreadPoolExecutor(TRANSFERS) as pool:
            found = [json.loads(data) for data in pool.map(self.bucket.get, sorted(places)) if data]
        return {(r["stage"], r["key"]): r for r in found} | super().everywhere()

    def _shared_record(self, stage: str, key: str) -> dict[str, Any] | None:
        data = self.bucket.get(f"{stage}/{key}/lineage.json")
        return json.loads(data) if data else None

    def _upload(self, stage: str, key: str) -> None:
        """Files, manifest, lineage. What was there (refresh, damage) is no hit from the first changed byte on."""
        path, base = self.directory(stage, key), f"{stage}/{key}/"
        listed = json.loads((path / "manifest.json").read_text())
        self.bucket.delete(base + "lineage.json")
        run = [
            p
            for p in [*(path / VOLATILE).glob("*"), *(path / VOLATILE / "logs").rglob("*")]
            if p.is_file() and p.stat().st_size <= KEPT_BYTES
        ]
        files = [*listed, *(p.relative_to(path).as_posix() for p in run), "manifest.json"]
        with ThreadPoolExecutor(TRANSFERS) as pool:
            list(pool.map(lambda rel: self.bucket.upload(path / rel, base + rel), files))
        self.bucket.upload(path / "lineage.json", base + "lineage.json")

    def files(self, stage: str, key: str) -> dict[str, str]:
        """As of any store; of an artifact that is in the bucket only, by the manifest there."""
        if self.directory(stage, key).is_dir():
            return super().files(stage, key)
        listed = json.loads(self.bucket.get(f"{stage}/{key}/manifest.json") or "{}")
        return {path: info["sha256"] for path, info in listed.items()}

    def _fetch(self, stage: str, key: str, again: bool = True) -> Artifact | None:
        """Bring an artifact here: all of it and checked, or not at all. None (with a line in the log) when the bucket's
        copy is damaged."""
        base, place = f"{stage}/{key}/", self.directory(stage, key).with_name(f"{key}.download")
        record = self._shared_record(stage, key)
        manifest_bytes = self.bucket.get(base + "manifest.json")
        if record is None or manifest_bytes is None:
            return None
        listed, there = json.loads(manifest_bytes), self.bucket.names(base)
        place.mkdir(parents=True, exist_ok=True)
        extra = [n[len(base) :] for n in there if n.startswith(f"{base}{VOLATILE}/") or n == f"{base}prefect.json"]
        with ThreadPoolExecutor(TRANSFERS) as pool:
            problems = [p for p in pool.map(lambda rel: self._file(base, rel, listed[rel], place, there), listed) if p]
            list(pool.map(lambda rel: self.bucket.download(base + rel, place / rel), extra))
        if problems and again and self._shared_record(stage, key) != record:
            return self._fetch(stage, key, again=False)  # replaced while it was read
        if problems:
            self.log(f"{stage}/{key[:12]} is damaged in {self.bucket.address} ({problems[0]}); it will be made anew")
            shutil.rmtree(place)
            return None
        write_json(place / "manifest.json", listed)
        write_json(place / "lineage.json", record)
        return Artifact(stage, key, record["digest"], self._put_in_place(place, stage, key))

    def _file(self, base: str, rel: str, info: dict[str, Any], place: Path, there: dict[str, int]) -> str | None:
        """Download one file unless an earlier attempt has it; what is wrong with it, if anything is."""
        path = place / rel
        if path.is_file() and path.stat().st_size == info["bytes"] and sha256_file(path) == info["sha256"]:
            return None
        if there.get(base + rel) != info["bytes"]:
            return f"{rel} has {there.get(base + rel, 'no')} bytes, the manifest says {info['bytes']}"
        self.bucket.download(base + rel, path)
        return None if sha256_file(path) == info["sha256"] else f"{rel}: content differs from the manifest"


class SharedWithdrawals(Withdrawals):
    """The bucket's withdrawals, as a copy in ``mirror`` that is at most ``SYNC_SECONDS`` old, and this machine's
    own."""

    def __init__(self, bucket: Bucket, mirror: Path, own: Path) -> None:
        super().__init__(mirror, own)
        self.bucket, self.mirror, self._synced = bucket, mirror, -SYNC_SECONDS

    def rules(self) -> list[dict[str, Any]]:
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self._sync()
        return super().rules()

    def add(self, rule: dict[str, Any]) -> str:
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
        there = {name.rpartition("/")[2] for name in self.bucket.names("withdrawn/")}
        self.mirror.mkdir(parents=True, exist_ok=True)
        for path in self.mirror.glob("*.json"):
            if path.name not in there:
                path.unlink(missing_ok=True)
        for name in there:  # few and small; one that was given a new reason must be read again
            tmp = self.mirror / f"{name}.{os.getpid()}.tmp"
            self.bucket.download(f"withdrawn/{name}", tmp)
            os.replace(tmp, self.mirror / name)
        self._synced = time.monotonic()
