"""What a stage is handed besides a single artifact: several artifacts as one input, and what is on record about one.

Every input has a ``digest`` over what the stage reads of it; None while it is only planned and not known yet.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from storage.digest import sha256_json
from storage.lineage import LineageRecord, Place, SourceEntry, ancestry
from storage.store import Artifact

Files = Callable[[str, str], Mapping[str, str]]
"""``files(stage, key)``: path and sha256 of every file of a published artifact."""


class Made(Protocol):
    """An artifact, or one that a plan expects."""

    @property
    def stage(self) -> str: ...

    @property
    def key(self) -> str: ...

    @property
    def digest(self) -> str | None: ...

    @property
    def path(self) -> Path | None: ...


Bound: TypeAlias = dict[str, Any]
"""A stage's inputs by their names in its function: artifacts (of a plan: Planned), SourceSet, Several, Descent,
Verdict. All have a ``digest``."""


Known: TypeAlias = dict[str, Any]
"""What lineage says of a stage or a source, as the model card tells it."""


@dataclass(frozen=True)
class Several:
    """Artifacts that are one input together, in their order."""

    items: tuple[Any, ...]

    @property
    def digest(self) -> str | None:
        digests = [item.digest for item in self.items]
        return None if None in digests else sha256_json(digests)


@dataclass(frozen=True)
class Folder:
    """A model folder or a text file that lies outside any store, known by the content that decides what is made of
    it."""

    name: str
    digest: str
    path: Path

    def describe(self) -> list[SourceEntry]:
        """It as lineage tells of a source."""
        return [{"name": self.name, "digest": self.digest}]


def several(*items: Made | None) -> Several:
    """Those of ``items`` that there are: a stage that was left out is None."""
    return Several(tuple(item for item in items if item is not None))


@dataclass(frozen=True)
class Descent:
    """What the lineage records say an artifact was made from: ``stages`` {stage: {digest, kind, section}} from the last
    to the first, ``sources`` {name: {digest, files, bytes, stage}}. It counts by these facts."""

    digest: str | None
    stages: dict[str, Known] = field(default_factory=dict[str, Known])
    sources: dict[str, Known] = field(default_factory=dict[str, Known])


def descent_of(record_of: Callable[[Place], LineageRecord | None], made: Made) -> Descent:
    """The descent of ``made`` by the lineage records that ``record_of((stage, key))`` gives; not known while its digest
    is not."""
    if made.digest is None:
        return Descent(None)
    stages: dict[str, Known] = {}
    sources: dict[str, Known] = {}
    for record in reversed(ancestry(record_of, (made.stage, made.key))):
        section = record.get("identity", {}).get("section", {})
        stages.setdefault(
            record["stage"], {"digest": record["digest"], "kind": record.get("kind", ""), "section": section}
        )
        for entry in record["inputs"]:
            for s in entry.get("sources", []):
                facts = {"digest": s["digest"], "files": s.get("files", 0), "bytes": s.get("bytes", 0)}
                sources[s["name"]] = facts | {"stage": record["stage"]}
    return Descent(sha256_json([list(stages), stages, sources]), stages, sources)


def digest_of_input(value: Any, patterns: tuple[str, ...], files: Files) -> str:
    """The digest of what a stage reads of an input: the files that ``patterns`` match (all, without any).

    Raises ValueError when an artifact holds no such file: the declaration is wrong.
    """
    if isinstance(value, Several):
        return sha256_json([digest_of_input(item, patterns, files) for item in value.items])
    if not patterns or not hasattr(value, "key"):
        return value.digest
    listed = files(value.stage, value.key)
    read = sorted([p, sha] for p, sha in listed.items() if any(fnmatch.fnmatchcase(p, known) for known in patterns))
    if not read:
        raise ValueError(f"{value.stage}/{value.key[:12]} holds nothing like {', '.join(patterns)}")
    return sha256_json(read)


def artifacts_of(inputs: Mapping[str, Any]) -> list[Artifact]:
    """Every artifact among a stage's inputs, those of :class:`Several` too."""
    grouped = [value.items if isinstance(value, Several) else (value,) for value in inputs.values()]
    return [item for items in grouped for item in items if isinstance(item, Artifact)]
