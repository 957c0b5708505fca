"""Files of this machine as a source: one file, a directory or a glob; with content digests that are remembered.

A digest is computed once per state of a file (size, times of change, inode) and kept in ``digests.json`` under
``PIPELINE_HOME`` (default ``.pipeline``), so that planning a run over gigabytes takes no time. A file changed within
the last two seconds is hashed every time: a second change could leave the same time stamp.

Links to files and folders are followed, each folder once. What is there and not read is told with the reason.
"""

from __future__ import annotations

import glob
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.sources import Skipped, SourceFile
from pipeline.sources.kinds import format_of, has_magic, suffixes
from pipeline.sources.state import SETTLED_NS, state_of
from storage.digest import sha256_file
from storage.files import write_text
from storage.places import home

_RACY_NS = 2_000_000_000


class Hashed(NamedTuple):
    """The sha256 of a file and its state when it was hashed (:func:`pipeline.sources.state.state_of`)."""

    sha256: str
    state: tuple[int, ...]


def list_files(spec: str) -> tuple[list[SourceFile], list[Skipped]]:
    """Files that ``spec`` names, sorted by relative path, and what is there and not read, with the reason.

    Raises FileNotFoundError when nothing has that name, ValueError when nothing there can be read.
    """
    base, paths, skipped = _expand(os.path.expanduser(spec))
    named = paths if base is None else [p for p in paths if format_of(p.name)]
    if base is None and not format_of(paths[0].name):
        raise ValueError(f"{spec}: unknown file type; known are {suffixes()}")
    relative = {p: p.name if base is None else p.relative_to(base).as_posix() for p in paths}
    unknown = [Skipped(relative[p], "unknown file type") for p in set(paths) - set(named)]
    odd = [Skipped(p.relative_to(base or p.parent).as_posix(), why) for p, why in skipped]
    if not named:
        reasons = ", ".join(f"{s.path}: {s.reason}" for s in odd[:3])
        raise ValueError(
            f"{spec}: no file of a known type among {len(paths)}; known are {suffixes()}"
            + (f"; not read: {reasons}" if reasons else "")
        )
    hashed = hash_files(named)
    files = [SourceFile(relative[p], str(p.resolve()), hashed[p].state[0], *hashed[p]) for p in named]
    return sorted(files, key=lambda f: f.relpath), sorted([*unknown, *odd])


Odd = tuple[Path, str]
"""Something that is not read, and why."""


def _expand(spec: str) -> tuple[Path | None, list[Path], list[Odd]]:
    """The directory that relative paths are taken from (None for a single file), all visible files, and what is odd."""
    path = Path(spec)
    if path.is_file():
        return None, [path], []
    if path.is_dir():
        return path, *_walk([path])
    if not has_magic(spec):
        raise FileNotFoundError(f"{spec}: no such file or directory")
    fixed = Path(*_before_magic(path.parts))
    files, odd = _walk(sorted({Path(p) for p in glob.glob(spec, recursive=True)}))
    if not files:
        raise FileNotFoundError(f"{spec}: matches no file")
    return fixed, files, odd


def _before_magic(parts: tuple[str, ...]) -> list[str]:
    stop = next(i for i, part in enumerate(parts) if has_magic(part))
    return list(parts[:stop])


def _walk(roots: list[Path]) -> tuple[list[Path], list[Odd]]:
    """All files at or below the roots but hidden ones and those that job systems leave (``_SUCCESS``), and what cannot
    be read with the reason. A folder that links lead to again is read once, where it comes first."""
    found: set[Path] = set()
    odd: dict[Path, str] = {}
    seen: dict[str, Path] = {}

    def visit(path: Path) -> None:
        if path.is_dir():
            real = os.path.realpath(path)
            if real in seen:
                if seen[real] != path:
                    odd[path] = f"a link to a folder that is read as {seen[real].name} already"
                return
            seen[real] = path
            try:
                entries = sorted(path.iterdir(), key=lambda entry: (entry.is_symlink(), entry.name))
            except OSError as error:
                odd[path] = f"cannot be opened: {error.strerror}"
                return
            for entry in entries:
                if not entry.name.startswith(".") and (entry.is_dir() or not entry.name.startswith("_")):
                    visit(entry)
        elif path.is_file():
            found.add(path)
        else:
            odd[path] = "a link to nothing" if path.is_symlink() else "not a plain file"

    for root in roots:
        visit(root)
    return sorted(found), sorted(odd.items())


def hash_files(paths: list[Path]) -> dict[Path, Hashed]:
    """Hex sha256 and state of each file, from memory where the state has not changed. Raises OSError for a file that
    cannot be read, ValueError for one that changes all the time."""
    cache_path = home() / "digests.json"
    cache = _load(cache_path)
    found: dict[Path, Hashed] = {}
    news: dict[str, list[int | str]] = {}
    for path in paths:
        key, state = str(path.resolve()), state_of(path)
        known = cache.get(key)
        if known and tuple(known[:-1]) == state:
            found[path] = Hashed(str(known[-1]), state)
            continue
        found[path] = _hash(path)
        if time.time_ns() - max(found[path].state[1:3]) > _RACY_NS:
            news[key] = [*found[path].state, found[path].sha256]
    if news and cache_path.parent.is_dir():  # looking at sources leaves no folder behind
        write_text(
            cache_path,
            json.dumps({**_load(cache_path), **news}, ensure_ascii=False, sort_keys=True),
            errors="surrogateescape",
        )
    return found


def _hash(path: Path) -> Hashed:
    """The digest of a file in a state that lasted from before the first byte was read until after the last."""
    for _ in range(10):
        before = state_of(path)
        digest = sha256_file(path)
        if time.time_ns() - max(before[1:3]) < SETTLED_NS:
            time.sleep(SETTLED_NS / 1e9)  # a change within the clock's tick would leave the same time stamp
        if state_of(path) == before:
            return Hashed(digest, before)
    raise ValueError(f"{path}: changes while it is read; run again when nothing writes to it")


def _load(path: Path) -> dict[str, list[int | str]]:
    try:
        loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
        return {key: value for key, value in loaded.items() if len(value) == 5}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}  # a cache may always be thrown away
