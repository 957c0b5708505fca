"""Runs that are forgotten (``pipeline gc --history``): their runs, models and versions go from MLflow for good."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import mlflow

from tasks.tracking.tracker import tracking_uri

GC_SECONDS = 600


def forget(home: Path, names: list[str]) -> int:
    """Delete the MLflow runs of these pipeline runs with their logged models and registered versions; gives how many
    runs. A server deletes softly, as MLflow does; from a database of this machine they go with their files."""
    uri = tracking_uri(home)
    client = mlflow.MlflowClient(uri)
    listed = cast(Any, client).search_experiments()  # MLflow says only part of its types
    experiments = [str(experiment.experiment_id) for experiment in listed]
    found = [
        run.info.run_id
        for name in names
        for run in client.search_runs(experiments, f"tags.`pipeline.run_id` = '{name}'")
    ]
    for run_id in found:
        for version in client.search_model_versions(f"run_id = '{run_id}'"):
            client.delete_model_version(version.name, str(version.version))
        for model in client.search_logged_models(experiments, filter_string=f"source_run_id = '{run_id}'"):
            client.delete_logged_model(model.model_id)
        client.delete_run(run_id)
    if found and uri.startswith("sqlite:"):
        _purge(uri, home, found)
    return len(found)


def _purge(uri: str, home: Path, run_ids: list[str]) -> None:
    """MLflow's own removal of what is marked as deleted, rows and files."""
    command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", uri]
    command += ["--artifacts-destination", str(home / "mlflow" / "artifacts"), "--run-ids", ",".join(run_ids)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=GC_SECONDS)
    if done.returncode:
        print(f"mlflow gc left rows behind: {done.stderr.strip()[-300:]}", file=sys.stderr)
