"""What a pipeline run came to, for its parent run in MLflow: sizes, scores and data, so that the table of runs compares
runs without a click."""

from __future__ import annotations

import json
from collections.abc import Iterable

from mlflow.entities import DatasetInput, InputTag

from pipeline.evaluation.names import model_name
from tasks.tracking.forms import as_datasets, numbers
from tasks.tracking.records import StageRecord

SIZES = {"documents": ("docs_out", "documents"), "tokens": ("train_tokens", "training_tokens")}
"""By kind of artifact: the number of its last stage that is shown, and what it is called then."""
DETAILS = ("n", "chance", "low", "high", "en", "zh", "overlap")
"""Parts of a score's name that are for its own stage's page."""


def metrics(records: Iterable[StageRecord]) -> dict[str, float]:
    """Sizes, the scores of every model as ``model.score``, and those of the last model under the score's own name."""
    found: dict[str, float] = {}
    last, scores = "", dict[str, float]()
    for record in records:
        if record["state"] not in ("ran", "cached"):
            continue
        told, kind = numbers(record["metrics"]), record.get("kind", "")
        if kind in SIZES and SIZES[kind][0] in told:
            found[SIZES[kind][1]] = told[SIZES[kind][0]]
        if kind == "model":
            last = model_name(record["stage"])
            found |= {name: told[name] for name in ("parameters",) if name in told}
        if kind == "scores":
            scores = {name: value for name, value in told.items() if not set(name.split(".")) & set(DETAILS)}
    own = {name.removeprefix(f"{last}."): value for name, value in scores.items() if name.startswith(f"{last}.")}
    states = [record["state"] for record in records]
    counts = {"stages_built": float(states.count("ran")), "stages_cached": float(states.count("cached"))}
    return found | scores | own | counts


def data(records: Iterable[StageRecord]) -> list[DatasetInput]:
    """The sources that the run read, each once: its data sets in the table of runs."""
    found: dict[tuple[str, str], DatasetInput] = {}
    for record in records:
        for item in record["inputs"]:
            if "sources" in item:
                for dataset in as_datasets(item):
                    tag = InputTag("mlflow.data.context", f"{record['stage']}.{item['name']}")
                    found.setdefault((dataset.name, dataset.digest), DatasetInput(dataset, [tag]))
    return [found[place] for place in sorted(found)]


def tags(records: Iterable[StageRecord]) -> dict[str, str]:
    """The last model and the names of the data, as columns that can be searched."""
    models = [model_name(r["stage"]) for r in records if r.get("kind") == "model" and r["state"] in ("ran", "cached")]
    names = {json.loads(entry.dataset.source)["name"] for entry in data(records)}
    return {"model": models[-1] if models else "", "data": ", ".join(sorted(names))}
