"""Content identity: canonical JSON, file hashes, and the manifest of a directory.

Canonical JSON refuses what it cannot write the same way twice (NaN, sets, paths, callables) and names the place,
because a silently stringified value would make a cache key that is wrong or different every time.

A manifest that is read may have been written by anyone who can write to the store: :func:`parse_manifest` takes only
entries that stay inside the artifact.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict, cast

from storage.files import STRAY

VOLATILE = "_run"
"""The sub-directory of an artifact for what is not part of its identity: logs, metric curves, checkpoints."""
RECORDS = ("manifest.json", "lineage.json", "inputs.json", "prefect.json")
"""Files the store itself keeps inside an artifact; they describe it and are not part of it."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


class FileInfo(TypedDict):
    """What a manifest says of one file."""

    bytes: int
    sha256: str


Manifest = dict[str, FileInfo]
"""``{relative path: {"bytes", "sha256"}}`` of every content file of an artifact."""


def canonical_json(value: object) -> str:
    """``value`` as JSON with sorted keys and no spaces. Raises TypeError or ValueError with the path of what cannot be
    written."""
    _refuse(value, "")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _refuse(value: object, path: str) -> None:
    if value is None or isinstance(value, (bool, int, str)):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{path or 'value'}: {value} has no place in a cache key; use a finite number")
        return
    if isinstance(value, (list, tuple)):
        for i, item in enumerate(cast(list[object], value)):
            _refuse(item, f"{path}[{i}]")
        return
    if isinstance(value, dict):
        for key, item in cast(dict[object, object], value).items():
            if not isinstance(key, str):
                raise TypeError(f"{path or 'value'}: key {key!r} is not a string")
            _refuse(item, f"{path}.{key}" if path else key)
        return
    raise TypeError(f"{path or 'value'}: a {type(value).__name__} cannot be part of a cache key")


def sha256_json(value: object) -> str:
    """Hex sha256 of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogateescape")).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in bounded memory."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def listing(root: Path) -> dict[str, os.stat_result]:
    """Every content file below ``root`` by relative path, sorted: not the records, ``_run/``, hidden or unfinished
    files. Links are not followed: a link is listed as itself."""
    found: dict[str, os.stat_result] = {}
    todo = [root]
    while todo:
        directory = todo.pop()
        with os.scandir(directory) as entries:
            for entry in entries:
                at_root = directory == root
                if entry.name.startswith(".") or (at_root and entry.name in (VOLATILE, *RECORDS)):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    todo.append(Path(entry.path))
                elif not entry.name.endswith(STRAY):
                    found[Path(entry.path).relative_to(root).as_posix()] = entry.stat(follow_symlinks=False)
    return dict(sorted(found.items()))


def manifest(root: Path) -> Manifest:
    """The manifest of the content files below ``root``, sorted by path. Raises ValueError for a link or a special
    file."""
    files: Manifest = {}
    for rel, info in listing(root).items():
        if not stat.S_ISREG(info.st_mode):
            raise ValueError(f"{root / rel} is not a plain file; an artifact holds its files itself")
        files[rel] = {"bytes": info.st_size, "sha256": sha256_file(root / rel)}
    return files


def stays_inside(rel: str) -> bool:
    """Whether a relative path names a file inside the directory that it is taken from: no absolute path, no ``..``, no
    hidden part, no unprintable character."""
    parts = rel.split("/")
    return "\\" not in rel and rel.isprintable() and not any(part == "" or part.startswith(".") for part in parts)


def parse_manifest(data: bytes | str) -> Manifest:
    """A manifest from its JSON. Raises ValueError that names the entry which no store of ours can have written."""
    loaded = json.loads(data)
    if not isinstance(loaded, dict):
        raise ValueError("the manifest is not an object")
    files: Manifest = {}
    for rel, info in cast(dict[str, object], loaded).items():
        reserved = rel in RECORDS or rel.split("/")[0] == VOLATILE
        if reserved or not stays_inside(rel):
            raise ValueError(f"the manifest names {rel!r}, which is no file of an artifact")
        entry = cast(dict[str, object], info) if isinstance(info, dict) else {}
        size, sha256 = entry.get("bytes"), entry.get("sha256")
        if type(size) is not int or size < 0 or not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise ValueError(f"the manifest's entry for {rel!r} has no size and sha256")
        files[rel] = {"bytes": size, "sha256": sha256}
    return files


def digest_of(files: Mapping[str, FileInfo]) -> str:
    """The digest of an artifact: sha256 over its manifest's paths and hashes."""
    return sha256_json([[path, info["sha256"]] for path, info in sorted(files.items())])


def fsync_tree(root: Path) -> None:
    """Make every content file below ``root`` durable before it is published under its final name."""
    for base, dirs, names in os.walk(root):
        if Path(base) == root and VOLATILE in dirs:
            dirs.remove(VOLATILE)
        for path in [base, *(os.path.join(base, n) for n in names)]:
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


def flatten(value: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested config as dotted names."""
    flat: dict[str, object] = {}
    for name, item in value.items():
        if isinstance(item, dict):
            flat |= flatten(cast(dict[str, object], item), f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = item
    return flat
