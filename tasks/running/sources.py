"""What a run is given from outside: text, chats, preferences and evaluation sets, resolved and hashed before anything
runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.config.tree import Config, ConfigError
from pipeline.sources import Source, resolve
from storage.digest import digest_of, manifest, sha256_json
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

    def __bool__(self) -> bool:
        return bool(self.sources)


@dataclass(frozen=True)
class Inputs:
    """Everything the flow reads from outside. An empty ``chats`` or ``preferences`` leaves that training stage out."""

    text: SourceSet
    chats: SourceSet
    preferences: SourceSet
    exams: SourceSet
    against: SourceSet


def given(config: Config) -> Inputs:
    """Resolve everything a config names outside itself, and look whether it is what it is named for. Raises ConfigError
    with all problems at once."""
    from pipeline.running.peek import peek

    problems: list[str] = []

    def gather(field: str, kind: str, find: Callable[[], list[Source]]) -> SourceSet:
        try:
            sources = find()
            if kind in ("chat", "preference", "exam"):
                problems.extend(f"{field}  {line}" for line in peek(sources, kind, config.evaluate.max_bad_records))
            return SourceSet(kind, tuple(sources))
        except (ValueError, OSError) as error:
            problems.extend(f"{field}  {line}" for line in str(error).splitlines())
            return SourceSet(kind)

    def named(section: str, kind: str, required: bool = False) -> SourceSet:
        names = list(getattr(config, section).sources)
        if kind == "exam" and not names and "teaching" in [*config.ingest.sources, *config.sft.sources]:
            names = ["teaching"]
        return (
            gather(f"{section}.sources", kind, lambda: resolve(names, kind)) if names or required else SourceSet(kind)
        )

    inputs = Inputs(
        text=named("ingest", "text", required=True),
        chats=named("sft", "chat"),
        preferences=named("dpo", "preference"),
        exams=named("evaluate", "exam"),
        against=gather("dedup.against", "documents", lambda: [_documents(path) for path in config.dedup.against]),
    )
    if inputs.preferences and not inputs.chats:
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
        for source in getattr(inputs, field.name).sources
        if (why := store.withdrawals.source(source.digest))
    ]


def _documents(path: str) -> Source:
    """An earlier document artifact, by its directory; the store's own are known by their recorded digest."""
    root = Path(path)
    if not any(root.glob("part-*.parquet")):
        raise ValueError(f"{path}: no part-*.parquet there; give the directory of a document artifact")
    recorded = (root / "lineage.json").is_file()
    digest = (
        Store(root.parent.parent).lineage(root.parent.name, root.name)["digest"]
        if recorded
        else digest_of(manifest(root))
    )
    return Source(root.name, digest, ())
