"""Objects of an S3 store as a source: ``s3://bucket/key``, ``s3://bucket/prefix/`` or a glob in the key.

Endpoint and credentials come from the usual environment (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID`` …). An object's
digest is made of its ETag and size, because S3 gives no sha256 without reading: it changes when the content does.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
from typing import Any

from pipeline.sources import Skipped, SourceFile
from pipeline.sources.kinds import format_of, has_magic, suffixes


def client() -> Any:
    """A boto3 client that fails in seconds, with the reason, when the store cannot be reached."""
    import boto3
    from botocore.config import Config

    config = Config(connect_timeout=5, read_timeout=60, retries={"max_attempts": 3})
    return boto3.client("s3", config=config)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def list_s3(spec: str) -> tuple[list[SourceFile], list[Skipped]]:
    """Objects that ``spec`` names and the keys left out for want of a known format. Raises ValueError with the store's
    own words."""
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = spec.removeprefix("s3://").partition("/")
    prefix = key[: next((i for i, c in enumerate(key) if has_magic(c)), len(key))]
    try:
        pages = client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        objects = [o for page in pages for o in page.get("Contents", ())]
    except (BotoCoreError, ClientError) as error:
        raise ValueError(
            f"{spec}: cannot be listed: {error} (AWS_ENDPOINT_URL and AWS credentials say where and who)"
        ) from None
    objects = [o for o in objects if _named(o["Key"], key) and not o["Key"].endswith("/")]
    named = [o for o in objects if format_of(o["Key"])]
    if not named:
        raise ValueError(f"{spec}: no object of a known type among {len(objects)}; known are {suffixes()}")
    folder = not has_magic(key) and all(o["Key"] != key for o in objects)
    base = key.rstrip("/") + "/" if folder and key else prefix[: prefix.rfind("/") + 1]
    files = [
        SourceFile(o["Key"][len(base) :], f"s3://{bucket}/{o['Key']}", o["Size"], _digest(o), _state(o)) for o in named
    ]
    skipped = [Skipped(o["Key"][len(base) :], "unknown file type") for o in objects if not format_of(o["Key"])]
    return sorted(files, key=lambda f: f.relpath), sorted(skipped)


def _named(key: str, wanted: str) -> bool:
    if has_magic(wanted):
        return fnmatch.fnmatchcase(key, wanted)
    return key == wanted or key.startswith(wanted if not wanted or wanted.endswith("/") else wanted + "/")


def _digest(entry: dict[str, Any]) -> str:
    return hashlib.sha256(f"s3 {entry['ETag']} {entry['Size']}".encode()).hexdigest()


def _state(entry: dict[str, Any]) -> tuple[int, ...]:
    """Size and time of the last write in seconds, which is what the store counts in."""
    return entry["Size"], int(entry["LastModified"].timestamp())


def state_of_s3(location: str) -> tuple[tuple[int, ...], str]:
    """The state and the digest of an object as they are now. Raises OSError when it is gone or unreachable."""
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = location.removeprefix("s3://").partition("/")
    try:
        found = client().head_object(Bucket=bucket, Key=key)
    except (BotoCoreError, ClientError) as error:
        raise OSError(f"{location}: {error}") from None
    entry = {"Size": found["ContentLength"], "ETag": found["ETag"], "LastModified": found["LastModified"]}
    return _state(entry), _digest(entry)


def open_s3(location: str, start: int = 0) -> io.BufferedReader:
    """An object as a buffered binary stream from byte ``start`` on. Raises OSError when it is gone or unreachable."""
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = location.removeprefix("s3://").partition("/")
    try:
        body = client().get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-")["Body"]
    except (BotoCoreError, ClientError) as error:
        raise OSError(f"{location}: cannot be read: {error}") from None
    return io.BufferedReader(_Body(body), 1 << 20)


class _Body(io.RawIOBase):
    """boto3's body has ``read`` alone; this makes it a raw stream."""

    def __init__(self, body: Any) -> None:
        self._body = body

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._body.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
