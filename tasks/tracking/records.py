"""What the tracker knows while it follows a run: facts of the run, records of its stages, and what MLflow holds."""

from __future__ import annotations

import re
from typing import Literal, NotRequired, TypedDict

from tasks.running.events import Section, StageInput


class GitState(TypedDict, total=False):
    commit: str
    dirty: bool


class PrefectIds(TypedDict, total=False):
    flow_run_id: str | None
    flow_run_name: str | None
    url: str | None


class RunFacts(TypedDict, total=False):
    """``run.json``: what was asked for, by whom, with which code. ``part`` is "run" or "sweep"."""

    preset: str
    part: str
    overrides: list[str]
    config: Section
    argv: list[str]
    git: GitState
    prefect: PrefectIds
    tags: dict[str, str]


class Lineage(TypedDict):
    """What an artifact's lineage.json says, as far as the tracker shows it."""

    section: Section
    inputs: list[StageInput]
    metrics: Section
    built_seconds: float | None


class StageRecord(TypedDict):
    """A stage of the run: what its events and its artifact's lineage say, and its run and model in MLflow. The second
    half is known when it has ended; ``path`` is the partial folder until then."""

    stage: str
    key: str
    state: Literal["running", "ran", "cached", "failed"]
    section: Section
    inputs: list[StageInput]
    metrics: Section
    path: str
    run_id: str | None
    kind: NotRequired[str]
    base: NotRequired[str | None]
    digest: NotRequired[str | None]
    seconds: NotRequired[float]
    built_seconds: NotRequired[float | None]
    error: NotRequired[str | None]
    model_id: NotRequired[str | None]
    version: NotRequired[str]


class StageState(TypedDict):
    """What MLflow holds of a stage: ids of its run and model, and the model's version in the registry."""

    run_id: str | None
    model_id: str | None
    version: NotRequired[str]


class State(TypedDict, total=False):
    """``mlflow.json`` in the run's directory: what MLflow holds of the run, and whether that is all of it."""

    tracking_uri: str
    experiment_id: str
    parent_run_id: str
    stages: dict[str, StageState]
    complete: bool
    error: str | None


def without_login(uri: str) -> str:
    """An address as it may be shown and stored: no user name and no password in it."""
    return re.sub(r"(?<=://)[^/@]*@", "", uri)
