"""Whether a directory is a whole artifact: its records its own, its files those of the manifest, their content hashed.

Content is hashed once on a machine. Then a memo in ``_run/`` holds what the files looked like (size, times of change,
inode), and a hit costs one look at each file. A memo that came along with a copied store fits no file, since a copy
has other inodes and times, so copies are hashed once as well. A writer that keeps a file's size
cannot keep its time of last change (ctime), so other bytes are never taken for those that were hashed.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from storage.digest import VOLATILE, Manifest, digest_of, listing, parse_manifest, sha256_file, sha256_json
from storage.errors import Refused
from storage.lineage import LineageRecord, parse

MEMO = f"{VOLATILE}/.hashed"
"""The memo of a machine that has hashed an artifact; hidden, so it is never shared."""


class Damaged(Refused):
    """Why a directory is not a whole artifact."""


def read_manifest(path: Path) -> Manifest:
    """The manifest of the artifact at ``path``. Raises Damaged when it cannot be read or names what it must not."""
    try:
        return parse_manifest((path / "manifest.json").read_bytes())
    except (OSError, ValueError) as error:
        raise Damaged(f"unreadable record: {error}") from None


def check(path: Path, stage: str, key: str) -> tuple[LineageRecord, list[str]]:
    """The record of the whole artifact ``stage/key`` at ``path``, and files there that are not its own.

    Raises Damaged with the first thing that is wrong.
    """
    listed, record = _records(path, stage, key)
    try:
        there = listing(path)
    except OSError as error:
        raise Damaged(f"unreadable directory: {error}") from None
    _sizes(listed, there)
    state = _state(record["digest"], {rel: there[rel] for rel in listed})
    if not _remembered(path, state):
        wrong = _hash_all(path, listed)
        if wrong:
            raise Damaged(wrong[0])
        _note(path, state)
    return record, sorted(set(there) - set(listed))


def remember(path: Path, seen: Mapping[str, os.stat_result] | None = None) -> None:
    """Note the state of an artifact whose files were hashed just now, when it was published or brought here. ``seen``:
    their state before that, so that a file which somebody wrote meanwhile is hashed at the next hit."""
    with contextlib.suppress(Damaged, OSError, KeyError):
        listed = read_manifest(path)
        there = seen or listing(path)
        _note(path, _state(digest_of(listed), {rel: there[rel] for rel in listed}))


def verify(path: Path, stage: str, key: str) -> list[str]:
    """Everything that is wrong with an artifact, after hashing all its files; empty when it is sound."""
    try:
        listed, _ = _records(path, stage, key)
        there = listing(path)
        _sizes(listed, there)
    except (Damaged, OSError) as error:
        return [str(error)]
    return _hash_all(path, listed) + [f"{rel}: not in the manifest" for rel in sorted(set(there) - set(listed))]


def _records(path: Path, stage: str, key: str) -> tuple[Manifest, LineageRecord]:
    if path.is_symlink() or (path / VOLATILE).is_symlink():
        raise Damaged(f"it, or its {VOLATILE}, is a link")
    listed = read_manifest(path)
    try:
        record = parse((path / "lineage.json").read_bytes(), stage, key)
    except (OSError, ValueError) as error:
        raise Damaged(f"unreadable record: {error}") from None
    if record["digest"] != digest_of(listed):
        raise Damaged("its digest is not that of its manifest")
    return listed, record


def _sizes(listed: Manifest, there: dict[str, os.stat_result]) -> None:
    for rel, info in listed.items():
        if rel not in there:
            raise Damaged(f"{rel} is missing")
        if not stat.S_ISREG(there[rel].st_mode):
            raise Damaged(f"{rel} is not a plain file")
        if there[rel].st_size != info["bytes"]:
            raise Damaged(f"{rel} has {there[rel].st_size} bytes, the manifest says {info['bytes']}")


def _hash_all(path: Path, listed: Manifest) -> list[str]:
    wrong: list[str] = []
    for rel, info in listed.items():
        try:
            same = sha256_file(path / rel) == info["sha256"]
        except OSError as error:
            wrong.append(f"{rel} cannot be read: {error.strerror}")
            continue
        if not same:
            wrong.append(f"{rel}: content differs from the manifest")
    return wrong


def _state(digest: str, there: dict[str, os.stat_result]) -> str:
    """One line for what the files look like: another one as soon as any of them was written, replaced or copied."""
    return sha256_json([digest, [[rel, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for rel, s in there.items()]])


def _remembered(path: Path, state: str) -> bool:
    try:
        return (path / MEMO).read_text() == state
    except OSError:
        return False


def _note(path: Path, state: str) -> None:
    with contextlib.suppress(OSError):  # a store that cannot be written is hashed every time
        (path / VOLATILE).mkdir(exist_ok=True)
        (path / MEMO).unlink(missing_ok=True)  # it may be a hard link to another artifact's
        (path / MEMO).write_text(state)  # half of it fits no file, and costs another hash
