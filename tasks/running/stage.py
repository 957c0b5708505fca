"""``@stage``: the one place where a plain function becomes a cached, tracked, resumable Prefect task.

A stage function is ``fn(cfg, input…, *, on, out, report) -> metrics``: it reads its section and its inputs'
directories, writes into ``out``, and returns numbers. What it gets wrapped in: a key from content,
a lease, a partial directory, an atomic publish, and Prefect's own record inside the artifact, so that its UI says
``Cached`` and deleting the directory is all there is to invalidation.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from storage.code import fingerprint
from storage.digest import sha256_json
from storage.lineage import SourceListing
from storage.places import ROOT
from storage.room import room
from storage.store import Artifact, Store, StoreError
from tasks.running.events import StageInput
from tasks.running.inputs import Descent, Files, Several, artifacts_of, digest_of_input
from tasks.running.result import NAME, vouch
from tasks.running.run import Reached, Run, current

PACKAGES = frozenset({"flows", "tasks", "pipeline", "model", "storage"})
NEVER = frozenset(
    {"flows", "storage", "tasks.running", "tasks.tracking", "pipeline.config", "pipeline.running", "model.running"}
)
"""The rooms whose code runs, watches, shows or estimates: in no cache key. All other code decides bytes, and is in the
keys of the stages that reach it; the values of sections enter the key themselves."""


KINDS = ("documents", "records", "tokenizer", "tokens", "model", "release", "scores", "page")
"""What a stage makes. A model is one that was trained; a release is what others are given of it."""


@dataclass(frozen=True)
class Stage:
    """A stage as the flow sees it: callable with its section and its inputs, giving an Artifact.

    ``kind`` is what it makes, ``base`` names the input that its model descends from, ``reads`` which files of an input
    count (see :func:`stage`).
    """

    fn: Callable[..., dict[str, Any]]
    version: int
    workers: tuple[str, ...]
    libs: tuple[str, ...]
    kind: str
    base: str | None

    reads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.fn.__name__

    def __call__(self, cfg: Any, *inputs: Any) -> Any:
        return current().call(self, cfg, self.bind(inputs))

    def submit(self, cfg: Any, *inputs: Any) -> Any:
        """Start the stage beside others; ``.result()`` gives what a direct call would."""
        return current().submit(self, cfg, self.bind(inputs))

    def bind(self, inputs: tuple[Any, ...]) -> dict[str, Any]:
        """Inputs by the names that the stage function gives them, without those that are None (stages and sources that
        were left out; the function's default stands for them)."""
        parameters = [p for p in inspect.signature(self.fn).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD][
            1:
        ]
        if len(parameters) != len(inputs):
            raise TypeError(f"stage {self.name} takes {[p.name for p in parameters]}, got {len(inputs)} inputs")
        bound = {p.name: value for p, value in zip(parameters, inputs, strict=True) if value is not None}
        missing = [p.name for p in parameters if p.name not in bound and p.default is p.empty]
        if missing:
            raise TypeError(f"stage {self.name} cannot do without {', '.join(missing)}")
        return bound

    def identity(self, cfg: Any, inputs: dict[str, Any], files: Files) -> dict[str, Any]:
        """Everything that decides a cache hit, and nothing else; ``files`` lists an artifact's."""
        return {
            "stage": self.name,
            "version": self.version,
            "code": self.code(),
            "libs": {lib: _version(lib) for lib in self.libs},
            "section": cfg.identity(),
            "inputs": {name: digest_of_input(value, self.reads.get(name, ()), files) for name, value in inputs.items()},
        }

    def code(self) -> dict[str, str]:
        """Path and fingerprint of every file whose code decides the stage's bytes."""
        return _code((self.fn.__module__, *self.workers))

    def listed(self, inputs: dict[str, Any], with_path: bool = False) -> list[StageInput]:
        """The inputs as lineage tells them: name, stage, key, digest, and the sources that come from outside."""
        entries: list[StageInput] = []
        for name, value in inputs.items():
            for item in value.items if isinstance(value, Several) else () if isinstance(value, Descent) else (value,):
                entry: StageInput = {
                    "name": name,
                    "stage": getattr(item, "stage", "source"),
                    "key": getattr(item, "key", ""),
                    "digest": item.digest,
                }
                if with_path and isinstance(item, Artifact):
                    entry["path"] = str(item.path)
                if hasattr(item, "describe"):
                    entry["sources"] = item.describe()
                entries.append(entry)
        return entries

    def listings(self, inputs: dict[str, Any]) -> list[SourceListing]:
        """The files of the sources among the inputs, for lineage down to the file."""
        return [one for value in inputs.values() if hasattr(value, "listings") for one in value.listings()]

    def need(self, inputs: dict[str, Any], store: Store) -> int:
        """About how many bytes the stage will write: a data stage as much as it reads, a training four times the model
        it starts from (checkpoints hold two moments of every weight)."""
        read = sum(file["bytes"] for listing in self.listings(inputs) for file in listing["files"])
        read += sum(sum(store.contents(made.stage, made.key).values()) for made in artifacts_of(inputs))
        if self.kind == "model":
            base = inputs.get(self.base or "")
            return 4 * sum(store.contents(base.stage, base.key).values()) if base else 0
        return read if self.kind in ("documents", "records", "tokens") else 0

    def base_key(self, inputs: dict[str, Any]) -> str | None:
        """Key of the model that this stage's model descends from."""
        return inputs[self.base].key if self.base else None


def stage(
    *,
    version: int,
    kind: str,
    workers: str | tuple[str, ...] = (),
    libs: tuple[str, ...] = (),
    base: str | None = None,
    reads: Mapping[str, str | tuple[str, ...]] = MappingProxyType({}),
) -> Callable[[Callable[..., dict[str, Any]]], Stage]:
    """Make a function a stage.

    Args:
        version: raise it when the bytes change though no code, library or input does.
        kind: what it makes, one of :data:`KINDS`; pages, tracking and the command line go by it.
        workers: modules it starts in other processes.
        libs: packages whose version changes its bytes.
        base: the input that its model descends from.
        reads: by input, the files that the stage reads of it (``fnmatch`` patterns); all of them when nothing is said.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is none of {', '.join(KINDS)}")
    modules = (workers,) if isinstance(workers, str) else tuple(workers)
    patterns = {name: (files,) if isinstance(files, str) else files for name, files in reads.items()}
    return lambda fn: Stage(fn, version, modules, libs, kind, base, patterns)


@functools.cache
def _code(entries: tuple[str, ...]) -> dict[str, str]:
    return fingerprint(entries, ROOT, PACKAGES, NEVER)


@functools.cache
def _version(package: str) -> str:
    return importlib.metadata.version(package).partition("+")[0]  # 2.13.0+cpu is 2.13.0


def key_of(identity: dict[str, Any]) -> str:
    """The cache key: 128 bits of the identity's hash."""
    return sha256_json(identity)[:32]


class Report:
    """What a running stage says about itself: ``report(done, total, unit)``, or ``report.training(metrics)`` from a
    worker's curve."""

    def __init__(self, run: Run, name: str, show: Callable[[float], None]) -> None:
        self.run, self.name, self.show, self._last = run, name, show, 0.0

    def __call__(self, done: int, total: int | None, unit: str) -> None:
        self._tell(done, total, unit=unit)

    def training(self, metrics: dict[str, Any]) -> None:
        """Pass on one line of a training worker's metrics."""
        self._tell(metrics.get("step", 0), metrics.get("total_steps"), unit="steps", metrics=metrics)

    def note(self, text: str) -> None:
        """A line for the person who watches."""
        self.run.emit("note", stage=self.name, text=text)

    def _tell(self, done: int, total: int | None, **fields: Any) -> None:
        self.run.emit("progress", stage=self.name, done=done, total=total, **fields)
        if total and time.monotonic() - self._last > 5:
            self._last = time.monotonic()
            self.show(min(100.0, 100 * done / total))


class PrefectRun(Run):
    """A run inside a Prefect flow: every stage call is a Prefect task whose record lies in the artifact."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.submitted: list[_Call] = []
        self.states: dict[tuple[str, str], Any] = {}
        """Prefect's state of every finished call by (stage, key): what its UI draws the DAG's edges from."""

    def call(self, stage: Stage, cfg: Any, inputs: dict[str, Any]) -> Artifact:
        return self._prepare(stage, cfg, inputs).direct()

    def submit(self, stage: Stage, cfg: Any, inputs: dict[str, Any]) -> _Call:
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

    def _prepare(self, stage: Stage, cfg: Any, inputs: dict[str, Any]) -> _Call:
        identity = stage.identity(cfg, inputs, self.store.files)
        key = key_of(identity)
        hit = None if stage.name in self.refresh else self.store.ready(stage.name, key)
        if hit is not None:
            with room(hit.path, stage.name, 0):
                vouch(hit)
        return _Call(self, stage, cfg, inputs, identity, key, hit is not None)

    def settle(self) -> None:
        """After the run: keep what Prefect and MLflow noted beside the artifacts where other machines find it."""
        for name, event in self.stages.items():
            if event["state"] == "ran":
                try:
                    self.store.settle(name, event["key"])
                except StoreError as error:
                    self.emit("note", stage=name, text=str(error))


@dataclass
class _Call:
    """One stage call of a run, from key to published artifact."""

    run: PrefectRun
    stage: Stage
    cfg: Any
    inputs: dict[str, Any]
    identity: dict[str, Any]
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
            lambda: self._build(),
            name=self.stage.name,
            description=inspect.getdoc(self.stage.fn),
            persist_result=True,
            result_serializer="json",
            result_storage=self.run.store.root,
            cache_key_fn=lambda context, parameters: record,
            refresh_cache=not self.hit,
        )

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
            report=Report(self.run, name, _progress_artifact(name)),
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
                "sources": self.run.store.sources_of([dict(entry) for entry in self.stage.listed(self.inputs)]),
                "seconds": seconds,
                "kind": self.stage.kind,
                "base": self.stage.base_key(self.inputs),
                "run": self.run.id,
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            },
            self.stage.listings(self.inputs),
        )
        _table_artifact(name, metrics, seconds, artifact)
        return artifact

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
        event = {"stage": name, "key": self.key, "kind": self.stage.kind, "base": self.stage.base_key(self.inputs)}
        if not state.is_completed():
            error = _exception(state)
            self.run.emit(
                "stage_finished",
                **event,
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
        artifact = self.made = Artifact(name, self.key, record["digest"], self.run.store.directory(name, self.key))
        self.run.emit(
            "stage_finished",
            **event,
            state="cached" if self.hit else "ran",
            digest=artifact.digest,
            path=str(artifact.path),
            seconds=0.0 if self.hit else record["seconds"],
            built_seconds=record["seconds"],
            metrics=record["metrics"],
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


def _table_artifact(name: str, metrics: dict[str, Any], seconds: float, artifact: Artifact) -> None:
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


__all__ = ["PrefectRun", "Reached", "Report", "Stage", "key_of", "stage"]
