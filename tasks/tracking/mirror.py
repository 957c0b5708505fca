"""A pipeline run in MLflow: the only module that imports it, used in the tracker process alone (tasks/tracking/tracker.py).

A parent run per pipeline run, a nested child run per stage that was built. A stage's inputs are datasets and logged
models, its output is a tag ``artifact.digest`` and, for models, a LoggedModel in the registry with a tag
``base_model_id``. A stage from cache gets no new run: the parent names the run that made it, which is found through
``<artifact>/_run/mlflow.json``. MLflow draws no ancestry, so parent and models get a lineage page and a note.

Limits of MLflow 3.17 that shape this: digests of datasets hold 36 characters, parameter values 6000, a batch 1000
metrics or 100 parameters; datasets are inputs only; ``search_runs`` leaves model inputs empty (``get_run`` fills them);
a metric logged with a model makes that model an input of its own run too.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from pathlib import Path
from typing import Any, cast

import mlflow
from mlflow.entities import DatasetInput, InputTag, LoggedModelInput, LoggedModelOutput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from pipeline.pages.lineage.page import page
from pipeline.pages.lineage.records import Record, ancestry, note
from storage.files import write_json
from tasks.tracking.forms import (
    Building,
    as_datasets,
    as_key,
    as_tags,
    flat,
    lineage_record,
    local_server,
    milliseconds,
    numbers,
)
from tasks.tracking.moved import mend

log = logging.getLogger("tracking")
EXPERIMENT = "full-pipeline"
ALIASES = {"pretrain": "base"}
"""Registry alias of a model stage's newest version; the stage's own name where not listed."""
LARGEST_FILE = 20 << 20
TRAINING = "workflowType=machine_learning"
"""The part of MLflow's UI that a link opens: the one for training and not the one for chat applications."""
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


