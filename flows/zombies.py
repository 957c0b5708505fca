"""Runs whose process died without a word (kill -9, a reboot): told from the living by the lock they held, and marked
Crashed in Prefect, where they would show Running for ever and hold a deployment's one place.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from flows.processes import ServiceError, ask
from flows.runs import ended
from tasks.running.run import is_alive

OPEN = ["RUNNING", "PENDING", "CANCELLING"]
ASKED_AT_ONCE = 200


def bury_dead(home: Path, api: str) -> list[str]:
    """Mark the flow runs of dead runs below ``home`` Crashed, with their task runs; gives their run ids.

    Only runs that this machine started, by the flow run's id in their run.json. A server that does not answer is no
    reason to stop: the next run tries again.
    """
    dead = {flow_run: directory.name for directory in _silent(home) if (flow_run := _flow_run(directory))}
    ids, buried = list(dead), []
    try:
        for some in (ids[i : i + ASKED_AT_ONCE] for i in range(0, len(ids), ASKED_AT_ONCE)):
            of_runs = {"flow_runs": {"id": {"any_": some}, "state": {"type": {"any_": OPEN}}}}
            for run in ask(api, "flow_runs/filter", of_runs):
                of_tasks = {
                    "flow_runs": {"id": {"any_": [run["id"]]}},
                    "task_runs": {"state": {"type": {"any_": OPEN}}},
                }
                for task in ask(api, "task_runs/filter", of_tasks):
                    _crash(api, "task_runs", task["id"])
                _crash(api, "flow_runs", run["id"])
                buried.append(dead[run["id"]])
    except ServiceError:
        pass
    return buried


def _silent(home: Path) -> list[Path]:
    """Directories of runs that neither live nor said how they ended."""
    return [
        path.parent
        for path in sorted((home / "runs").glob("*/run.json"))
        if ended(path.parent) is None and not is_alive(path.parent)
    ]


def _flow_run(directory: Path) -> str | None:
    """The flow run's id, if this machine started it: another one's lock may not be seen here."""
    try:
        facts: dict[str, Any] = json.loads((directory / "run.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if facts.get("host", socket.gethostname()) != socket.gethostname():
        return None
    return (facts.get("prefect") or {}).get("flow_run_id")


def _crash(api: str, kind: str, name: str) -> None:
    state = {"type": "CRASHED", "name": "Crashed", "message": "its process ended without a word"}
    ask(api, f"{kind}/{name}/set_state", {"state": state})
