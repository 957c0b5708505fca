"""What a run is given from outside: text, chats, preferences and evaluation sets, resolved and hashed before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.config import Config, ConfigError
from pipeline.sources import Source, resolve
from storage.digest import sha256_json


@dataclass(frozen=True)
class SourceSet:
    """Sources of one kind as a stage's input: the digest covers names and contents, not where the files lie."""

    kind: str
    sources: tuple[Source, ...]

    @property
    def digest(self) -> str:
        return sha256_json([[s.name, s.digest] for s in self.sources])

    def describe(self) -> list[dict[str, Any]]:
        """Name, digest, files and bytes of each source, for lineage."""
        return [{"name": s.name, "digest": s.digest, "files": len(s.files), "bytes": sum(f.bytes for f in s.files)} for s in self.sources]


@dataclass(frozen=True)
class Inputs:
    """Everything the flow reads from outside."""

    text: SourceSet
    chats: SourceSet
    preferences: SourceSet
    exams: SourceSet


def given(config: Config) -> Inputs:
    """Resolve every source of a config. Raises ConfigError with all problems at once."""
    problems: list[str] = []

    def find(field: str, kind: str, names: list[str]) -> SourceSet:
        try:
            return SourceSet(kind, tuple(resolve(list(names), kind)))
        except ValueError as error:
            problems.extend(f"{field}  {line}" for line in str(error).splitlines())
            return SourceSet(kind, ())

    inputs = Inputs(
        text=find("ingest.sources", "text", config.ingest.sources),
        chats=find("sft.sources", "chat", config.sft.sources),
        preferences=find("dpo.sources", "preference", config.dpo.sources),
        exams=find("evaluate.sources", "exam", config.evaluate.sources),
    )
    if problems:
        raise ConfigError(problems)
    return inputs