class Mirror:
    """Writes the events of one run to MLflow. Every step looks first whether it was done, so a replay adds nothing."""

    def __init__(self, run_dir: Path, uri: str, live: bool) -> None:
        self.run_dir, self.uri, self.live = run_dir, uri, live
        self.home = run_dir.parent.parent
        self.facts = json.loads((run_dir / "run.json").read_text("utf-8"))
        self.preset = Path(
            str(self.facts.get("preset", "pipeline"))
        ).stem  # a preset can be a file; a model's name has no slashes
        logging.getLogger("alembic").setLevel(logging.ERROR)
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        self._prepare_sqlite()
        mlflow.set_tracking_uri(uri)
        self.client = mlflow.MlflowClient(uri)
        self.state = self._state()
        self.open: dict[str, Building] = {}
        self.records: dict[str, dict[str, Any]] = {}
        self.finished = False
        self.state["experiment_id"] = self._experiment()
        self.parent = self._parent()

    # -- events ------------------------------------------------------------------------------------------------------

    def apply(self, event: dict[str, Any]) -> None:
        """Write one event of events.jsonl."""
        if event["event"] == "stage_started":
            self._started(event)
        elif event["event"] == "stage_finished":
            self._ended(event)
        elif event["event"] == "comparison":
            self._compare(event)
        elif event["event"] == "run_finished":
            status = {"completed": "FINISHED", "cancelled": "KILLED"}.get(event["state"], "FAILED")
            self._finish(status, event["time"], event.get("error"))

    def poll(self) -> None:
        """Pass on what the training curves of running stages have gained."""
        for building in self.open.values():
            building.log_curve(self.client)

    def close(self) -> None:
        """The flow is gone: what is not finished was killed. Afterwards MLflow has all there is."""
        if not self.finished:
            last = max(
                p.stat().st_mtime for p in (self.run_dir / "events.jsonl", self.run_dir / "run.json") if p.exists()
            )
            self._finish("KILLED", last, "the flow process ended without finishing the run")
        self._save(complete=True, error=None)

    def _started(self, event: dict[str, Any]) -> None:
        stage = event["stage"]
        run_id = self._child(stage, event["key"], event["time"])
        section, resources = flat(event.get("section") or {}), flat(event.get("resources") or {}, "resources.")
        self._log(run_id, params=section | resources)
        self._log_inputs(run_id, event.get("inputs") or [])
        self.records[stage] = {
            "stage": stage,
            "key": event["key"],
            "section": event.get("section") or {},
            "inputs": event.get("inputs") or [],
            "state": "running",
            "run_id": run_id,
            "metrics": {},
        }
        self.open[stage] = Building(run_id, Path(event["partial"]) / "_run", self.live)
        self._save()

    def _ended(self, event: dict[str, Any]) -> None:
        stage, path = event["stage"], Path(event["path"])
        entry = self.state["stages"].setdefault(stage, {"run_id": None, "model_id": None})
        record = self.records[stage] = {
            **self.records.get(stage, {}),
            **lineage_record(path),
            **{k: v for k, v in event.items() if k not in ("event", "time")},
        }
        if event["state"] == "cached":
            entry |= self._known(path)
            self._tag(self.parent, {f"stage.{stage}.cache": "hit", f"stage.{stage}.run_id": entry["run_id"] or ""})
            record |= entry
        else:
            run_id = self._child(stage, event["key"], event["time"] - (event.get("seconds") or 0))
            record["run_id"] = run_id
            self._close_building(stage, path)
            self._results(run_id, event, path)
            if event["state"] == "ran" and record.get("kind") in ("model", "release"):
                record["model_id"] = self._model(run_id, record)
            text = note(cast(Record, record), self._lineage(stage), self._link, self._model_link)
            self._tag(run_id, {"mlflow.note.content": text})
            self.client.set_terminated(
                run_id, "FINISHED" if event["state"] == "ran" else "FAILED", end_time=milliseconds(event["time"])
            )
            if event["state"] == "ran" and (path / "_run").is_dir():
                write_json(path / "_run" / "mlflow.json", {**entry, "tracking_uri": self.uri})
        self._save()

    def _compare(self, event: dict[str, Any]) -> None:
        """A sweep's page and table; its children get the number it is sorted by and move below it."""
        for file in event["files"]:
            self.client.log_artifact(self.parent, file)
        for pipeline_run, value in event["runs"].items():
            for found in self.client.search_runs(
                [self.state["experiment_id"]],
                f"tags.`pipeline.run_id` = '{pipeline_run}' and tags.`pipeline.part` = 'run'",
            ):
                self._tag(found.info.run_id, {"mlflow.parentRunId": self.parent})
                if value is not None:
                    self._log(
                        found.info.run_id,
                        metrics=[Metric(as_key(event["metric"]), value, milliseconds(event["time"]), 0)],
                    )

    def _finish(self, status: str, time: float, error: str | None) -> None:
        for stage, building in list(self.open.items()):
            self._close_building(stage, None)
            self._files(building.run_id, building.folder.parent)
            self.client.set_terminated(
                building.run_id, "FAILED" if status == "FAILED" else "KILLED", end_time=milliseconds(time)
            )
        tags = {"pipeline.error": error} if error else {}
        if self.records:
            everything = self._lineage()
            (self.run_dir / "lineage.html").write_text(
                page(everything, f"{self.preset} {self.run_dir.name}", self._page_link), "utf-8"
            )
            for report in sorted(self.run_dir.glob("*.html")):  # lineage, and the funnel that the flow left there
                self.client.log_artifact(self.parent, str(report))
            tags["mlflow.note.content"] = note(None, everything, self._link, self._model_link)
        self._tag(self.parent, tags)
        if status == "FINISHED":
            self._aliases()
        self.client.set_terminated(self.parent, status, end_time=milliseconds(time))
        self.finished = True

    # -- runs --------------------------------------------------------------------------------------------------------

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        if found := self.client.get_experiment_by_name(name):
            return found.experiment_id
        artifacts = (self.home / "mlflow" / "artifacts").as_uri() if self.uri.startswith("sqlite:") else None
        try:
            return self.client.create_experiment(
                name, artifact_location=artifacts, tags={"mlflow.experimentKind": "custom_model_development"}
            )
        except MlflowException:
            if found := self.client.get_experiment_by_name(name):  # another tracker was quicker
                return found.experiment_id
            raise

    def _parent(self) -> str:
        part = self.facts.get("part", "run")
        if known := self.state.get("parent_run_id") or self._find(
            f"tags.`pipeline.run_id` = '{self.run_dir.name}' and tags.`pipeline.part` = '{part}'"
        ):
            self.state["parent_run_id"] = known
            return known
        git, prefect = self.facts.get("git") or {}, self.facts.get("prefect") or {}
        tags = {
            "mlflow.runName": f"{self.preset} {self.run_dir.name}",
            "mlflow.source.name": " ".join(self.facts.get("argv") or []),
            "mlflow.source.type": "JOB",
            "mlflow.source.git.commit": git.get("commit", ""),
            "git.dirty": str(git.get("dirty", "")).lower(),
            "pipeline.run_id": self.run_dir.name,
            "pipeline.part": part,
            "preset": self.preset,
            "overrides": " ".join(self.facts.get("overrides") or []),
            "prefect.flow_run_id": prefect.get("flow_run_id") or "",
            "prefect.url": prefect.get("url") or "",
        }
        tags |= self.facts.get("tags") or {}
        started = milliseconds((self.run_dir / "run.json").stat().st_mtime)
        run_id = self.client.create_run(self.state["experiment_id"], start_time=started, tags=as_tags(tags)).info.run_id
        self.state["parent_run_id"] = run_id
        self._save()
        config = self.facts.get("config") or {}
        self._log(run_id, params=flat(config))
        self.client.log_dict(run_id, config, "config.json")
        self.client.log_dict(run_id, self.facts, "run.json")
        return run_id

    def _child(self, stage: str, key: str, time: float) -> str:
        """The run of a stage built in this pipeline run; made at first use."""
        entry = self.state["stages"].setdefault(stage, {"run_id": None, "model_id": None})
        entry["run_id"] = entry["run_id"] or self._find(
            f"tags.`pipeline.run_id` = '{self.run_dir.name}' and tags.stage = '{stage}'"
        )
        if entry["run_id"] is None:
            tags = {
                "mlflow.runName": stage,
                "mlflow.parentRunId": self.parent,
                "pipeline.run_id": self.run_dir.name,
                "pipeline.part": "stage",
                "stage": stage,
                "artifact.key": key,
                "preset": self.preset,
            }
            entry["run_id"] = self.client.create_run(
                self.state["experiment_id"], start_time=milliseconds(time), tags=as_tags(tags)
            ).info.run_id
            self._save()
        return entry["run_id"]

    def _find(self, query: str) -> str | None:
        """A run that an earlier tracker of this pipeline run made and could not note down."""
        if not self.state.get("resumed"):
            return None
        found = self.client.search_runs([self.state["experiment_id"]], query, max_results=1)
        return found[0].info.run_id if found else None

    def _known(self, path: Path) -> dict[str, Any]:
        """Run and model that made a cached artifact, if they are in this MLflow."""
        try:
            told = json.loads((path / "_run" / "mlflow.json").read_text("utf-8"))
        except (OSError, ValueError):
            told = {}
        told = told if isinstance(told, dict) else {}
        same = told.get("tracking_uri") == self.uri or self._has(told)
        return {
            "run_id": told.get("run_id") if same else None,
            "model_id": told.get("model_id") if same else None,
            **({"version": told["version"]} if same and "version" in told else {}),
        }

    def _has(self, told: dict[str, Any]) -> bool:
        """Whether a run that was noted under another address of this database (its home was moved) is here."""
        local = self.uri.startswith("sqlite:") and str(told.get("tracking_uri", "")).startswith("sqlite:")
        return bool(local and told.get("run_id") and self._optional("run", lambda: self.client.get_run(told["run_id"])))

    # -- what a run holds --------------------------------------------------------------------------------------------

    def _log_inputs(self, run_id: str, inputs: list[dict[str, Any]]) -> None:
        datasets, models = [], []
        for given in inputs:
            made = self.records.get(given.get("stage", ""), {})
            if made.get("model_id") and made.get("key") == given.get("key"):
                models.append(LoggedModelInput(made["model_id"]))
            for dataset in as_datasets(given):
                datasets.append(DatasetInput(dataset, [InputTag("mlflow.data.context", given["name"])]))
        if datasets:
            self.client.log_inputs(run_id, datasets=datasets)
        logged = {m.model_id for m in self.client.get_run(run_id).inputs.model_inputs} if models else set()
        for model in models:
            if model.model_id not in logged:
                self._optional("model input", lambda model=model: self.client.log_inputs(run_id, models=[model]))

    def _results(self, run_id: str, event: dict[str, Any], path: Path) -> None:
        metrics = numbers(event.get("metrics") or {}) | {"seconds": event.get("seconds") or 0.0}
        step, when = int(metrics.get("steps", 0)), milliseconds(event["time"])
        self._log(run_id, metrics=[Metric(k, v, when, step) for k, v in metrics.items()])
        tags = {
            "artifact.digest": event["digest"] or "",
            "artifact.path": str(path),
            "artifact.kind": event.get("kind") or "",
        }
        self._tag(run_id, tags | ({"stage.error": event["error"]} if event.get("error") else {}))
        self._files(run_id, path)

    def _files(self, run_id: str, path: Path) -> None:
        """Log what people read of an artifact, made or left unfinished: numbers, samples, reports and logs."""
        for pattern in SHOWN:
            for file in sorted(path.glob(pattern)):
                if file.is_file() and file.stat().st_size <= LARGEST_FILE:
                    self.client.log_artifact(run_id, str(file), "logs" if file.suffix == ".log" else None)

    def _model(self, run_id: str, record: dict[str, Any]) -> str:
        """Log, link and register the model that a stage made; returns its id."""
        stage, path = record["stage"], Path(record["path"])
        entry = self.state["stages"][stage]
        base = next((r for r in self.records.values() if r.get("key") == record.get("base") and r.get("model_id")), {})
        if entry["model_id"] is None:
            found = self.client.search_logged_models(
                [self.state["experiment_id"]], filter_string=f"source_run_id = '{run_id}'"
            )
            tags = {
                "stage": stage,
                "preset": self.preset,
                "artifact.digest": record["digest"],
                "artifact.key": record["key"],
                "artifact.path": str(path),
                "base_model_id": base.get("model_id") or "",
                "base_model": base.get("stage") or "",
            }
            params = {k: v[:500] for k, v in flat(record.get("section") or {}).items()} | {
                "base_model_id": base.get("model_id") or ""
            }
            model = (
                found[0]
                if found
                else self.client.create_logged_model(
                    self.state["experiment_id"],
                    f"{self.preset}-{ALIASES.get(stage, stage)}",
                    run_id,
                    as_tags(tags),
                    params,
                    "language-model",
                )
            )
            entry["model_id"] = model.model_id
            self._save()
        model_id = record["model_id"] = entry["model_id"]
        metrics = numbers(record.get("metrics") or {})
        step = int(metrics.get("steps", 0))
        data = next(
            (
                d
                for given in record.get("inputs") or []
                if not self.records.get(given["stage"], {}).get("model_id")
                for d in as_datasets(given)
            ),
            None,
        )
        about = {"model_id": model_id, "run_id": run_id} | (
            {"dataset_name": data.name, "dataset_digest": data.digest} if data else {}
        )
        self._log(
            run_id,
            metrics=[Metric(k, v, milliseconds(path.stat().st_mtime), step, **about) for k, v in metrics.items()],
        )
        for run in (run_id, self.parent):
            outputs = self.client.get_run(run).outputs
            if model_id not in [m.model_id for m in (outputs.model_outputs if outputs else [])]:
                self.client.log_outputs(run, [LoggedModelOutput(model_id, step)])
        chain = self._lineage(stage)
        text = note(cast(Record, record), chain, self._link, self._model_link)
        self._model_files(model_id, path, chain, text)
        self.client.set_logged_model_tags(model_id, {"mlflow.note.content": text})
        self.client.finalize_logged_model(model_id, "READY")
        entry["version"] = entry.get("version") or self._version(model_id, run_id, record, base, text)
        return model_id

    def _model_files(self, model_id: str, path: Path, chain: list[Record], text: str) -> None:
        """What explains a model, without its weights: those lie in the artifact store, at the tag ``artifact.path``."""
        made = self.run_dir / "model_files" / path.name
        made.mkdir(parents=True, exist_ok=True)
        (made / "lineage.html").write_text(page(chain, f"{self.preset} {chain[-1]['stage']}", self._page_link), "utf-8")
        (made / "model.md").write_text(f"# {self.preset} {chain[-1]['stage']}\n\n{text}\n", "utf-8")
        for file in sorted(made.iterdir()):
            self.client.log_model_artifact(model_id, str(file))
            file.unlink()
        made.rmdir()
        for name in ("config.json", "generation_config.json", "tokenizer_config.json", "README.md"):
            if (path / name).is_file():
                self.client.log_model_artifact(model_id, str(path / name))

    def _version(self, model_id: str, run_id: str, record: dict[str, Any], base: dict[str, Any], text: str) -> str:
        try:
            self.client.create_registered_model(
                self.preset, tags={"preset": self.preset}, description=f"Models that `pipeline run {self.preset}` made."
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        tags = {
            "stage": record["stage"],
            "artifact.digest": record["digest"],
            "base_model_id": base.get("model_id") or "",
            "base_version": str(self.state["stages"].get(base.get("stage"), {}).get("version") or ""),
        }
        found = self.client.search_model_versions(f"run_id = '{run_id}'") or [
            self.client.create_model_version(
                self.preset, f"models:/{model_id}", run_id, as_tags(tags), description=text, model_id=model_id
            )
        ]
        version = str(found[0].version)
        # A server adds this tag, by which the UI shows a model as registered, itself; the SQLite store does not.
        self.client.set_logged_model_tags(
            model_id, {"mlflow.modelVersions": json.dumps([{"name": self.preset, "version": version}])}
        )
        return version

    def _aliases(self) -> None:
        """Point base, sft, dpo … at this run's models, made or cached, and champion at the last of the chain."""
        versions = [
            (stage, str(entry["version"]))
            for stage in self.records
            if (entry := self.state["stages"].get(stage, {})).get("version")
        ]
        if not versions:
            return
        wanted = {ALIASES.get(stage, stage): version for stage, version in versions}
        wanted["champion"] = next(
            (version for stage, version in reversed(versions) if stage != "export"), versions[-1][1]
        )
        have = self._optional("aliases", lambda: self.client.get_registered_model(self.preset).aliases) or {}
        for alias, version in wanted.items():
            if str(have.get(alias)) != version:
                self._optional(
                    "alias", lambda a=alias, v=version: self.client.set_registered_model_alias(self.preset, a, v)
                )

    # -- lineage and links -------------------------------------------------------------------------------------------

    def _lineage(self, stage: str | None = None) -> list[Record]:
        """The records that a stage descends from, itself last, or without one all of the run."""
        records = cast("list[Record]", list(self.records.values()))
        return ancestry(records, stage) if stage else records

    def _link(self, run_id: str) -> str:
        return f"#/experiments/{self.state['experiment_id']}/runs/{run_id}?{TRAINING}"

    def _model_link(self, model_id: str) -> str:
        return f"#/experiments/{self.state['experiment_id']}/models/{model_id}?{TRAINING}"

    def _page_link(self, run_id: str) -> str | None:
        """A link from a page that is shown in a frame or opened as a file, so with the server's address; None when
        unknown."""
        server = self.uri if self.uri.startswith("http") else local_server(self.home)
        return f"{server.rstrip('/')}/{self._link(run_id)}" if server else None

    # -- small things ------------------------------------------------------------------------------------------------

    def _prepare_sqlite(self) -> None:
        """Write-ahead logging, so that the UI's server and several trackers can use the database side by side."""
        if self.uri.startswith("sqlite:///"):
            file = Path(self.uri.removeprefix("sqlite:///"))
            file.parent.mkdir(parents=True, exist_ok=True)
            if file == self.home / "mlflow" / "mlflow.db" and (moved := mend(self.home)):
                log.warning("%s was copied or moved from %s; MLflow's places were changed to it", self.home, moved[0])
            with sqlite3.connect(file) as database:
                database.execute("PRAGMA journal_mode=WAL")
            database.close()

    def _state(self) -> dict[str, Any]:
        """Ids from an earlier tracker of this run, when it wrote to the same MLflow."""
        try:
            state = json.loads((self.run_dir / "mlflow.json").read_text("utf-8"))
        except FileNotFoundError:
            state = {}
        resumed = bool(state)
        if state.get("tracking_uri") != self.uri:
            state = {}
        return {"tracking_uri": self.uri, "stages": {}, **state, "resumed": resumed, "complete": False}

    def _save(self, **more: Any) -> None:
        self.state |= more
        write_json(self.run_dir / "mlflow.json", {k: v for k, v in self.state.items() if k != "resumed"})

    def _close_building(self, stage: str, path: Path | None) -> None:
        if building := self.open.pop(stage, None):
            building.close(self.client, path)

    def _log(self, run_id: str, params: dict[str, str] | None = None, metrics: list[Metric] | None = None) -> None:
        entries = [Param(as_key(k), v[:6000]) for k, v in (params or {}).items()]
        for i in range(0, len(entries), 100):
            self.client.log_batch(run_id, params=entries[i : i + 100])
        for i in range(0, len(metrics or []), 1000):
            self.client.log_batch(run_id, metrics=metrics[i : i + 1000])

    def _tag(self, run_id: str, tags: dict[str, Any]) -> None:
        if entries := [RunTag(k, v) for k, v in as_tags(tags).items()]:
            self.client.log_batch(run_id, tags=entries)

    def _optional(self, what: str, act: Any) -> Any:
        """Do something that fails when a person deleted its target in MLflow; anything but that is raised."""
        try:
            return act()
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE"):
                raise
            log.warning("%s left out: %s", what, error)
            return None
