"""One run's line to MLflow: the client, the ids that were noted down, and logging within MLflow's limits.

Limits of MLflow 3.17 that shape this: digests of datasets hold 36 characters, parameter values 6000, a batch 1000
metrics or 100 parameters.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from storage.files import write_json
from tasks.tracking import view
from tasks.tracking.forms import as_key, as_tags, local_server
from tasks.tracking.moved import mend
from tasks.tracking.records import RunFacts, StageState, State, without_login

log = logging.getLogger("tracking")
EXPERIMENT = "full-pipeline"
GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE")
T = TypeVar("T")
TRAINING = "workflowType=machine_learning"
"""The part of MLflow's UI that a link opens: the one for training and not the one for chat applications."""


class Connection:
    """A run's directory on one side, an MLflow server or database on the other."""

    def __init__(self, run_dir: Path, uri: str) -> None:
        self.run_dir, self.uri, self.home = run_dir, without_login(uri), run_dir.parent.parent
        self.facts: RunFacts = json.loads((run_dir / "run.json").read_text("utf-8"))
        # a preset can be a file; a model's name has no slashes
        self.preset = Path(self.facts.get("preset", "pipeline")).stem
        for chatty in ("alembic", "mlflow"):
            logging.getLogger(chatty).setLevel(logging.ERROR)
        _prepare_sqlite(uri, self.home)
        mlflow.set_tracking_uri(uri)
        self.client = mlflow.MlflowClient(uri)
        self.state, self.resumed = _earlier_state(run_dir, self.uri)
        self.stages = self.state.setdefault("stages", {})
        self.experiment = self.state["experiment_id"] = self._experiment()

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        if known := self.client.get_experiment_by_name(name):
            if known.tags.get(view.TAG) != view.state():
                self.client.set_experiment_tag(known.experiment_id, view.TAG, view.state())
            return known.experiment_id
        artifacts = (self.home / "mlflow" / "artifacts").as_uri() if self.uri.startswith("sqlite:") else None
        tags = {"mlflow.experimentKind": "custom_model_development", view.TAG: view.state()}
        try:
            return self.client.create_experiment(name, artifact_location=artifacts, tags=tags)
        except MlflowException:
            if known := self.client.get_experiment_by_name(name):  # another tracker was quicker
                return known.experiment_id
            raise

    # -- what is noted down ------------------------------------------------------------------------------------------

    def entry(self, stage: str) -> StageState:
        """What MLflow holds of a stage, to be filled in."""
        return self.stages.setdefault(stage, {"run_id": None, "model_id": None})

    def save(self) -> None:
        """Write ``mlflow.json`` of the run."""
        write_json(self.run_dir / "mlflow.json", self.state)

    def find(self, query: str) -> str | None:
        """A run that an earlier tracker of this pipeline run made and could not note down."""
        if not self.resumed:
            return None
        runs = self.client.search_runs([self.experiment], query, max_results=1)
        return runs[0].info.run_id if runs else None

    # -- logging -----------------------------------------------------------------------------------------------------

    def log_params(self, run_id: str, params: dict[str, str]) -> None:
        """Log parameters, cut to what MLflow holds."""
        entries = [Param(as_key(k), v[:6000]) for k, v in params.items()]
        for i in range(0, len(entries), 100):
            self.client.log_batch(run_id, params=entries[i : i + 100])

    def log_metrics(self, run_id: str, metrics: list[Metric]) -> None:
        """Log metrics in batches."""
        for i in range(0, len(metrics), 1000):
            self.client.log_batch(run_id, metrics=metrics[i : i + 1000])

    def tag(self, run_id: str, tags: dict[str, str]) -> None:
        """Set tags; empty ones are left out."""
        if entries := [RunTag(k, v) for k, v in as_tags(tags).items()]:
            self.client.log_batch(run_id, tags=entries)

    def log_file(self, run_id: str, file: str | Path, folder: str | None = None) -> None:
        """Log a file as an artifact of a run, below ``folder``."""
        self.client.log_artifact(run_id, str(file), folder)  # pyright: ignore[reportUnknownMemberType]

    def optional(self, what: str, act: Callable[[], T]) -> T | None:
        """Do something that fails when a person deleted its target in MLflow; anything but that is raised."""
        try:
            return act()
        except MlflowException as error:
            if error.error_code not in GONE:
                raise
            log.warning("%s left out: %s", what, error)
            return None

    # -- links -------------------------------------------------------------------------------------------------------

    def run_link(self, run_id: str) -> str:
        """A link to a run inside the UI."""
        return f"#/experiments/{self.experiment}/runs/{run_id}?{TRAINING}"

    def model_link(self, model_id: str) -> str:
        """A link to a logged model inside the UI."""
        return f"#/experiments/{self.experiment}/models/{model_id}?{TRAINING}"

    def page_link(self, run_id: str) -> str | None:
        """A link from a page that is shown in a frame or opened as a file, so with the server's address; None when
        unknown."""
        server = self.uri if self.uri.startswith("http") else local_server(self.home)
        return f"{server.rstrip('/')}/{self.run_link(run_id)}" if server else None


def _prepare_sqlite(uri: str, home: Path) -> None:
    """Write-ahead logging, so that the UI's server and several trackers can use the database side by side."""
    if uri.startswith("sqlite:///"):
        file = Path(uri.removeprefix("sqlite:///"))
        file.parent.mkdir(parents=True, exist_ok=True)
        with sqlite3.connect(file) as database:
            database.execute("PRAGMA journal_mode=WAL")
        database.close()
        if file == home / "mlflow" / "mlflow.db" and (moved := mend(home)):
            log.warning("%s was copied or moved from %s; MLflow's places were changed to it", home, moved[0])


def _earlier_state(run_dir: Path, uri: str) -> tuple[State, bool]:
    """Ids from an earlier tracker of this run, when it wrote to the same MLflow; and whether there was one at all."""
    try:
        state: State = json.loads((run_dir / "mlflow.json").read_text("utf-8"))
    except FileNotFoundError:
        state = {}
    resumed = bool(state)
    if state.get("tracking_uri") != uri:
        state = {}
    return {**state, "tracking_uri": uri, "complete": False}, resumed
