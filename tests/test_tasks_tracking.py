"""The tracker process and what it leaves in MLflow, against a real SQLite store."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tracking_helpers import DAG, ROOT, FlowRun, sha

from tasks.tracking import overview
from tasks.tracking.tracker import follow, follow_champions, start_tracker, summary, sync


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A root with one run whose three stages were all built, tracked by a real tracker process."""
    home = tmp_path_factory.mktemp("home")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    run = FlowRun(home, "first")
    tracker = start_tracker(run.dir)
    run.all("ran")
    assert tracker.close(120)["complete"], (run.dir / "tracker.log").read_text()
    return home


@pytest.fixture(scope="module")
def client(home):
    import mlflow

    return mlflow.MlflowClient(summary(home / "runs" / "first")["tracking_uri"])


def runs_of(client, home: Path, name: str) -> list:
    told = summary(home / "runs" / name)
    return client.search_runs([told["experiment_id"]], f"tags.`pipeline.run_id` = '{name}'")


def test_a_run_has_a_parent_and_a_nested_child_per_stage(home, client):
    told = summary(home / "runs" / "first")
    parent = client.get_run(told["parent_run_id"])
    assert (
        parent.info.status == "FINISHED"
        and parent.data.params["pretrain.optim.lr"] == "0.001"
        and len(parent.data.params["pretrain.note"]) == 6000
    )
    assert (
        parent.data.tags["prefect.flow_run_id"] == "flow-1" and parent.data.tags["mlflow.source.git.commit"] == "c" * 40
    )
    children = {
        run.info.run_name: run for run in runs_of(client, home, "first") if run.data.tags["pipeline.part"] == "stage"
    }
    assert set(children) == set(DAG) and all(
        run.data.tags["mlflow.parentRunId"] == told["parent_run_id"] for run in children.values()
    )
    assert {name: entry["run_id"] for name, entry in told["stages"].items()} == {
        name: run.info.run_id for name, run in children.items()
    }
    ingest = children["ingest"]
    assert (
        ingest.info.status == "FINISHED"
        and ingest.data.tags["artifact.digest"] == sha("ingest")
        and ingest.data.params["resources.nproc"] == "2"
    )
    assert ingest.data.metrics == {"docs_out": 10, "dropped.empty": 2, "seconds": 2}


def test_the_table_of_runs_shows_sizes_scores_and_data_of_a_run(home, client):
    told = summary(home / "runs" / "first")
    parent = client.get_run(told["parent_run_id"])
    assert parent.data.metrics == {"documents": 10, "stages_built": len(DAG), "stages_cached": 0}
    assert {d.dataset.name for d in parent.inputs.dataset_inputs} == {"docs", "chats"}
    assert parent.data.tags["model"] == "sft" and parent.data.tags["data"] == "chats, docs"
    scores = {"base.bits_per_byte": 2.0, "sft.bits_per_byte": 1.5, "sft.choices": 0.5, "sft.choices.n": 20}
    made = {"section": {}, "inputs": [], "path": "", "run_id": None, "key": "", "state": "cached"}
    records = [
        {**made, "stage": "encode", "kind": "tokens", "metrics": {"train_tokens": 99}},
        {**made, "stage": "pretrain", "kind": "model", "metrics": {"parameters": 7}},
        {**made, "stage": "sft", "kind": "model", "metrics": {"parameters": 8}},
        {**made, "stage": "evaluate", "kind": "scores", "metrics": scores},
        {**made, "stage": "export", "kind": "release", "metrics": {}, "state": "failed"},
    ]
    assert overview.metrics(records) == {
        "training_tokens": 99,
        "parameters": 8,
        "base.bits_per_byte": 2.0,
        "sft.bits_per_byte": 1.5,
        "sft.choices": 0.5,
        "bits_per_byte": 1.5,
        "choices": 0.5,
        "stages_built": 0,
        "stages_cached": 4,
    }


def test_training_curves_models_and_datasets_are_linked(home, client):
    told = summary(home / "runs" / "first")["stages"]
    sft = client.get_run(told["sft"]["run_id"])
    assert [m.step for m in client.get_metric_history(told["sft"]["run_id"], "training/loss")] == list(range(1, 31))
    assert {d.dataset.name: d.dataset.digest for d in sft.inputs.dataset_inputs}["chats"] == sha("@chats")[:36]
    assert told["pretrain"]["model_id"] in [m.model_id for m in sft.inputs.model_inputs]
    assert [m.model_id for m in sft.outputs.model_outputs] == [told["sft"]["model_id"]]
    model = client.get_logged_model(told["sft"]["model_id"])
    assert model.tags["base_model_id"] == told["pretrain"]["model_id"] and str(model.status) == "READY"
    assert {(m.key, m.value, m.dataset_name) for m in model.metrics} == {
        ("val_loss", 1.5, "chats"),
        ("steps", 30, "chats"),
    }
    consumers = client.search_runs([model.experiment_id], f"datasets.digest = '{sha('ingest')[:36]}'")
    assert [run.info.run_name for run in consumers] == ["pretrain"]


