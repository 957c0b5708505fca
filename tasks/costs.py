"""What forms of a model cost against the model itself, measured in a process of its own: for quantize and prune."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.config.release import MeasureSection
from pipeline.config.resources import Resources
from storage.store import Artifact
from tasks.running.inputs import Folder
from tasks.running.launch import launch


class Told(Protocol):
    """What hears of the work: a stage's report, or a command's."""

    def note(self, text: str) -> None: ...

    def training(self, metrics: dict[str, Any]) -> None: ...


def texts_of(tokens: Artifact | None, text: Folder | None, scores: Artifact | None) -> dict[str, str | None]:
    """What forms are measured on: a dataset's held-out ``tokens`` or a ``text``, and the ``exams`` of an evaluation."""
    given = {"tokens": tokens, "text": text, "exams": scores}
    return {name: str(one.path) if one else None for name, one in given.items()}


def measure_costs(
    cfg: MeasureSection,
    model: Path,
    forms: Sequence[Mapping[str, Any]],
    texts: Mapping[str, str | None],
    *,
    on: Resources,
    out: Path,
    report: Told,
) -> dict[str, Any]:
    """Write ``costs.json`` of ``forms`` ({"name", "path", "bytes"} each) into ``out``; the flat numbers."""
    settings = cfg.model_dump(include=set(MeasureSection.model_fields))
    spec = {"model": str(model), "out": str(out), **texts, "forms": list(forms), "settings": settings}
    return launch("model.measure", spec, out, on, report.training, single=True)
