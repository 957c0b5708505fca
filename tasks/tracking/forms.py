"""Forms of the pipeline's facts that MLflow takes: parameters, metrics, tags, datasets, and a stage's running curve."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from mlflow import MlflowClient
from mlflow.entities import Dataset, Metric
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from storage.digest import flatten
from tasks.running.events import Json, StageInput
from tasks.running.tail import Tail
from tasks.tracking.records import Lineage

CURVE_POINTS = 2000
"""Longer curves are thinned to about so many steps (the whole curve stays in the artifact's metrics.jsonl)."""
SYSTEM_SECONDS = 5
NOT_CURVES = {"step", "total_steps", "time"}


class Building:
    """A stage that is being built: its training curve, and with ``live`` the load of this machine every 5 s."""

    def __init__(self, run_id: str, folder: Path, live: bool) -> None:
        self.run_id, self.folder, self.started = run_id, folder, time.time()
        self.tail = Tail(folder / "metrics.jsonl")
        self.last_step, self.known_step, self.restarts = -1, -1, 0
        self.monitor = SystemMetricsMonitor(run_id, sampling_interval=SYSTEM_SECONDS) if live else None
        if self.monitor:
            self.monitor.start()

    def log_curve(self, client: MlflowClient, last: bool = False) -> None:
        """Log what metrics.jsonl gained, as ``training/<name>`` over steps; steps that a resumed worker repeats are
        left out."""
        records = self.tail.read(last)
        if self.tail.restarts != self.restarts:
            self.restarts, self.known_step = self.tail.restarts, self.last_step
        batch: list[Metric] = []
        for record in records:
            step = _whole(record.get("step"))
            self.last_step = max(self.last_step, step)
            if step > self.known_step and self._shown(record, step):
                when = milliseconds(_clock(record.get("time"), self.started))
                batch += [
                    Metric(f"training/{as_key(k)}", v, when, step)
                    for k, v in numbers(record).items()
                    if k not in NOT_CURVES
                ]
        for i in range(0, len(batch), 1000):
            client.log_batch(self.run_id, metrics=batch[i : i + 1000])

    def _shown(self, record: Mapping[str, Json], step: int) -> bool:
        total = _whole(record.get("total_steps"))
        stride = max(1, total // CURVE_POINTS)
        return step % stride == 0 or step == total or any(name.startswith("val") for name in record)

    def close(self, client: MlflowClient, published: Path | None) -> None:
        """Stop watching the machine and log the curve's end, which lies in the published artifact by now."""
        if self.monitor:
            self.monitor.finish()
        if published is not None:
            self.tail.path = published / "_run" / "metrics.jsonl"
        self.log_curve(client, last=True)


def _whole(value: Json) -> int:
    """A number that a worker wrote, or 0."""
    return int(value) if isinstance(value, (int, float)) else 0


def _clock(when: Json, started: float) -> float:
    """Seconds since the epoch; a worker may also write seconds since its start."""
    if not isinstance(when, (int, float)):
        return time.time()
    return when if when > 1e9 else started + when


def flat(value: Mapping[str, Json], prefix: str = "") -> dict[str, str]:
    """Nested config as ``{"optim.lr": "0.001"}``: MLflow's parameters are strings."""
    return {
        as_key(prefix + name): item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
        for name, item in flatten(value).items()
    }


def numbers(value: Mapping[str, Json], prefix: str = "") -> dict[str, float]:
    """The finite numbers of a nested dict by dotted names; truth values, text and lists are no metrics."""
    metrics: dict[str, float] = {}
    for name, item in value.items():
        if isinstance(item, dict):
            metrics |= numbers(item, f"{prefix}{name}.")
        elif isinstance(item, (int, float)) and not isinstance(item, bool) and math.isfinite(item):
            metrics[as_key(prefix + name)] = float(item)
    return metrics


def as_key(name: str) -> str:
    """A name as MLflow takes it for parameters, metrics and tags: word characters, ``/ . - : `` and spaces, at most
    250."""
    return re.sub(r"[^/\w.\- :]", "_", name)[:250]


def as_tags(values: Mapping[str, str | int]) -> dict[str, str]:
    """Tags within MLflow's limit of 8000 characters; empty ones left out."""
    return {as_key(k): str(v)[:7900] for k, v in values.items() if v not in (None, "")}


def milliseconds(seconds: float) -> int:
    """Seconds since the epoch as MLflow counts time."""
    return int(seconds * 1000)


def as_datasets(item: StageInput) -> list[Dataset]:
    """An input of a stage as MLflow datasets: its sources one by one, or the artifact. Digests hold 36 characters
    there."""
    if "sources" in item:
        return [
            Dataset(
                name=s["name"][:500],
                digest=s["digest"][:36],
                source_type="local",
                source=json.dumps({"name": s["name"]}),
                profile=json.dumps({k: v for k, v in s.items() if k not in ("name", "digest")}),
            )
            for s in item["sources"]
        ]
    path = Path(item.get("path") or "")
    stage = item["stage"] or item["name"]
    return [
        Dataset(
            name=f"{stage}/{item['key'][:12]}",
            digest=item["digest"][:36],
            source_type="local",
            source=json.dumps({"uri": str(path)}),
            schema=_schema(path),
            profile=_profile(path),
        )
    ]


def _schema(path: Path) -> str | None:
    """Columns of a Parquet artifact as MLflow's column specification."""
    part = next(iter(sorted(path.glob("*.parquet"))), None) if _there(path) else None
    if part is None:
        return None
    import pyarrow.parquet  # pyright: ignore[reportMissingTypeStubs]

    schema = cast(Any, pyarrow.parquet).read_schema(part)
    types = {"int64": "long", "double": "double", "bool": "boolean"}
    columns: list[dict[str, str | bool]] = [
        {"name": field.name, "type": types.get(str(field.type), "string"), "required": not field.nullable}
        for field in schema
    ]
    return json.dumps({"mlflow_colspec": columns})


def _profile(path: Path) -> str | None:
    """What the artifact counted about itself: stats.json or meta.json."""
    for name in ("stats.json", "meta.json"):
        if _there(path) and (path / name).is_file():
            return (path / name).read_text("utf-8")[:60000]
    return None


def _there(path: Path) -> bool:
    return path != Path() and path.is_dir()


def lineage_of(path: Path) -> Lineage | None:
    """What an artifact's own lineage.json says, with the stage's section lifted out of its identity."""
    try:
        written: dict[str, Any] = json.loads((path / "lineage.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return {
        "section": written.get("identity", {}).get("section", {}),
        "built_seconds": written.get("seconds"),
        "inputs": written.get("inputs", []),
        "metrics": written.get("metrics", {}),
    }


def local_server(home: Path) -> str | None:
    """Address of the MLflow server that was started for this root, as its services.json tells."""
    try:
        entry = json.loads((home / "services.json").read_text("utf-8"))["mlflow"]
        return entry["url"] if entry.get("home", str(home)) == str(home) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
