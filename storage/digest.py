"""Content identity: canonical JSON, file hashes, and the manifest of a directory.

Canonical JSON refuses what it cannot write the same way twice (NaN, sets, paths, callables) and names the place,
because a silently stringified value would make a cache key that is wrong or different every time.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

VOLATILE = "_run"
"""The sub-directory of an artifact for what is not part of its identity: logs, metric curves, checkpoints."""
RECORDS = ("manifest.json", "lineage.json", "prefect.json")
"""Files the store itself keeps inside an artifact; they describe it and are not part of it."""


def canonical_json(value: Any) -> str:
    """``value`` as JSON with sorted keys and no spaces. Raises TypeError or ValueError with the path of what cannot be
    written."""
    _refuse(value, "")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _refuse(value: Any, path: str) -> None:
    if value is None or isinstance(value, (bool, int, str)):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{path or 'value'}: {value} has no place in a cache key; use a finite number")
        return
    if isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _refuse(item, f"{path}[{i}]")
        return
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{path or 'value'}: key {key!r} is not a string")
            _refuse(item, f"{path}.{key}" if path else key)
        return
    raise TypeError(f"{path or 'value'}: a {type(value).__name__} cannot be part of a cache key")


def sha256_json(value: Any) -> str:
    """Hex sha256 of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in bounded memory."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def manifest(root: Path) -> dict[str, dict[str, Any]]:
    """``{relative path: {"bytes": n, "sha256": hex}}`` of every content file below ``root``, sorted by path."""
    files = {}
    for base, dirs, names in os.walk(root):
        dirs.sort()
        if Path(base) == root and VOLATILE in dirs:
            dirs.remove(VOLATILE)
        for name in names:
            path = Path(base, name)
            rel = path.relative_to(root).as_posix()
            if rel not in RECORDS:
                files[rel] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    return dict(sorted(files.items()))


def digest_of(files: dict[str, dict[str, Any]]) -> str:
    """The digest of an artifact: sha256 over its manifest's paths and hashes."""
    return sha256_json([[path, info["sha256"]] for path, info in sorted(files.items())])


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as readable JSON, whole or not at all: a temporary file, fsync, then one rename."""
    tmp = path.with_name(path.name + f".{os.getpid()}.tmp")
    with open(tmp, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=1, ensure_ascii=False, sort_keys=True)
        f.write("\n")
        f.flush()
        os.fsync(f.fileno())
    os.replace(tmp, path)


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
