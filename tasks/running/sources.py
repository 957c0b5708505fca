"""What a run is given from outside: text, chats, preferences and evaluation sets, resolved and hashed before anything
runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.config.tree import Config, ConfigError
from pipeline.sources import Source, resolve
from pipeline.sources.state import unchanged as files_unchanged
from storage.digest import digest_of, sha256_file, sha256_json
from storage.lineage import PLAIN, SourceListing
from storage.store import Store


@dataclass(frozen=True)
class SourceSet:
    """Sources of one kind as a stage's input: the digest covers names and contents, not where the files lie."""

    kind: str
    sources: tuple[Source, ...] = ()

    @property
    def digest(self) -> str:
        return sha256_json([[s.name, s.digest] for s in self.sources])

    def describe(self) -> list[dict[str, Any]]:
        """Name, digest, files and bytes of each source, for lineage."""
        return [
            {"name": s.name, "digest": s.digest, "files": len(s.files), "bytes": sum(f.bytes for f in s.files)}
            for s in self.sources
        ]

    def listings(self) -> list[SourceListing]:
        """Path, size and sha256 of every file of each source."""
        return [
            {
                "name": s.name,
                "digest": s.digest,
                "files": [{"path": f.relpath, "bytes": f.bytes, "sha256": f.sha256} for f in s.files],
            }
            for s in self.sources
        ]


def unchanged(*given: SourceSet | None) -> AbstractContextManager[None]:
    """Around reading the files of these sources whole: raises SourceChanged when one is not what was hashed."""
    return files_unchanged(file for sources in given if sources for source in sources.sources for file in source.files)


@dataclass(frozen=True)
class Inputs:
    """Everything the flow reads from outside; what a config does not ask for is None, and its stages are left out."""

    text: SourceSet | None
    chats: SourceSet | None
    preferences: SourceSet | None
    exams: SourceSet | None
    against: SourceSet | None


def given(config: Config) -> Inputs:
    """Resolve everything a config names outside itself. Raises ConfigError with all problems at once."""
    problems: list[str] = []

    def gather(field: str, kind: str, find: Callable[[], list[Source]]) -> SourceSet | None:
        try:
            return SourceSet(kind, tuple(find()))
        except (ValueError, OSError) as error:
            problems.extend(f"{field}  {line}" for line in str(error).splitlines())
            return None

    def named(section: str, kind: str, required: bool = False) -> SourceSet | None:
        names = list(getattr(config, section).sources)
        if kind == "exam" and not names and "teaching" in [*config.ingest.sources, *config.sft.sources]:
            names = ["teaching"]
        return gather(f"{section}.sources", kind, lambda: resolve(names, kind)) if names or required else None

    against = config.dedup.against
    inputs = Inputs(
        text=named("ingest", "text", required=True),
        chats=named("sft", "chat"),
        preferences=named("dpo", "preference"),
        exams=named("evaluate", "exam"),
        against=gather("dedup.against", "documents", lambda: [_documents(path) for path in against])
        if against
        else None,
    )
    if config.dpo.sources and not config.sft.sources:
        problems.append(
            "dpo.sources  preferences are learnt by a chat model: give sft.sources too, or set dpo.sources=[]"
        )
    if problems:
        raise ConfigError(problems)
    return inputs


def withdrawn(inputs: Inputs, store: Store) -> list[str]:
    """A line for every source that must not be used any more (``pipeline invalidate``); empty when all may."""
    return [
        f"{field.name}  {source.name} was withdrawn: {why}; leave it out, or `pipeline invalidate {source.name} --undo`"
        for field in fields(inputs)
        for source in (getattr(inputs, field.name) or SourceSet(field.name)).sources
        if (why := store.withdrawals.source(source.digest, (file.sha256 for file in source.files)))
    ]


def _documents(path: str) -> Source:
    """An earlier document artifact, by its directory; one that a store holds whole is known by its recorded digest."""
    root = Path(path)
    if not any(root.glob("part-*.parquet")):
        raise ValueError(f"{path}: no part-*.parquet there; give the directory of a document artifact")
    known = None
    if (root / "lineage.json").is_file() and PLAIN.fullmatch(root.parent.name) and PLAIN.fullmatch(root.name):
        known = Store(root.parent.parent).examine(root.parent.name, root.name).artifact
    return Source(root.name, known.digest if known else _parts_digest(root), ())


def _parts_digest(root: Path) -> str:
    """The digest of a document directory that no store vouches for: of the parts, which are what is read."""
    parts = sorted(root.glob("part-*.parquet"))
    return digest_of({p.name: {"bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in parts})
