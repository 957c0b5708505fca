"""A run's stages as OpenLineage events, for catalogues that draw lineage across tools (Marquez, DataHub, OpenMetadata).

Asked for by the variables that its client reads (``OPENLINEAGE_URL``, ``OPENLINEAGE_CONFIG`` or
``OPENLINEAGE__TRANSPORT__…``); needs the extra ``openlineage``. A job is a stage of a preset, a run is one build of it
below the pipeline's run, a dataset is an artifact or a source, with its digest as version. Ids follow from the run's,
so events that are told twice are the same ones. Whatever goes wrong is a line in tracker.log.
"""

# the client comes with types that name no values of its own
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from storage.store import open_store
from tasks.running.events import Event, StageInput

log = logging.getLogger("tracking")
NAMESPACE = "full-pipeline"
PRODUCER = "urn:full-pipeline"


def wanted() -> bool:
    """Whether the environment says where events go."""
    return any(
        name in ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG") or name.startswith("OPENLINEAGE__") for name in os.environ
    )


class Emitter:
    """Sends the events of one pipeline run."""

    def __init__(self, run_dir: Path, preset: str) -> None:
        from openlineage.client import OpenLineageClient
        from openlineage.client.facet_v2 import set_producer

        set_producer(PRODUCER)
        self.client, self.run, self.preset = OpenLineageClient(), run_dir.name, preset
        self.store = open_store(run_dir.parent.parent / "store").where
        self.inputs: dict[str, Sequence[StageInput]] = {}

    def apply(self, event: Event) -> None:
        """Tell that a stage was begun, built or failed; what comes from the cache was told when it was made."""
        from openlineage.client.event_v2 import OutputDataset, RunState
        from openlineage.client.facet_v2 import error_message_run

        try:
            if event["event"] == "stage_started":
                self.inputs[event["stage"]] = event["inputs"]
                self._send(RunState.START, event["stage"], event["time"], [], {})
            elif event["event"] == "stage_finished" and event["state"] == "ran":
                made = self._dataset(
                    OutputDataset, self.store, f"{event['stage']}/{event['key']}", event["digest"] or ""
                )
                self._send(RunState.COMPLETE, event["stage"], event["time"], [made], {})
            elif event["event"] == "stage_finished" and event["state"] == "failed":
                why = error_message_run.ErrorMessageRunFacet(event["error"] or "", "Python")
                self._send(RunState.FAIL, event["stage"], event["time"], [], {"errorMessage": why})
        except Exception as error:  # whatever its transports raise
            log.warning("OpenLineage: %s: %s", type(error).__name__, error)

    def _send(self, state: Any, stage: str, when: float, outputs: list[Any], facets: dict[str, Any]) -> None:
        from openlineage.client.event_v2 import InputDataset, Job, Run, RunEvent
        from openlineage.client.facet_v2 import parent_run

        above = parent_run.ParentRunFacet(parent_run.Run(self._id("")), parent_run.Job(NAMESPACE, self.preset))
        inputs: list[Any] = []
        for given in self.inputs.get(stage, ()):
            if "sources" in given:
                inputs += [self._dataset(InputDataset, "source", s["name"], s["digest"]) for s in given["sources"]]
            else:
                name = f"{given['stage']}/{given['key']}"
                inputs.append(self._dataset(InputDataset, self.store, name, given["digest"]))
        event = RunEvent(
            eventType=state,
            eventTime=datetime.fromtimestamp(when, UTC).isoformat(),
            run=Run(self._id(stage), {"parent": above, **facets}),
            job=Job(NAMESPACE, f"{self.preset}.{stage}"),
            inputs=inputs,
            outputs=outputs,
            producer=PRODUCER,
        )
        self.client.emit(event)

    def _id(self, stage: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{NAMESPACE}/{self.run}/{stage}"))

    @staticmethod
    def _dataset(kind: Any, where: str, name: str, digest: str) -> Any:
        from openlineage.client.facet_v2 import dataset_version_dataset

        version = dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=digest)
        return kind(where if "://" in where else f"{NAMESPACE}:{where}", name, facets={"version": version})
