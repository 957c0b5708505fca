"""A run without Prefect: a stage is taken from the cache or built in this process, under the same key, lease and
lineage as anywhere else. For commands that make one artifact while a person waits."""

from __future__ import annotations

import time
from typing import Any

from pipeline.config.base import Section
from storage.lineage import Identity
from storage.room import room
from storage.store import Artifact
from tasks.running.events import Metrics
from tasks.running.inputs import Bound
from tasks.running.run import Run
from tasks.running.stage import Report, Stage, key_of


class DirectRun(Run):
    """Calling a stage builds it here, or takes it from the cache."""

    def begin(self) -> None:
        """What is done before something is built; nothing by itself."""

    def call(self, stage: Stage, cfg: Section, inputs: Bound) -> Artifact:
        identity = stage.identity(cfg, inputs, self.store.files)
        key = key_of(identity)
        hit = None if stage.name in self.refresh else self.store.ready(stage.name, key)
        if hit is not None:
            return hit
        self.store.check()
        need = stage.need(inputs, self.store)
        with room(self.store.directory(stage.name, key), stage.name, need), self.store.lease(stage.name, key) as lease:
            if stage.name not in self.refresh and (made := self.store.lookup(stage.name, key)):
                return made
            self.begin()
            began = time.monotonic()
            try:
                return self._make(stage, cfg, inputs, identity, key, lease)
            except BaseException as error:
                self._ended(stage, key, inputs, time.monotonic() - began, error=f"{type(error).__name__}: {error}")
                raise

    submit = call

    def _make(self, stage: Stage, cfg: Section, inputs: Bound, identity: Identity, key: str, lease: Any) -> Artifact:
        began = time.monotonic()
        out = self.store.partial(stage.name, key)
        self.emit(
            "stage_started",
            stage=stage.name,
            key=key,
            section=identity["section"],
            partial=str(out),
            resources=self.resources.model_dump(),
            inputs=stage.listed(inputs, with_path=True),
        )
        report = Report(self, stage.name, lambda percent: None)
        metrics = stage.fn(cfg, **inputs, on=self.resources, out=out, report=report)
        lease.confirm()
        listed = stage.listed(inputs)
        seconds = round(time.monotonic() - began, 3)
        record = {
            "identity": identity,
            "inputs": listed,
            "resources": self.resources.model_dump(),
            "metrics": metrics,
            "sources": self.store.sources_of(listed),
            "seconds": seconds,
            "kind": stage.kind,
            "base": stage.base_key(inputs),
            "run": self.id,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        artifact = self.store.publish(stage.name, key, record, stage.listings(inputs))
        self._ended(stage, key, inputs, seconds, artifact, metrics)
        return artifact

    def _ended(
        self,
        stage: Stage,
        key: str,
        inputs: Bound,
        seconds: float,
        artifact: Artifact | None = None,
        metrics: Metrics | None = None,
        error: str | None = None,
    ) -> None:
        self.emit(
            "stage_finished",
            stage=stage.name,
            key=key,
            kind=stage.kind,
            base=stage.base_key(inputs),
            state="ran" if artifact else "failed",
            digest=artifact.digest if artifact else None,
            path=str(artifact.path) if artifact else str(self.store.directory(stage.name, key)) + ".partial",
            seconds=round(seconds, 3),
            built_seconds=round(seconds, 3),
            metrics=dict(metrics or {}),
            error=error,
        )
