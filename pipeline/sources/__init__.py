"""Where documents come from: two built-in sources and whatever the user names.

:func:`resolve` turns names into :class:`Source` objects without reading the data: it lists files and knows the digest
of each, which is what a cache key needs. Reading is the business of :mod:`pipeline.data.ingest` and
:mod:`pipeline.data.records`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

KINDS = ("text", "chat", "preference", "problem", "exam")
BUILT_IN = {
    "python-docs": ("text",),
    "teaching": ("text", "chat", "preference", "exam"),
    "arithmetic": ("text", "chat"),
}
_RECORDS = {"jsonl", "json", "parquet", "csv"}


@dataclass(frozen=True)
class SourceFile:
    """One file of a source. ``location`` is where to read it (path, s3:// or hf://); ``relpath`` is its name inside the
    source; ``state`` is what tells whether it was changed since it was hashed (pipeline/sources/state.py)."""

    relpath: str
    location: str
    bytes: int
    sha256: str
    state: tuple[int, ...] = ()


class Skipped(NamedTuple):
    """Something of a source that is not read: its relative path, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Source:
    """A named set of files. ``digest`` changes when a name or a content does, and with nothing else.

    ``skipped`` lists what lies there and is not read: files of no format we know, links to nothing and the like.
    ``form`` is the exam that it was recognised as (pipeline/evaluation/standard), nothing for other data.
    """

    name: str
    digest: str
    files: tuple[SourceFile, ...]
    skipped: tuple[Skipped, ...] = ()
    form: str = ""


def resolve(names: Sequence[str], kind: str) -> list[Source]:
    """The sources that ``names`` stand for, in that order; ``kind`` ("text", "chat", "preference" or "exam") is what is
    wanted of them.

    A name is ``python-docs``, ``teaching``, ``arithmetic``, a file, directory or glob, ``s3://bucket/key-or-prefix`` or
    ``hf://owner/dataset[/path]``. Raises ValueError that lists all problems, one a line.
    """
    if kind not in KINDS:
        raise ValueError(f"no such kind of source: {kind}; kinds are {', '.join(KINDS)}")
    problems: list[str] = []
    found: list[Source] = []
    for spec, name in zip(names, source_names(names), strict=True):
        try:
            found.append(_resolve_one(spec, name, kind))
        except (ValueError, OSError) as error:
            problems.append(str(error))
    problems += [
        f"{spec}: named {n} times; give it once and set its weight"
        for spec, n in Counter(map(_bare, names)).items()
        if n > 1
    ]
    if not names:
        problems.append(
            "no sources; name at least one file, glob or built-in source (python-docs, teaching, arithmetic)"
        )
    if problems:
        raise ValueError("\n".join(problems))
    return found


def _resolve_one(spec: str, name: str, kind: str) -> Source:
    skipped: list[Skipped] = []
    if spec in BUILT_IN:
        if kind not in BUILT_IN[spec]:
            raise ValueError(f"{spec}: has no {kind} data; it can be used as {', '.join(BUILT_IN[spec])}")
        files = _built_in(spec)
    elif spec.startswith("s3://"):
        from pipeline.sources.s3 import list_s3

        files, skipped = list_s3(spec)
    elif spec.startswith("hf://"):
        from pipeline.sources.hub import list_hub

        files, skipped = list_hub(spec)
    else:
        from pipeline.sources.files import list_files

        try:
            files, skipped = list_files(spec)
        except FileNotFoundError as error:
            raise ValueError(f"{error}{_meant(spec)}") from None
    if kind == "exam" and spec not in BUILT_IN and "://" not in spec:
        from pipeline.sources.labels import with_labels

        files, skipped = with_labels(spec, files, skipped)
        files, skipped = _without_text(files, skipped)
    if kind != "text" and spec not in BUILT_IN:
        _refuse_plain_text(spec, files, kind)
    return Source(name, _digest(name, files), tuple(files), tuple(skipped))


def _without_text(files: list[SourceFile], skipped: list[Skipped]) -> tuple[list[SourceFile], list[Skipped]]:
    """The files of an exam without the notes that its authors put beside them; all, where there is nothing else."""
    from pipeline.sources.kinds import format_of

    data = [file for file in files if format_of(file.location) not in ("text", "html")]
    if not data:
        return files, skipped
    notes = [Skipped(file.relpath, "plain text, no exam data") for file in files if file not in data]
    return data, sorted([*skipped, *notes])


def _built_in(spec: str) -> list[SourceFile]:
    if spec == "python-docs":
        from pipeline.sources.python_docs import list_python_docs

        return list_python_docs()
    if spec == "arithmetic":
        from pipeline.sources.arithmetic import list_arithmetic

        return list_arithmetic()
    from pipeline.sources.teaching import list_teaching

    return list_teaching()


def built_in_name(source: Source) -> str | None:
    """ "teaching" or "arithmetic" for a source that is made by the project and not read; None for files."""
    from pipeline.sources.teaching import FACTS

    if all(f.location.startswith(str(FACTS)) for f in source.files):
        return "teaching"
    return "arithmetic" if [f.location for f in source.files] == ["arithmetic"] else None


def _refuse_plain_text(spec: str, files: list[SourceFile], kind: str) -> None:
    from pipeline.sources.kinds import format_of

    wrong = [f.relpath for f in files if format_of(f.relpath) not in _RECORDS and not f.relpath.endswith(".lst")]
    if wrong:
        raise ValueError(f"{spec}: {wrong[0]} is plain text; {kind} data comes as .jsonl, .json, .parquet or .csv")


def _digest(name: str, files: list[SourceFile]) -> str:
    listing = json.dumps([name, [[f.relpath, f.sha256] for f in files]], ensure_ascii=False)
    return hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()


def _meant(spec: str) -> str:
    close = difflib.get_close_matches(spec, list(BUILT_IN), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f" (built-in sources are {', '.join(BUILT_IN)})"


def source_names(specs: Sequence[str]) -> list[str]:
    """A short name for each source: the last part of its path, or as many parts as tell it from the others."""
    paths = [[spec] if spec in BUILT_IN else _fixed(spec) for spec in specs]
    names: list[str] = []
    for i, parts in enumerate(paths):
        depth = 1
        while depth < len(parts) and any(parts[-depth:] == other[-depth:] for j, other in enumerate(paths) if j != i):
            depth += 1
        names.append("/".join(parts[-depth:]))
    return names


def _bare(spec: str) -> str:
    """One spelling of a name: ``books/`` and ``./books`` are ``books``."""
    remote = spec in BUILT_IN or spec.startswith(("s3://", "hf://"))
    return (spec.rstrip("/") or spec) if remote else os.path.normpath(spec)


def _fixed(spec: str) -> list[str]:
    """The parts of a path up to the first glob pattern; a bare pattern keeps itself."""
    from pipeline.sources.kinds import has_magic

    parts = [part for part in Path(spec.removeprefix("s3://").removeprefix("hf://")).parts if part not in ("/", ".")]
    fixed: list[str] = []
    for part in parts:
        if has_magic(part):
            break
        fixed.append(part)
    return fixed or parts or [spec]
