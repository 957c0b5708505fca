"""The stages of a DAG in their order, read off by calling it: nobody has to keep a list beside the straight code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.running.inputs import Bound, Descent, Made
from tasks.running.run import entered
from tasks.running.stage import Stage


@dataclass(frozen=True)
class Outlined:
    """A stage of a DAG, and the section of the config that it reads."""

    stage: Stage
    section: str

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def kind(self) -> str:
        return self.stage.kind


@dataclass(frozen=True)
class _Nothing:
    """Stands for whatever a stage would make or be given; true, so that no branch is left out."""

    stage: str = ""
    key: str = ""
    digest: str = ""
    path: Path | None = None

    def result(self) -> _Nothing:
        return self

    def __getattr__(self, name: str) -> _Nothing:
        return _Nothing()


class _Section(str):
    """A section as its own name, whose options are all set, so that no stage is left out."""

    def __getattr__(self, name: str) -> bool:
        return True


class _Names:
    """A config whose sections are their own names."""

    def __getattr__(self, name: str) -> str:
        return _Section(name)


class _OutlineRun:
    """A run in which a stage only says that it was called."""

    def __init__(self) -> None:
        self.found: list[Outlined] = []

    def call(self, stage: Stage, cfg: Any, inputs: Bound) -> _Nothing:
        self.found.append(Outlined(stage, cfg))
        return _Nothing()

    submit = call

    def descent(self, made: Made) -> Descent:
        return Descent("")

    def seeds(self, scores: Made) -> _Nothing:
        return _Nothing()

    def verdict(self, section: Any, model: Made, scores: Made) -> _Nothing:
        return _Nothing()


def outline(dag: Callable[[Any, Any], Any]) -> tuple[Outlined, ...]:
    """Every stage that ``dag(config, inputs)`` can call, in order, with all optional inputs given."""
    run = _OutlineRun()
    with entered(run):
        dag(_Names(), _Nothing())
    return tuple(run.found)
