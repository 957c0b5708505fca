"""A pipeline run in MLflow, event by event, in the tracker process alone (tasks/tracking/tracker.py).

A parent run per pipeline run, a nested child run per stage that was built (tasks/tracking/runs.py). A stage's inputs
are datasets and logged models, its output is a tag ``artifact.digest`` and, for models, a LoggedModel in the registry
with a tag ``base_model_id`` (tasks/tracking/models.py). MLflow draws no ancestry, so parent and models get a lineage
page and a note.
"""

from __future__ import annotations

from pathlib import Path

from mlflow.entities import Metric

from storage.champions import Decision
from storage.store import open_store
from tasks.running.events import Comparison, Event, StageFinished, StageStarted
from tasks.tracking import champion, lineage
from tasks.tracking.connection import Connection
from tasks.tracking.forms import Building, as_key, flat, lineage_of, milliseconds
from tasks.tracking.models import Models
from tasks.tracking.records import StageRecord
from tasks.tracking.runs import Runs

STATUS = {"completed": "FINISHED", "cancelled": "KILLED", "failed": "FAILED"}


class Mirror:
    """Writes the events of one run to MLflow. Every step looks first whether it was done, so a replay adds nothing."""

    def __init__(self, run_dir: Path, uri: str, live: bool) -> None:
        self.run_dir, self.live = run_dir, live
        self.connection = Connection(run_dir, uri)
        self.runs = Runs(self.connection)
        self.records: dict[str, StageRecord] = {}
        self.models = Models(self.connection, self.runs.parent, self.records)
        self.building: dict[str, Building] = {}
        self.finished = False
        self.decision: Decision | None = None

    def apply(self, event: Event) -> None:
        """Write one event of events.jsonl."""
        match event["event"]:
            case "stage_started":
                self._started(event)
            case "stage_finished":
                self._ended(event)
            case "comparison":
                self._compare(event)
            case "decision":
                self._decided(event["decision"])
            case "run_finished":
                self._finish(STATUS[event["state"]], event["time"], event["error"])
            case "note" | "progress":
                pass  # for those who watch

    def poll(self) -> None:
        """Pass on what the training curves of running stages have gained."""
        for building in self.building.values():
            building.log_curve(self.connection.client)

    def close(self) -> None:
        """The flow is gone: what is not finished was killed. Afterwards MLflow has all there is."""
        if not self.finished:
            last = max(
                p.stat().st_mtime for p in (self.run_dir / "events.jsonl", self.run_dir / "run.json") if p.exists()
            )
            self._finish("KILLED", last, "the flow process ended without finishing the run")
        self.connection.state |= {"complete": True, "error": None}
        self.connection.save()

    def _started(self, event: StageStarted) -> None:
        stage = event["stage"]
        run_id = self.runs.child(stage, event["key"], event["time"])
        self.connection.log_params(run_id, flat(event["section"]) | flat(event["resources"], "resources."))
        self.runs.inputs(run_id, event["inputs"], self.records)
        self.records[stage] = {
            "stage": stage,
            "key": event["key"],
            "section": event["section"],
            "inputs": event["inputs"],
            "state": "running",
            "path": event["partial"],
            "run_id": run_id,
            "metrics": {},
        }
        self.building[stage] = Building(run_id, Path(event["partial"]) / "_run", self.live)
        self.connection.save()

    def _ended(self, event: StageFinished) -> None:
        stage, entry = event["stage"], self.connection.entry(event["stage"])
        record = self.records[stage] = _record(self.records.get(stage), event)
        if event["state"] == "cached":
            maker = self.runs.maker(Path(event["path"]))
            entry.update(maker)
            record["run_id"], record["model_id"] = entry["run_id"], entry["model_id"]
            self.connection.tag(
                self.runs.parent, {f"stage.{stage}.cache": "hit", f"stage.{stage}.run_id": maker["run_id"] or ""}
            )
        else:
            self._built(event, record)
        self.connection.save()

    def _built(self, event: StageFinished, record: StageRecord) -> None:
        """A stage of this run was built, or failed."""
        stage, path, done = event["stage"], Path(event["path"]), event["state"] == "ran"
        run_id = record["run_id"] = self.runs.child(stage, event["key"], event["time"] - event["seconds"])
        self._close_building(stage, path)
        self.runs.results(run_id, event)
        if done and event["kind"] in ("model", "release"):
            record["model_id"] = self.models.log(run_id, record)
        chain = lineage.ancestry(self.records.values(), stage)
        text = lineage.note(record, chain, self.connection.run_link, self.connection.model_link)
        self.connection.tag(run_id, {"mlflow.note.content": text})
        ended = milliseconds(event["time"])
        self.connection.client.set_terminated(run_id, "FINISHED" if done else "FAILED", end_time=ended)
        if done:
            self.runs.sign(path, self.connection.entry(stage))

    def _compare(self, event: Comparison) -> None:
        """A sweep's page and table; its children get the number it is sorted by and move below it."""
        client, when = self.connection.client, milliseconds(event["time"])
        for file in event["files"]:
            self.connection.log_file(self.runs.parent, file)
        for child, value in event["runs"].items():
            query = f"tags.`pipeline.run_id` = '{child}' and tags.`pipeline.part` = 'run'"
            for run in client.search_runs([self.connection.experiment], query):
                self.connection.tag(run.info.run_id, {"mlflow.parentRunId": self.runs.parent})
                if value is not None:
                    self.connection.log_metrics(run.info.run_id, [Metric(as_key(event["metric"]), value, when, 0)])

    def _decided(self, decision: Decision) -> None:
        """What was decided about the run's last model, as tags; the note is written at the end."""
        self.decision = decision
        self.connection.tag(self.runs.parent, champion.tags(decision))

    def _finish(self, status: str, time: float, error: str | None) -> None:
        client, parent, ended = self.connection.client, self.runs.parent, milliseconds(time)
        # stages that were still being built
        for stage, building in list(self.building.items()):
            self._close_building(stage, None)
            self.runs.files(building.run_id, building.folder.parent)
            client.set_terminated(building.run_id, "FAILED" if status == "FAILED" else "KILLED", end_time=ended)
        # pages: lineage, and what the flow left in its directory (the funnel)
        tags = {"pipeline.error": error or ""}
        if self.records:
            everything = list(self.records.values())
            html = lineage.page(everything, f"{self.connection.preset} {self.run_dir.name}", self.connection.page_link)
            (self.run_dir / "lineage.html").write_text(html, "utf-8")
            for report in sorted(self.run_dir.glob("*.html")):
                self.connection.log_file(parent, report)
            note = lineage.note(None, everything, self.connection.run_link, self.connection.model_link)
            told = champion.text(self.decision) + "\n\n" if self.decision else ""
            tags["mlflow.note.content"] = told + note
            self.runs.overview(everything, ended)
        self.connection.tag(parent, tags)
        if status == "FINISHED":
            self.models.aliases()
            self.connection.optional("champion", lambda: self._champion())
        client.set_terminated(parent, status, end_time=ended)
        self.finished = True

    def _champion(self) -> str | None:
        store = open_store(self.connection.home / "store")
        return champion.follow(self.connection.client, store, self.connection.preset)

    def _close_building(self, stage: str, path: Path | None) -> None:
        if building := self.building.pop(stage, None):
            building.close(self.connection.client, path)


def _record(earlier: StageRecord | None, event: StageFinished) -> StageRecord:
    """What is known of a stage that ended: its start, its artifact's own record, and what the event says."""
    lineage = lineage_of(Path(event["path"]))
    known = lineage or earlier
    record: StageRecord = {
        "stage": event["stage"],
        "key": event["key"],
        "state": event["state"],
        "section": known["section"] if known else {},
        "inputs": known["inputs"] if known else [],
        "metrics": event["metrics"],
        "path": event["path"],
        "run_id": earlier["run_id"] if earlier else None,
        "kind": event["kind"],
        "base": event["base"],
        "digest": event["digest"],
        "seconds": event["seconds"],
        "built_seconds": event.get("built_seconds", lineage["built_seconds"] if lineage else None),
        "error": event["error"],
    }
    return record
