"""A run inside a Prefect flow: from a stage call to a published artifact, with Prefect's record beside it."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.base import Section
from storage.lineage import Identity
from storage.room import room
from storage.store import Artifact
from tasks.running.events import Metrics
from tasks.running.inputs import Bound, artifacts_of
from tasks.running.result import NAME, vouch
from tasks.running.run import Run
from tasks.running.stage import Report, Stage, key_of


class PrefectRun(Run):
    """A run inside a Prefect flow: every stage call is a Prefect task whose record lies in the artifact."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.submitted: list[_Call] = []
        self.states: dict[tuple[str, str], Any] = {}
        """Prefect's state of every finished call by (stage, key): what its UI draws the DAG's edges from."""

    def call(self, stage: Stage, cfg: Section, inputs: Bound) -> Artifact:
        return self._prepare(stage, cfg, inputs).direct()

    def submit(self, stage: Stage, cfg: Section, inputs: Bound) -> _Call:
        call = self._prepare(stage, cfg, inputs).start()
        self.submitted.append(call)
        if stage.name == self.until:
            call.result()
        return call

    def after(self, stage: str) -> None:
        """Before the flow is left early: what was started beside it belongs to the run and is waited for."""
        if stage == self.until:
            for call in self.submitted:
                call.result()
        super().after(stage)

    def _prepare(self, stage: Stage, cfg: Section, inputs: Bound) -> _Call:
        identity = stage.identity(cfg, inputs, self.store.files)
        key = key_of(identity)
        hit = None if stage.name in self.refresh else self.store.ready(stage.name, key)
        if hit is not None:
            with room(hit.path, stage.name, 0):
                vouch(hit)
        return _Call(self, stage, cfg, inputs, identity, key, hit is not None)


