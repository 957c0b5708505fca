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
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline.config.base import Section
from storage.code import Memo, fingerprint
from storage.digest import sha256_json
from storage.lineage import Identity, SourceListing
from storage.places import ROOT, home
from storage.store import Artifact, Store
from tasks.running.events import Metrics, StageInput
from tasks.running.gate import Verdict
from tasks.running.inputs import Bound, Descent, Files, Several, artifacts_of, digest_of_input
from tasks.running.run import Run, current
from tasks.running.seeds import Seeds

PACKAGES = frozenset({"flows", "tasks", "pipeline", "model", "storage"})
NEVER = frozenset(
    {"flows", "storage", "tasks.running", "tasks.tracking", "pipeline.config", "pipeline.running", "model.running"}
)
"""The rooms whose code runs, watches, shows or estimates: in no cache key. All other code decides bytes, and is in the
keys of the stages that reach it; the values of sections enter the key themselves."""


KINDS = ("documents", "records", "tokenizer", "tokens", "model", "reward", "forms", "release", "scores", "page")
"""What a stage makes. A model is one that was trained to talk, a reward one to score; a release is what others are
given of a model, forms are what its weights are rounded to."""


@dataclass(frozen=True)
class Stage:
    """A stage as the flow sees it: callable with its section and its inputs, giving an Artifact.

    ``kind`` is what it makes, ``base`` names the input that its model descends from, ``reads`` which files of an input
    count (see :func:`stage`).
    """

    fn: Callable[..., Metrics]
    version: int
    workers: tuple[str, ...]
    libs: tuple[str, ...]
    kind: str
    base: str | None

    reads: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    @property
    def name(self) -> str:
        return self.fn.__name__

    def __call__(self, cfg: Section, *inputs: object) -> Any:
        return current().call(self, cfg, self.bind(inputs))

    def submit(self, cfg: Section, *inputs: object) -> Any:
        """Start the stage beside others; ``.result()`` gives what a direct call would."""
        return current().submit(self, cfg, self.bind(inputs))

    def bind(self, inputs: tuple[object, ...]) -> Bound:
        """Inputs by the names that the stage function gives them, without those that are None (stages and sources that
        were left out; the function's default stands for them, as for those at the end that are not given at all)."""
        parameters = [p for p in inspect.signature(self.fn).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD][
            1:
        ]
        if len(parameters) < len(inputs):
            raise TypeError(f"stage {self.name} takes {[p.name for p in parameters]}, got {len(inputs)} inputs")
        bound = {p.name: value for p, value in zip(parameters, inputs, strict=False) if value is not None}
        missing = [p.name for p in parameters if p.name not in bound and p.default is p.empty]
        if missing:
            raise TypeError(f"stage {self.name} cannot do without {', '.join(missing)}")
        return bound

    def identity(self, cfg: Section, inputs: Bound, files: Files) -> Identity:
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

    def listed(self, inputs: Bound, with_path: bool = False) -> list[StageInput]:
        """The inputs as lineage tells them: name, stage, key, digest, and the sources that come from outside."""
        entries: list[StageInput] = []
        for name, value in inputs.items():
            for item in (
                value.items
                if isinstance(value, Several)
                else ()
                if isinstance(value, (Descent, Seeds, Verdict))
                else (value,)
            ):
                entry: StageInput = {
                    "name": name,
                    "stage": getattr(item, "stage", "source"),
                    "key": getattr(item, "key", ""),
                    "digest": item.digest,
                }
                if hasattr(item, "describe"):
                    entry["sources"] = item.describe()
                elif with_path and isinstance(item, Artifact):
                    entry["path"] = str(item.path)
                entries.append(entry)
        return entries

    def listings(self, inputs: Bound) -> list[SourceListing]:
        """The files of the sources among the inputs, for lineage down to the file."""
        return [one for value in inputs.values() if hasattr(value, "listings") for one in value.listings()]

    def need(self, inputs: Bound, store: Store) -> int:
        """About how many bytes the stage will write: a data stage as much as it reads, a training four times the model
        it starts from (checkpoints hold two moments of every weight)."""
        read = sum(file["bytes"] for listing in self.listings(inputs) for file in listing["files"])
        read += sum(sum(store.contents(made.stage, made.key).values()) for made in artifacts_of(inputs))
        if self.kind in ("model", "reward"):
            base = inputs.get(self.base or "")
            return 4 * sum(store.contents(base.stage, base.key).values()) if isinstance(base, Artifact) else 0
        return read if self.kind in ("documents", "records", "tokens") else 0

    def base_key(self, inputs: Bound) -> str | None:
        """Key of the model that this stage's model descends from; None of one that lies outside any store."""
        return getattr(inputs[self.base], "key", None) if self.base else None


def stage(
    *,
    version: int,
    kind: str,
    workers: str | tuple[str, ...] = (),
    libs: tuple[str, ...] = (),
    base: str | None = None,
    reads: Mapping[str, str | tuple[str, ...]] = MappingProxyType({}),
) -> Callable[[Callable[..., Metrics]], Stage]:
    """Make a function a stage.

    Args:
        version: raise it when the bytes change though no code, library or input does, and when its files get a form
            in which today's code cannot read older ones: nothing of another version is adopted.
        kind: what it makes, one of :data:`KINDS`; pages, tracking and the command line go by it.
        workers: modules it starts in other processes.
        libs: packages whose version changes its bytes; ``unicode`` for Python's own tables of letters.
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
    memo = _memo(home())
    found = fingerprint(entries, ROOT, PACKAGES, NEVER, memo)
    memo.keep()
    return found


@functools.cache
def _memo(root: Path) -> Memo:
    return Memo(root / "cache" / "code.json")


@functools.cache
def _version(package: str) -> str:
    if package == "unicode":  # the tables of letters that come with Python
        return unicodedata.unidata_version
    return importlib.metadata.version(package).partition("+")[0]  # 2.13.0+cpu is 2.13.0


def key_of(identity: Identity) -> str:
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
