"""Checkpoints of training that is not finished, in the bucket, so that another machine can go on.

``<stage>/<key>.unfinished/<name>/`` holds the files of one checkpoint, and below ``_run/`` the small files of the
attempt (its curve, what it chose for its machine); ``state.json`` goes up last and makes it whole. ``name`` is the
step's folder with the checkpoint's own id, so files of two attempts never mix. Several machines may each send what lies
on their own disk: whoever has all the others' in sight sends ``state.json``.

What lies there is data: only files that ``state.json`` lists, of their sizes, are brought here, under names that stay
inside.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from storage.digest import VOLATILE, stays_inside
from storage.files import write_bytes

if TYPE_CHECKING:
    from storage.bucket import Bucket

KEEP = 2
"""Checkpoints that stay in the bucket."""
STATE, INDEX = "state.json", ".metadata"
_NAME = re.compile(r"(step-\d{8})\.([0-9a-f]{1,32})")


def name_of(folder: Path) -> str | None:
    """The name of a checkpoint's folder in the bucket; None while it has no state."""
    try:
        state = json.loads((folder / STATE).read_text("utf-8"))
        return f"{folder.name}.{state.get('id', '0')}"
    except (OSError, ValueError, AttributeError):
        return None


def sizes_of(state: bytes | str) -> dict[str, int]:
    """The files of a checkpoint with their sizes, by its state. Raises ValueError for what is no state."""
    loaded: object = json.loads(state)
    listed = cast(dict[str, object], loaded).get("files") if isinstance(loaded, dict) else None
    if not isinstance(listed, dict):
        raise ValueError("no list of files in it")
    files: dict[str, int] = {}
    for name, size in cast(dict[str, object], listed).items():
        if "/" in name or (name != INDEX and not stays_inside(name)) or type(size) is not int:
            raise ValueError(f"{name!r} is no file of a checkpoint")
        files[name] = size
    return files


def is_whole(folder: Path) -> bool:
    """Whether all files of a checkpoint are there with the sizes they were written with."""
    try:
        files = sizes_of((folder / STATE).read_text("utf-8"))
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError):
        return False


class Unfinished:
    """The checkpoints under one key of one stage in a bucket. Whatever goes wrong there is a StoreError."""

    def __init__(self, bucket: Bucket, stage: str, key: str) -> None:
        self.bucket, self.base = bucket, f"{stage}/{key}.unfinished/"

    @property
    def address(self) -> str:
        """Where they lie, for people."""
        return f"{self.bucket.address}/{self.base.rstrip('/')}"

    def names(self) -> list[str]:
        """Whole checkpoints, oldest first."""
        found = (name.removeprefix(self.base).split("/") for name in self.bucket.names(self.base))
        return sorted(parts[0] for parts in found if parts[1:] == [STATE] and _NAME.fullmatch(parts[0]))

    def send(self, folder: Path, name: str, beside: Iterable[Path], go_on: Callable[[], None] = lambda: None) -> None:
        """Send what this machine has of a checkpoint, and files of its ``_run/``; not yet its state. ``go_on`` is
        called before each file, and may raise."""
        own = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name != STATE]
        for path, rel in [*((p, p.name) for p in own), *((p, f"{VOLATILE}/{p.name}") for p in beside)]:
            go_on()
            self.bucket.upload(path, f"{self.base}{name}/{rel}")

    def complete(self, folder: Path, name: str) -> bool:
        """Send the state when all files are there; whether they were. Older ones beyond the newest ``KEEP`` go."""
        there = self.bucket.names(f"{self.base}{name}/")
        listed = sizes_of((folder / STATE).read_text("utf-8"))
        if any(there.get(f"{self.base}{name}/{rel}") != size for rel, size in listed.items()):
            return False
        self.bucket.upload(folder / STATE, f"{self.base}{name}/{STATE}")
        for old in self.names()[:-KEEP]:
            self.remove(old)
        return True

    def bring_small(self, name: str, run: Path) -> None:
        """Bring the small files that came with a checkpoint into ``run``."""
        base = f"{self.base}{name}/{VOLATILE}/"
        for full in self.bucket.names(base):
            rel = full.removeprefix(base)
            if "/" not in rel and stays_inside(rel) and not rel.startswith("."):
                self.bucket.download(full, run / rel)

    def bring(self, name: str, checkpoints: Path) -> Path:
        """Bring a checkpoint below ``checkpoints``: all of it, or ValueError. Files that lie there already, of the same
        checkpoint, stay."""
        match = _NAME.fullmatch(name)
        data = self.bucket.get(f"{self.base}{name}/{STATE}")
        if match is None or data is None:
            raise ValueError(f"{name} is gone from {self.bucket.address}")
        final = checkpoints / match[1]
        if final.exists() and name_of(final) != name:
            shutil.rmtree(final)
        final.mkdir(parents=True, exist_ok=True)
        base = f"{self.base}{name}/"
        there = self.bucket.names(base)
        for rel, size in sizes_of(data).items():
            path = final / rel
            if path.is_file() and path.stat().st_size == size:
                continue
            if there.get(base + rel) != size:
                raise ValueError(f"{name}/{rel} has {there.get(base + rel, 'no')} bytes in the bucket, not {size}")
            self.bucket.download(base + rel, path)
        write_bytes(final / STATE, data, durable=True)
        return final

    def remove(self, name: str = "") -> None:
        """Take away a checkpoint, or all of them; a state goes first, so what is left is never whole."""
        there = self.bucket.names(f"{self.base}{name}/" if name else self.base)
        for full in sorted(there, key=lambda full: not full.endswith(f"/{STATE}")):
            self.bucket.delete(full)