def test_models_are_registered_with_aliases_and_their_base(home, client):
    aliases = client.get_registered_model("tiny").aliases
    assert (
        set(aliases) == {"base", "sft", "export", "champion"}
        and aliases["champion"] == aliases["sft"] != aliases["base"]
    )
    version = client.get_model_version("tiny", aliases["sft"])
    model = client.get_logged_model(summary(home / "runs" / "first")["stages"]["sft"]["model_id"])
    assert json.loads(model.tags["mlflow.modelVersions"]) == [{"name": "tiny", "version": str(aliases["sft"])}]
    assert version.tags["base_version"] == str(aliases["base"]) and version.tags["artifact.digest"] == sha("sft")


def test_the_champion_follows_the_store_with_its_reasons(home, client):
    told = summary(home / "runs" / "first")
    parent = client.get_run(told["parent_run_id"]).data.tags
    assert parent["champion.moved"] == "true" and parent["champion.conditions"] == "heldout >= 0.8"
    assert "✓ `heldout >= 0.8`: heldout is 0.9" in parent["mlflow.note.content"]
    earlier = client.get_registered_model("tiny").aliases
    assert client.get_model_version("tiny", earlier["champion"]).tags["champion.action"] == "gate"
    run = FlowRun(home, "by hand")
    run.decide("pretrain", True)
    assert follow_champions(home, ["tiny", "none"]) == {"tiny": str(earlier["base"]), "none": None}
    assert client.get_registered_model("tiny").aliases["champion"] == earlier["base"]
    run.decide("sft", True)
    shutil.rmtree(run.dir)
    follow_champions(home, ["tiny"])
    assert client.get_registered_model("tiny").aliases == earlier


def test_lineage_pages_notes_and_logs_are_artifacts(home, client):
    told = summary(home / "runs" / "first")
    assert {"lineage.html", "config.json", "run.json"} <= {f.path for f in client.list_artifacts(told["parent_run_id"])}
    assert {"stats.json", "metrics.jsonl", "logs"} <= {
        f.path for f in client.list_artifacts(told["stages"]["sft"]["run_id"])
    }
    assert {"lineage.html", "config.json", "model.md"} <= {
        f.path for f in client.list_logged_model_artifacts(told["stages"]["sft"]["model_id"])
    }
    note = client.get_run(told["stages"]["sft"]["run_id"]).data.tags["mlflow.note.content"]
    assert told["stages"]["pretrain"]["run_id"] in note and told["stages"]["pretrain"]["model_id"] in note


def test_a_cached_run_adds_one_run_that_points_to_the_makers(home, client):
    run = FlowRun(home, "second")
    run.all("cached")
    assert follow(run.dir, None)
    (parent,) = runs_of(client, home, "second")
    first, second = summary(home / "runs" / "first"), summary(run.dir)
    for stage in DAG:
        assert (
            parent.data.tags[f"stage.{stage}.cache"] == "hit"
            and parent.data.tags[f"stage.{stage}.run_id"] == first["stages"][stage]["run_id"]
        )
    assert second["stages"]["sft"]["model_id"] == first["stages"]["sft"]["model_id"]
    assert len(client.search_model_versions("name = 'tiny'")) == 3


def test_a_killed_flow_leaves_killed_runs(home, client):
    home = home.with_name("killed")
    run = FlowRun(home, "killed")
    code = (
        "import sys, os, time; from pathlib import Path; from tasks.tracking.tracker import start_tracker, summary; d ="
        " Path(sys.argv[1]); start_tracker(d)\nwhile not summary(d).get('stages'):"
        " time.sleep(0.05)\nos.kill(os.getpid(), 9)"
    )
    run.start("ingest")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": client.tracking_uri}
    assert subprocess.run([sys.executable, "-c", code, str(run.dir)], env=environment).returncode == -9
    while not summary(run.dir).get("complete"):
        time.sleep(0.05)
    assert sorted(r.info.status for r in runs_of(client, home, "killed")) == ["KILLED", "KILLED"]
    assert "logs" in {f.path for f in client.list_artifacts(summary(run.dir)["stages"]["ingest"]["run_id"])}


