"""What a run tells of itself: the events of ``events.jsonl`` as types, for those who write and for those who read.

:meth:`tasks.running.run.Run.emit` writes them; the console, the Prefect log and the tracker read. ``…Fields`` is an
event without what ``emit`` adds: its name and its time (seconds since the epoch).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NotRequired, TypeAlias, TypedDict

from storage.champions import Decision
from storage.lineage import Input

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Section: TypeAlias = "dict[str, Json]"
Metrics: TypeAlias = "Mapping[str, Json]"
"""What a stage says of its work: numbers for the most part, texts and lists."""


class StageInput(Input):
    """An input of a stage as lineage tells it, and the ``path`` where it lies on this machine."""

    path: NotRequired[str]


class StartedFields(TypedDict):
    """A stage begins to be built, into the folder ``partial``."""

    stage: str
    key: str
    section: Section
    partial: str
    resources: Section
    inputs: list[StageInput]


class FinishedFields(TypedDict):
    """A stage was built, taken from the cache, or failed (then without digest, and ``path`` is the partial folder)."""

    stage: str
    key: str
    kind: str
    base: str | None
    state: Literal["ran", "cached", "failed"]
    digest: str | None
    path: str
    seconds: float
    built_seconds: NotRequired[float]
    metrics: Section
    error: str | None


class RunFinishedFields(TypedDict):
    """The run is over."""

    state: Literal["completed", "failed", "cancelled"]
    seconds: float
    error: str | None


class ComparisonFields(TypedDict):
    """A sweep compared its children: what it wrote, and the number of every child by its run id."""

    files: list[str]
    metric: str
    runs: dict[str, float | None]


class DecisionFields(TypedDict):
    """What was decided about the run's last model (storage/champions.py)."""

    decision: Decision


class NoteFields(TypedDict):
    """A line for the person who watches."""

    stage: NotRequired[str]
    text: str


class ProgressFields(TypedDict):
    """How far a stage is, for watching only."""

    stage: str
    done: int
    total: int | None
    unit: str
    metrics: NotRequired[Section]


class StageStarted(StartedFields):
    event: Literal["stage_started"]
    time: float


class StageFinished(FinishedFields):
    event: Literal["stage_finished"]
    time: float


class RunFinished(RunFinishedFields):
    event: Literal["run_finished"]
    time: float


class Comparison(ComparisonFields):
    event: Literal["comparison"]
    time: float


class Decided(DecisionFields):
    event: Literal["decision"]
    time: float


class Note(NoteFields):
    event: Literal["note"]
    time: float


class Progress(ProgressFields):
    event: Literal["progress"]
    time: float


Event: TypeAlias = StageStarted | StageFinished | RunFinished | Comparison | Decided | Note | Progress

Told: TypeAlias = dict[str, Any]
"""An event as listeners hear it, any of :data:`Event`."""
Listener: TypeAlias = Callable[[Told], None]
