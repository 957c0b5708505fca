"""Runs in MLflow: a parent per pipeline run, a nested child per stage that was built, and what they hold.

A stage from cache gets no new run: the parent names the run that made it, which is found through
``<artifact>/_run/mlflow.json``. ``search_runs`` leaves model inputs empty (``get_run`` fills them); datasets are inputs
only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from mlflow.entities import DatasetInput, InputTag, LoggedModelInput, Metric

from storage.files import write_json
from tasks.running.events import StageFinished, StageInput
from tasks.tracking import overview
from tasks.tracking.connection import Connection
from tasks.tracking.forms import as_datasets, as_tags, flat, milliseconds, numbers
from tasks.tracking.records import StageRecord, StageState

LARGEST_FILE = 20 << 20
SHOWN = (
    "stats.json",
    "samples.jsonl",
    "*.html",
    "*.md",
    "*.svg",
    "*.png",
    "config.json",
    "meta.json",
    "_run/result.json",
    "_run/spec.json",
    "_run/metrics.jsonl",
    "_run/logs/*.log",
)
"""What people read of an artifact."""


class Runs:
    """The runs of one pipeline run. Each is looked for before it is made, so a replay adds nothing."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.parent = self._parent()

    def _parent(self) -> str:
        connection, facts = self.connection, self.connection.facts
        part, name = facts.get("part", "run"), connection.run_dir.name
        query = f"tags.`pipeline.run_id` = '{name}' and tags.`pipeline.part` = '{part}'"
        if known := connection.state.get("parent_run_id") or connection.find(query):
            connection.state["parent_run_id"] = known
            return known
        started = milliseconds((connection.run_dir / "run.json").stat().st_mtime)
        run = connection.client.create_run(
            connection.experiment, start_time=started, tags=as_tags(self._parent_tags(part))
        )
        run_id = connection.state["parent_run_id"] = run.info.run_id
        connection.save()
        config = facts.get("config") or {}
        connection.log_params(run_id, flat(config))
        connection.client.log_dict(run_id, config, "config.json")
        connection.client.log_dict(run_id, dict(facts), "run.json")
        return run_id

    def _parent_tags(self, part: str) -> dict[str, str]:
        facts = self.connection.facts
        git, prefect = facts.get("git") or {}, facts.get("prefect") or {}
        return {
            "mlflow.runName": f"{self.connection.preset} {self.connection.run_dir.name}",
            "mlflow.source.name": " ".join(facts.get("argv") or []),
            "mlflow.source.type": "JOB",
            "mlflow.source.git.commit": git.get("commit", ""),
            "git.dirty": str(git.get("dirty", "")).lower(),
            "pipeline.run_id": self.connection.run_dir.name,
            "pipeline.part": part,
            "preset": self.connection.preset,
            "overrides": " ".join(facts.get("overrides") or []),
            "prefect.flow_run_id": prefect.get("flow_run_id") or "",
            "prefect.url": prefect.get("url") or "",
            **(facts.get("tags") or {}),
        }

    def child(self, stage: str, key: str, time: float) -> str:
        """The run of a stage built in this pipeline run; made at first use."""
        connection, entry = self.connection, self.connection.entry(stage)
        query = f"tags.`pipeline.run_id` = '{connection.run_dir.name}' and tags.stage = '{stage}'"
        run_id = entry["run_id"] = entry["run_id"] or connection.find(query)
        if run_id is None:
            tags = {
                "mlflow.runName": stage,
                "mlflow.parentRunId": self.parent,
                "pipeline.run_id": connection.run_dir.name,
                "pipeline.part": "stage",
                "stage": stage,
                "artifact.key": key,
                "preset": connection.preset,
            }
            run = connection.client.create_run(connection.experiment, start_time=milliseconds(time), tags=as_tags(tags))
            run_id = entry["run_id"] = run.info.run_id
            connection.save()
        return run_id

    def maker(self, path: Path) -> StageState:
        """Run and model that made a cached artifact, if they are in this MLflow."""
        unknown: StageState = {"run_id": None, "model_id": None}
        try:
            told: Any = json.loads((path / "_run" / "mlflow.json").read_text("utf-8"))
        except (OSError, ValueError):
            return unknown
        if not isinstance(told, dict):
            return unknown
        signed = cast(dict[str, str | None], told)
        if not self._is_here(signed):
            return unknown
        maker: StageState = {"run_id": signed.get("run_id"), "model_id": signed.get("model_id")}
        if version := signed.get("version"):
            maker["version"] = version
        return maker

    def _is_here(self, signed: dict[str, str | None]) -> bool:
        """Whether a run that was noted, perhaps under another address of this database (its home was moved), is in this
        MLflow."""
        here, there, run_id = self.connection.uri, signed.get("tracking_uri") or "", signed.get("run_id")
        if here == there:
            return True
        local = here.startswith("sqlite:") and there.startswith("sqlite:")
        client = self.connection.client
        return bool(local and run_id and self.connection.optional("run", lambda: client.get_run(run_id)))

    def sign(self, path: Path, entry: StageState) -> None:
        """Note beside an artifact which run and model it is, for :meth:`maker`."""
        if (path / "_run").is_dir():
            here = {"tracking_uri": self.connection.uri, "experiment_id": self.connection.experiment}
            write_json(path / "_run" / "mlflow.json", {**entry, **here})

    def inputs(self, run_id: str, inputs: list[StageInput], records: dict[str, StageRecord]) -> None:
        """Log a stage's inputs: all as datasets, models that MLflow has as models too."""
        client = self.connection.client
        datasets = [
            DatasetInput(dataset, [InputTag("mlflow.data.context", item["name"])])
            for item in inputs
            for dataset in as_datasets(item)
        ]
        if datasets:
            client.log_inputs(run_id, datasets=datasets)
        models = [model for item in inputs if (model := self._model_of(item, records))]
        known = client.get_run(run_id).inputs if models else None
        logged = {m.model_id for m in known.model_inputs} if known else set[str]()
        for model in models:
            if model not in logged:
                entry = LoggedModelInput(model)
                self.connection.optional("model input", lambda entry=entry: client.log_inputs(run_id, models=[entry]))

    def _model_of(self, item: StageInput, records: dict[str, StageRecord]) -> str | None:
        """The model in MLflow that an input is, made by this run or by an earlier one."""
        record = records.get(item["stage"])
        if record and record["key"] == item["key"]:
            return record.get("model_id")
        return self.maker(Path(path))["model_id"] if (path := item.get("path")) else None

    def results(self, run_id: str, event: StageFinished) -> None:
        """Log what a stage came to: numbers, what identifies its artifact, and its files."""
        metrics = numbers(event["metrics"]) | {"seconds": event["seconds"]}
        step, when = int(metrics.get("steps", 0)), milliseconds(event["time"])
        self.connection.log_metrics(run_id, [Metric(k, v, when, step) for k, v in metrics.items()])
        tags = {
            "artifact.digest": event["digest"] or "",
            "artifact.path": event["path"],
            "artifact.kind": event["kind"],
            "stage.error": event["error"] or "",
        }
        self.connection.tag(run_id, tags)
        self.files(run_id, Path(event["path"]))

    def overview(self, records: list[StageRecord], when: int) -> None:
        """Log on the parent what the whole run came to and the data that it read."""
        values = overview.metrics(records)
        self.connection.log_metrics(self.parent, [Metric(k, v, when, 0) for k, v in values.items()])
        self.connection.tag(self.parent, overview.tags(records))
        if data := overview.data(records):
            self.connection.client.log_inputs(self.parent, datasets=data)

    def files(self, run_id: str, path: Path) -> None:
        """Log what people read of an artifact, made or left unfinished: numbers, samples, reports and logs."""
        for pattern in SHOWN:
            for file in sorted(path.glob(pattern)):
                if file.is_file() and file.stat().st_size <= LARGEST_FILE:
                    self.connection.log_file(run_id, file, "logs" if file.suffix == ".log" else None)
