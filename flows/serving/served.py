"""The models that are served, each under a name that may come to mean another model while requests go on."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flows.serving.errors import Wrong
from flows.serving.metrics import Metrics
from model.chat import generation_defaults
from model.serving.engine import Engine
from storage.errors import Failed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A model that a name means at present. ``about``: which one that is, in a line; ``artifact``: stage/key, "" of a
    directory that is no artifact."""

    directory: Path
    about: str
    artifact: str


class Served:
    """A name with the model behind it."""

    def __init__(self, name: str, find: Callable[[], Found], load: Callable[[Path], Engine]) -> None:
        self.name, self.find, self.load = name, find, load
        self._put(find())

    def _put(self, found: Found, engine: Engine | None = None) -> None:
        self.defaults = generation_defaults(found.directory)
        self.engine = engine or self.load(found.directory)
        self.found = found
        self.created = int((found.directory / "config.json").stat().st_mtime)

    @property
    def fingerprint(self) -> str:
        """What OpenAI calls the system's fingerprint: equal as long as the model is."""
        return f"fp_{self.found.artifact.rpartition('/')[2][:12] or self.created}"

    def facts(self) -> dict[str, object]:
        """The model in /v1/models."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "full-pipeline",
            "facts": {
                "window": self.engine.window,
                "parameters": self.engine.parameters,
                "artifact": self.found.artifact or None,
                "about": self.found.about,
                "lineage": f"/lineage/{self.name}" if has_lineage(self.found.directory) else None,
                "defaults": self.defaults,
            },
        }

    def change(self) -> Engine | None:
        """Put the model in place that the name means now; the engine that is to drain, or None when nothing changed.
        Blocks while weights are read. Raises LookupError, ValueError, OSError or Failed; then the old one goes on."""
        found = self.find()
        if found.directory == self.found.directory:
            return None
        old, engine = self.engine, self.load(found.directory)
        self._put(found, engine)
        return old


def has_lineage(directory: Path) -> bool:
    """Whether a model directory says what it was made from."""
    try:
        json.loads((directory / "lineage.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return True


class Models:
    """All that are served, by name, the first one first."""

    def __init__(self, served: list[Served], metrics: Metrics) -> None:
        self.by_name = {model.name: model for model in served}
        self.metrics = metrics
        self._draining: set[asyncio.Task[None]] = set()
        self._refused: dict[str, str] = {}

    def get(self, name: str) -> Served:
        """The model of a name. Raises Wrong (404)."""
        if name not in self.by_name:
            known = ", ".join(self.by_name)
            raise Wrong(404, f"no model {name!r} is served here; {known}", param="model", code="model_not_found")
        return self.by_name[name]

    async def watch(self, seconds: float) -> None:
        """Look every so often whether a name means another model, which then takes over: new requests go to it, those
        that are going on end where they began."""
        while True:
            await asyncio.sleep(seconds)
            for model in self.by_name.values():
                await self._look(model)

    async def _look(self, model: Served) -> None:
        try:
            old = await asyncio.to_thread(model.change)
        except (LookupError, ValueError, OSError, Failed) as error:
            if self._refused.get(model.name) != str(error):  # said once, not at every look
                log.warning("%s goes on with %s: %s", model.name, model.found.about, error)
            self._refused[model.name] = str(error)
            return
        self._refused.pop(model.name, None)
        if old is not None:
            log.info("%s is now %s", model.name, model.found.about)
            self.metrics.changes.labels(model.name).inc()
            task = asyncio.create_task(_drain(old))
            self._draining.add(task)
            task.add_done_callback(self._draining.discard)

    def gauge(self) -> None:
        """Bring the gauges up to date."""
        for model in self.by_name.values():
            self.metrics.running.labels(model.name).set(model.engine.running)
            self.metrics.waiting.labels(model.name).set(model.engine.waiting)
            self.metrics.slots.labels(model.name).set(model.engine.slots)

    async def close(self) -> None:
        """End every engine."""
        for task in list(self._draining):
            task.cancel()
        for model in self.by_name.values():
            await asyncio.to_thread(model.engine.close)


async def _drain(engine: Engine) -> None:
    """Let an engine say what it has begun, then end it."""
    while engine.pending:
        await asyncio.sleep(0.05)
    await asyncio.to_thread(engine.close)