def test_a_failed_stage_says_why(home, client, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    run = FlowRun(home.with_name("failing"), "failing")
    run.start("pretrain")
    run.finish("pretrain", "failed", "WorkerFailed: out of memory")
    run.emit("run_finished", state="failed", seconds=1.0, error="WorkerFailed: out of memory")
    assert follow(run.dir, None)
    by_part = {r.data.tags["pipeline.part"]: r for r in runs_of(client, run.home, "failing")}
    assert by_part["stage"].info.status == by_part["run"].info.status == "FAILED"
    assert "out of memory" in by_part["stage"].data.tags["stage.error"]
    assert "logs" in {f.path for f in client.list_artifacts(by_part["stage"].info.run_id)}


def test_an_outage_is_filled_in_later_and_only_once(home, client, monkeypatch):
    down = home.with_name("down")
    run = FlowRun(down, "down")
    run.all("ran")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert sync(down) == {"down": False} and summary(run.dir)["complete"] is False
    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    assert sync(down) == {"down": True}
    first = summary(run.dir)
    assert len(runs_of(client, down, "down")) == 1 + len(DAG)
    for forget in (first | {"complete": False}, {"complete": False}):  # with and without the ids in hand
        (run.dir / "mlflow.json").write_text(json.dumps(forget))
        assert sync(down) == {"down": True} and sync(down) == {}
        assert len(runs_of(client, down, "down")) == 1 + len(DAG)
        assert summary(run.dir)["stages"]["sft"]["model_id"] == first["stages"]["sft"]["model_id"]
        assert len(client.get_metric_history(first["stages"]["sft"]["run_id"], "training/loss")) == 30


def test_a_resumed_curve_shows_every_step_once(home, client, tmp_path):
    from tasks.tracking.forms import Building

    run_id = client.create_run(summary(home / "runs" / "first")["experiment_id"]).info.run_id
    building = Building(run_id, tmp_path, live=False)

    def write(steps):
        lines = (f'{{"step": {s}, "loss": 1.0}}\n' for s in steps)
        (tmp_path / "metrics.jsonl").write_text("".join(lines))

    write(range(1, 21))
    building.log_curve(client)
    write(range(1, 11))  # the worker went back to its checkpoint at step 10 …
    building.log_curve(client)
    write(range(1, 31))  # … and on
    building.log_curve(client)
    assert sorted(m.step for m in client.get_metric_history(run_id, "training/loss")) == list(range(1, 31))


def test_a_copied_home_writes_into_itself_alone(home, client, tmp_path, monkeypatch):
    import mlflow

    from tasks.tracking.moved import mend

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # set by a mirror in this process
    copy = tmp_path / "a copy of it"
    shutil.copytree(home, copy)
    assert mend(home) == [] and mend(copy) == [str(home)] and mend(copy) == []
    before = {path for path in home.rglob("*") if "mlflow.db" not in path.name}
    there = mlflow.MlflowClient(f"sqlite:///{copy}/mlflow/mlflow.db")
    (run, *_) = runs_of(there, home, "first")
    (tmp_path / "note.txt").write_text("x")
    there.log_artifact(run.info.run_id, str(tmp_path / "note.txt"))
    again = FlowRun(copy, "in the copy")
    tracker = start_tracker(again.dir)
    again.all("cached")
    told = tracker.close(120)
    assert told["complete"] and told["stages"]["sft"]["run_id"], "the runs that made the artifacts are known here too"
    assert len(list((copy / "mlflow").rglob("note.txt"))) == 1
    assert {path for path in home.rglob("*") if "mlflow.db" not in path.name} == before
    assert client.get_run(run.info.run_id).info.artifact_uri.startswith(home.as_uri())
    places = [r.data.tags["artifact.path"] for r in runs_of(there, home, "first") if "artifact.path" in r.data.tags]
    assert places and all(place.startswith(str(copy)) for place in places)


def test_a_forgotten_run_leaves_mlflow_with_its_models_and_versions_and_no_other(home, client, monkeypatch):
    from tasks.tracking.forget import forget

    monkeypatch.setattr("tracking_helpers.sha", lambda text: hashlib.sha256(f"other {text}".encode()).hexdigest())
    run = FlowRun(home, "forgotten")
    run.all("ran")
    assert follow(run.dir, None)
    told, before = summary(run.dir), len(client.search_model_versions("name = 'tiny'"))
    kept = summary(home / "runs" / "first")
    assert forget(home, ["forgotten", "never there"]) == 1 + len(DAG)
    assert runs_of(client, home, "forgotten") == [] and len(client.search_model_versions("name = 'tiny'")) == before - 3
    with pytest.raises(Exception, match="not found"):
        client.get_run(told["parent_run_id"])  # not even among the deleted
    assert client.get_run(kept["parent_run_id"]).info.lifecycle_stage == "active"
    assert client.get_logged_model(kept["stages"]["sft"]["model_id"]).status == "READY"


def test_the_flow_side_does_not_load_mlflow():
    code = (
        "import sys, tasks.tracking.tracker; heavy = {'mlflow', 'torch', 'pandas', 'pyarrow'};"
        " sys.exit(any(m.partition('.')[0] in heavy for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_an_address_is_shown_and_stored_without_its_login():
    from tasks.tracking.records import without_login

    assert without_login("https://me:pass@mlflow.org:5000/a@b") == "https://mlflow.org:5000/a@b"
    assert without_login("postgresql://u:p@db/mlflow") == "postgresql://db/mlflow"
    assert without_login("sqlite:////home/a@b/mlflow.db") == "sqlite:////home/a@b/mlflow.db"
