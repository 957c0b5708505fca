"""A bucket of an S3 server as the store uses it: the few operations, below one prefix, and leases as objects."""

# boto3 comes without types
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import contextlib
import random
import secrets
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, cast

from storage.files import whole
from storage.journal import Journal
from storage.store import StoreError

TRANSFERS = 8
"""Uploads or downloads at once."""
APPENDS = 20
"""Attempts to add a line to a journal that others write to."""


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
                    # Many S3 servers do not know boto3's chunked uploads with checksums; every file has its sha256.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
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

    def ages(self, below: str) -> dict[str, float]:
        """Seconds since each object below a name was written, by the server's clock alone: this machine's may be
        wrong."""
        probe = self.prefix + f".clock-{secrets.token_hex(8)}"
        with self._worded(f"list {below}"):
            self.client.put_object(Bucket=self.name, Key=probe, Body=b"")
            now = self.client.head_object(Bucket=self.name, Key=probe)["LastModified"]
            self.client.delete_object(Bucket=self.name, Key=probe)
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=self.prefix + below)
            return {
                o["Key"][len(self.prefix) :]: (now - o["LastModified"]).total_seconds()
                for page in pages
                for o in page.get("Contents", ())
            }

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


class ObjectJournal:
    """A journal as an object that is written anew with every line, on the condition that it is still what was read.

    While the bucket has none it is what ``before`` holds: a home's own journal, from before it shared its store.
    ``conditional`` says whether the server keeps conditions; on one that does not, of two lines at the same moment one
    is lost. Raises StoreError.
    """

    def __init__(self, bucket: Bucket, name: str, before: Journal, conditional: Callable[[], bool]) -> None:
        self.bucket, self.name, self.before, self.conditional = bucket, name, before, conditional

    def read(self) -> str:
        found = self.bucket.read(self.name)
        return found[0].decode("utf-8", "replace") if found else self.before.read()

    def append(self, line: str) -> None:
        for attempt in range(APPENDS):
            found = self.bucket.read(self.name)
            text = found[0] if found else self.before.read().encode()
            condition = {"IfMatch": found[1]} if found else {"IfNoneMatch": "*"}
            whole = text + (b"" if not text or text.endswith(b"\n") else b"\n") + line.encode() + b"\n"
            if self.bucket.put(self.name, whole, **(condition if self.conditional() else {})):
                return
            time.sleep(random.uniform(0, 0.1 * (attempt + 1)))
        raise StoreError(
            f"artifact store {self.bucket.address}: {self.name} is written by others all the time; try again"
        )


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
