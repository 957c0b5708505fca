"""What a run is given from outside: text, chats, preferences and evaluation sets, resolved and hashed before anything
runs."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.config.tree import STAGES, Config, ConfigError, examine
from pipeline.sources import Source, resolve
from storage.digest import digest_of, manifest, sha256_json
from storage.store import Store
from tasks.running.launch import lacking


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


def asked(
    preset: str, overrides: list[str] | tuple[str, ...] = (), here: bool = False, until: str | None = None
) -> tuple[Config, Inputs]:
    """The config of a preset with overrides, and what it names outside itself. Raises ConfigError with everything that
    is wrong with either: a wrong number does not hide a missing file. ``here``: also when this machine cannot run it up
    to ``until``."""
    config, problems = examine(preset, overrides)
    inputs = None
    if config is not None:
        problems = [*problems, *(undevised(config, until) if here else ())]
        try:
            inputs = given(config)
        except ConfigError as error:
            problems = [*problems, *error.problems]
    if problems or config is None or inputs is None:
        raise ConfigError(problems)
    return config, inputs


def given(config: Config) -> Inputs:
    """Resolve everything a config names outside itself. Raises ConfigError with all problems at once."""
    problems: list[str] = []

    def gather(field: str, kind: str, find: Callable[[], list[Source]]) -> SourceSet:
        try:
            return SourceSet(kind, tuple(find()))
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
    if config.dpo.sources and not config.sft.sources:
        problems.append(
            "dpo.sources  preferences are learnt by a chat model: give sft.sources too, or set dpo.sources=[]"
        )
    if not problems:
        problems = _misnamed(config, inputs)
    if problems:
        raise ConfigError(problems)
    return inputs


def _misnamed(config: Config, inputs: Inputs) -> list[str]:
    """Weights for a source that is not there, but nearly: a slip of the pen, which must not pass for no weight."""
    names = [source.name for source in inputs.text.sources]
    return [
        f"shard.weights  no source is named {stranger}; did you mean {close[0]}? sources are {', '.join(names)}"
        for stranger in sorted(set(config.shard.weights) - set(names))
        if (close := difflib.get_close_matches(stranger, set(names) - set(config.shard.weights), n=1, cutoff=0.75))
    ]


def notes(config: Config, inputs: Inputs) -> list[str]:
    """What a person should know of a config before it runs, although nothing is wrong with it."""
    names = {source.name for source in inputs.text.sources}
    idle = sorted(set(config.shard.weights) - names)
    return (
        [f"shard.weights of {', '.join(idle)} has no effect: this run reads {', '.join(sorted(names))}"] if idle else []
    )


def undevised(config: Config, until: str | None = None) -> list[str]:
    """Why this machine cannot train as ``resources`` ask; empty when it can, or when the run stops before training."""
    if until in STAGES and STAGES.index(until) < STAGES.index("pretrain"):
        return []
    return lacking(config.resources)


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
