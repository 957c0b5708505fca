"""Files of this machine as a source: one file, a directory or a glob; with content digests that are remembered.

A digest is computed once per (path, size, modification time) and kept in ``digests.json`` under ``PIPELINE_HOME``
(default ``.pipeline``), so that planning a run over gigabytes takes no time. A file changed within the last two seconds
is hashed every time: a second change could leave the same time stamp.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import time
from pathlib import Path

from pipeline.sources import SourceFile
from pipeline.sources.kinds import format_of, has_magic, suffixes
from storage.places import home

_RACY_NS = 2_000_000_000


def list_files(spec: str) -> tuple[list[SourceFile], list[str]]:
    """Files that ``spec`` names, sorted by relative path, and the relative paths left out for want of a known format.

    Raises FileNotFoundError when nothing has that name, ValueError when nothing there can be read.
    """
    base, paths = _expand(os.path.expanduser(spec))
    named = paths if base is None else [p for p in paths if format_of(p.name)]
    if base is None and not format_of(paths[0].name):
        raise ValueError(f"{spec}: unknown file type; known are {suffixes()}")
    relative = {p: p.name if base is None else p.relative_to(base).as_posix() for p in paths}
    skipped = sorted(relative[p] for p in set(paths) - set(named))
    if not named:
        raise ValueError(f"{spec}: no file of a known type among {len(paths)}; known are {suffixes()}")
    digests = sha256_of(named)
    files = [SourceFile(relative[p], str(p.resolve()), p.stat().st_size, digests[p]) for p in named]
    return sorted(files, key=lambda f: f.relpath), skipped


def _expand(spec: str) -> tuple[Path | None, list[Path]]:
    """The directory that relative paths are taken from (None for a single file) and all visible files."""
    path = Path(spec)
    if path.is_file():
        return None, [path]
    if path.is_dir():
        return path, _walk(path)
    if not has_magic(spec):
        raise FileNotFoundError(f"{spec}: no such file or directory")
    fixed = Path(*_before_magic(path.parts))
    found = {Path(p) for p in glob.glob(spec, recursive=True)}
    files = sorted({f for p in found for f in (_walk(p) if p.is_dir() else [p])})
    if not files:
        raise FileNotFoundError(f"{spec}: matches no file")
    return fixed, files


def _before_magic(parts: tuple[str, ...]) -> list[str]:
    stop = next(i for i, part in enumerate(parts) if has_magic(part))
    return list(parts[:stop])


def _walk(root: Path) -> list[Path]:
    """All files below a directory but hidden ones and those that job systems leave (``_SUCCESS``)."""
    found = []
    for base, dirs, names in os.walk(root):
        dirs[:] = sorted(d for d in dirs if not d.startswith("."))
        found += [Path(base, name) for name in sorted(names) if name[0] not in "._"]
    return found


def sha256_of(paths: list[Path]) -> dict[Path, str]:
    """Hex sha256 of each file's content, from memory where size and time have not changed."""
    cache_path = home() / "digests.json"
    cache = _load(cache_path)
    digests, news = {}, {}
    for path in paths:
        stat = path.stat()
        key, stamp = str(path.resolve()), [stat.st_size, stat.st_mtime_ns]
        known = cache.get(key)
        if known and known[:2] == stamp:
            digests[path] = known[2]
            continue
        with open(path, "rb") as file:
            digests[path] = hashlib.file_digest(file, "sha256").hexdigest()
        if time.time_ns() - stat.st_mtime_ns > _RACY_NS:
            news[key] = [*stamp, digests[path]]
    if news and cache_path.parent.is_dir():  # looking at sources leaves no folder behind
        _save(cache_path, news)
    return digests


def _load(path: Path) -> dict[str, list]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
        return {key: value for key, value in loaded.items() if isinstance(value, list) and len(value) == 3}
    except (OSError, ValueError, AttributeError):
        return {}  # a cache may always be thrown away


def _save(path: Path, news: dict[str, list]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    partial.write_text(
        json.dumps({**_load(path), **news}, ensure_ascii=False, sort_keys=True),
        encoding="utf-8",
        errors="surrogateescape",
    )
    os.replace(partial, path)
