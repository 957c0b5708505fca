"""Lists of labels beside an exam's records (PIQA's ``valid-labels.lst`` beside ``valid.jsonl``): files that are read as
exams only."""

from __future__ import annotations

from pathlib import Path

from pipeline.sources import Skipped, SourceFile
from pipeline.sources.files import hash_files

ENDING = "-labels.lst"


def with_labels(spec: str, files: list[SourceFile], skipped: list[Skipped]) -> tuple[list[SourceFile], list[Skipped]]:
    """The files of an exam with the label lists among what was skipped, or beside a single file."""
    base = Path(spec).expanduser()
    found = [base / s.path for s in skipped if s.path.endswith(ENDING) and (base / s.path).is_file()]
    if base.is_file():
        found += [path for path in [base.with_name(base.name.partition(".")[0] + ENDING)] if path.is_file()]
    if not found:
        return files, skipped
    hashed = hash_files(found)
    root = base.parent if base.is_file() else base
    lists = [
        SourceFile(p.relative_to(root).as_posix(), str(p.resolve()), hashed[p].state[0], *hashed[p]) for p in found
    ]
    names = {file.relpath for file in lists}
    return sorted([*files, *lists], key=lambda f: f.relpath), [s for s in skipped if s.path not in names]
