"""Models in MLflow: a LoggedModel per model artifact with its base, a version in the registry, and the aliases.

A metric logged with a model makes that model an input of its own run too (MLflow 3.17).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from mlflow.entities import LoggedModelOutput, Metric
from mlflow.exceptions import MlflowException

from pipeline.evaluation.names import model_name
from tasks.tracking import lineage
from tasks.tracking.connection import Connection
from tasks.tracking.forms import as_datasets, as_tags, flat, milliseconds, numbers
from tasks.tracking.records import StageRecord

EXPLAINING = ("config.json", "generation_config.json", "tokenizer_config.json", "README.md")
"""Files of a model artifact that say what it is."""


class Models:
    """The models of one pipeline run; ``parent`` is its run, ``records`` are its stages so far."""

    def __init__(self, connection: Connection, parent: str, records: dict[str, StageRecord]) -> None:
        self.connection, self.parent, self.records = connection, parent, records

    def log(self, run_id: str, record: StageRecord) -> str:
        """Log, link and register the model that a stage made; returns its id."""
        entry = self.connection.entry(record["stage"])
        base = self._base(record)
        if entry["model_id"] is None:
            entry["model_id"] = self._create(run_id, record, base)
            self.connection.save()
        model_id = record["model_id"] = entry["model_id"]
        self._metrics(run_id, model_id, record)
        chain = lineage.ancestry(self.records.values(), record["stage"])
        text = lineage.note(record, chain, self.connection.run_link, self.connection.model_link)
        self._files(model_id, Path(record["path"]), chain, text)
        self.connection.client.set_logged_model_tags(model_id, {"mlflow.note.content": text})
        self.connection.client.finalize_logged_model(model_id, "READY")
        entry["version"] = entry.get("version") or self._version(model_id, run_id, record, base, text)
        return model_id

    def _base(self, record: StageRecord) -> StageRecord | None:
        """The record of the model that this one descends from; None when it is the first."""
        key = record.get("base")
        return next((r for r in self.records.values() if r["key"] == key and r.get("model_id")), None)

    def _create(self, run_id: str, record: StageRecord, base: StageRecord | None) -> str:
        client, experiment = self.connection.client, self.connection.experiment
        earlier = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
        if earlier:
            return earlier[0].model_id
        base_id = (base and base.get("model_id")) or ""
        tags = {
            "stage": record["stage"],
            "preset": self.connection.preset,
            "artifact.digest": record.get("digest") or "",
            "artifact.key": record["key"],
            "artifact.path": record["path"],
            "base_model_id": base_id,
            "base_model": base["stage"] if base else "",
        }
        params = {k: v[:500] for k, v in flat(record["section"]).items()} | {"base_model_id": base_id}
        name = f"{self.connection.preset}-{model_name(record['stage'])}"
        return client.create_logged_model(experiment, name, run_id, as_tags(tags), params, "language-model").model_id

    def _metrics(self, run_id: str, model_id: str, record: StageRecord) -> None:
        """The stage's numbers as the model's, on the first of the data it was trained on; and the model as an output of
        the stage's run and of the whole run."""
        metrics = numbers(record["metrics"])
        step, when = int(metrics.get("steps", 0)), milliseconds(Path(record["path"]).stat().st_mtime)
        about: dict[str, Any] = {"model_id": model_id, "run_id": run_id}
        models = {stage for stage, made in self.records.items() if made.get("model_id")}
        data = [dataset for item in record["inputs"] if item["stage"] not in models for dataset in as_datasets(item)]
        if data:
            about |= {"dataset_name": data[0].name, "dataset_digest": data[0].digest}
        self.connection.log_metrics(run_id, [Metric(k, v, when, step, **about) for k, v in metrics.items()])
        for run in (run_id, self.parent):
            outputs = self.connection.client.get_run(run).outputs
            if model_id not in [m.model_id for m in (outputs.model_outputs if outputs else [])]:
                self.connection.client.log_outputs(run, [LoggedModelOutput(model_id, step)])

    def _files(self, model_id: str, path: Path, chain: list[StageRecord], text: str) -> None:
        """What explains a model, without its weights: those lie in the artifact store, at the tag ``artifact.path``."""
        title = f"{self.connection.preset} {chain[-1]['stage']}"
        folder = self.connection.run_dir / "model_files" / path.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lineage.html").write_text(lineage.page(chain, title, self.connection.page_link), "utf-8")
        (folder / "model.md").write_text(f"# {title}\n\n{text}\n", "utf-8")
        for file in sorted(folder.iterdir()):
            self.connection.client.log_model_artifact(model_id, str(file))
            file.unlink()
        folder.rmdir()
        for name in EXPLAINING:
            if (path / name).is_file():
                self.connection.client.log_model_artifact(model_id, str(path / name))

    def _version(self, model_id: str, run_id: str, record: StageRecord, base: StageRecord | None, text: str) -> str:
        client, preset = self.connection.client, self.connection.preset
        try:
            client.create_registered_model(
                preset, tags={"preset": preset}, description=f"Models that `pipeline run {preset}` made."
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        tags = {
            "stage": record["stage"],
            "artifact.digest": record.get("digest") or "",
            "base_model_id": (base and base.get("model_id")) or "",
            "base_version": self._version_of(base["stage"]) if base else "",
        }
        versions = client.search_model_versions(f"run_id = '{run_id}'") or [
            client.create_model_version(
                preset, f"models:/{model_id}", run_id, as_tags(tags), description=text, model_id=model_id
            )
        ]
        version = str(versions[0].version)
        # A server adds this tag, by which the UI shows a model as registered, itself; the SQLite store does not.
        registered = json.dumps([{"name": preset, "version": version}])
        client.set_logged_model_tags(model_id, {"mlflow.modelVersions": registered})
        return version

    def _version_of(self, stage: str) -> str:
        entry = self.connection.stages.get(stage)
        return str(entry.get("version", "")) if entry else ""

    def aliases(self) -> None:
        """Point base, sft, dpo … at this run's models, made or cached. The alias champion follows the store
        (tasks/tracking/champion.py)."""
        client, preset = self.connection.client, self.connection.preset
        versions = {stage: version for stage in self.records if (version := self._version_of(stage))}
        if not versions:
            return
        wanted = {model_name(stage): version for stage, version in versions.items()}
        registered = self.connection.optional("aliases", lambda: client.get_registered_model(preset))
        current: dict[str, str | int] = cast(Any, registered).aliases if registered else {}  # MLflow says no types
        for alias, version in wanted.items():
            if str(current.get(alias)) != version:
                self.connection.optional(
                    "alias", lambda a=alias, v=version: client.set_registered_model_alias(preset, a, v)
                )