@dataclass
class _Call:
    """One stage call of a run, from key to published artifact."""

    run: PrefectRun
    stage: Stage
    cfg: Section
    inputs: Bound
    identity: Identity
    key: str
    hit: bool
    future: Any = None
    began: float = 0.0
    made: Artifact | None = None

    def direct(self) -> Artifact:
        self.began = time.monotonic()
        return self._finish(self._task()(return_state=True, wait_for=self._upstream()))

    def start(self) -> _Call:
        self.began = time.monotonic()
        self.future = self._task().submit(wait_for=self._upstream())
        return self

    def result(self) -> Artifact:
        if self.made is None:
            self.future.wait()
            return self._finish(self.future.state)
        return self.made

    def _upstream(self) -> list[Any]:
        places = [(value.stage, value.key) for value in artifacts_of(self.inputs)]
        return [self.run.states[place] for place in places if place in self.run.states]

    def _task(self) -> Any:
        from prefect import task

        record = f"{self.stage.name}/{self.key}/{NAME}"
        return task(
            name=self.stage.name,
            description=inspect.getdoc(self.stage.fn),
            persist_result=True,
            result_serializer="json",
            result_storage=self.run.store.root,
            cache_key_fn=lambda context, parameters: record,
            refresh_cache=not self.hit,
        )(lambda: self._build())

    def _build(self) -> dict[str, str]:
        """The body of the Prefect task: take the artifact if someone made it meanwhile, else make and publish it."""
        store, name = self.run.store, self.stage.name
        waiting = functools.partial(_say_waiting, self.run, name)
        need = self.stage.need(self.inputs, store)
        with room(store.directory(name, self.key), name, need), store.lease(name, self.key, waiting) as lease:
            artifact = None if name in self.run.refresh else store.lookup(name, self.key)
            if artifact is None:
                artifact = self._make(store.partial(name, self.key), lease)
            else:
                self.hit = True
        return {"stage": name, "key": self.key, "digest": artifact.digest}

    def _make(self, partial: Path, lease: Any) -> Artifact:
        self.hit = False
        name, began = self.stage.name, time.monotonic()
        self.run.emit(
            "stage_started",
            stage=name,
            key=self.key,
            section=self.identity["section"],
            partial=str(partial),
            resources=self.run.resources.model_dump(),
            inputs=self.stage.listed(self.inputs, with_path=True),
        )
        metrics = self.stage.fn(
            self.cfg,
            **self.inputs,
            on=self.run.resources,
            out=partial,
            report=Report(self.run, name, self._shown(_progress_artifact(name))),
        )
        seconds = round(time.monotonic() - began, 3)
        self._same()
        lease.confirm()
        artifact = self.run.store.publish(
            name,
            self.key,
            {
                "identity": self.identity,
                "inputs": self.stage.listed(self.inputs),
                "resources": self.run.resources.model_dump(),
                "metrics": metrics,
                "sources": self.run.store.sources_of(self.stage.listed(self.inputs)),
                "seconds": seconds,
                "kind": self.stage.kind,
                "base": self.stage.base_key(self.inputs),
                "run": self.run.id,
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            },
            self.stage.listings(self.inputs),
        )
        self._shown(_table_artifact)(name, metrics, seconds, artifact)
        return artifact

    def _shown(self, show: Callable[..., None]) -> Callable[..., None]:
        """``show``, which fails without harm: what Prefect's pages lack is no reason to stop."""

        failed: list[Exception] = []

        def guarded(*values: Any) -> None:
            try:
                show(*values)
            except Exception as error:  # whatever its client raises while its server is away
                failed.append(error)
                if len(failed) > 1:
                    return
                text = f"{self.stage.name}: not shown in Prefect: {type(error).__name__}: {error}".splitlines()[0]
                self.run.emit("note", stage=self.stage.name, text=text)

        return guarded

    def _same(self) -> None:
        """Raise ValueError when a file that the section names (weights to start from, a vocabulary) has another content
        than when the key was made: what was made from it does not belong under that key."""
        now = self.stage.identity(self.cfg, self.inputs, self.run.store.files)
        if key_of(now) != self.key:
            old, new = self.identity["section"], now["section"]
            changed = ", ".join(f"{self.stage.name}.{field}" for field in new if new[field] != old.get(field))
            raise ValueError(f"{changed or self.stage.name}: the file was changed while the stage read it; run again")

    def _finish(self, state: Any) -> Artifact:
        """Tell how the call ended; raise its error, or Reached when the run stops here."""
        name = self.stage.name
        base = self.stage.base_key(self.inputs)
        if not state.is_completed():
            error = _exception(state)
            self.run.emit(
                "stage_finished",
                stage=name,
                key=self.key,
                kind=self.stage.kind,
                base=base,
                state="failed",
                digest=None,
                path=str(self.run.store.directory(name, self.key)) + ".partial",
                seconds=round(time.monotonic() - self.began, 3),
                metrics={},
                error=f"{type(error).__name__}: {error}",
            )
            raise error
        self.run.states[name, self.key] = state
        record = self.run.store.lineage(name, self.key)
        seconds = record.get("seconds", 0.0)
        artifact = self.made = Artifact(name, self.key, record["digest"], self.run.store.directory(name, self.key))
        self.run.emit(
            "stage_finished",
            stage=name,
            key=self.key,
            kind=self.stage.kind,
            base=base,
            state="cached" if self.hit else "ran",
            digest=artifact.digest,
            path=str(artifact.path),
            seconds=0.0 if self.hit else seconds,
            built_seconds=seconds,
            metrics=record.get("metrics", {}),
            error=None,
        )
        self.run.after(name)
        return artifact


def _exception(state: Any) -> BaseException:
    error = state.result(raise_on_failure=False)
    return error if isinstance(error, BaseException) else RuntimeError(state.message or f"ended as {state.name}")


def _say_waiting(run: Run, name: str, holder: str) -> None:
    run.emit("note", stage=name, text=f"{name}: {holder} is building this already; waiting for it")


def _progress_artifact(name: str) -> Callable[[float], None]:
    """A setter of the stage's progress bar in the Prefect UI; made at first use."""
    made: list[Any] = []

    def show(percent: float) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        if made:
            update_progress_artifact(made[0], percent)
        else:
            made.append(create_progress_artifact(percent, key=f"{name}-progress", description=f"progress of {name}"))

    return show


def _table_artifact(name: str, metrics: Metrics, seconds: float, artifact: Artifact) -> None:
    """What the stage did, as a table on its Prefect page."""
    from prefect.artifacts import create_table_artifact

    rows = [
        {"what": key, "value": value if isinstance(value, (int, float, str)) else str(value)}
        for key, value in metrics.items()
    ]
    rows += [
        {"what": "seconds", "value": seconds},
        {"what": "artifact", "value": artifact.ref},
        {"what": "digest", "value": artifact.digest[:16]},
    ]
    create_table_artifact(table=rows, key=name, description=f"What **{name}** did. Files: `{artifact.path}`")
