"""Runs whose process died without a word (kill -9, a reboot): told from the living by the lock they held, and marked
Crashed in Prefect, where they would show Running for ever and hold a deployment's one place.

A run of the command line may die before it has a directory with a lock, so its flow run carries a tag from the start
that names its process.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from flows.processes import ServiceError, ask
from flows.runs import ended
from storage.lease import Holder, is_dead, this_process
from tasks.running.run import is_alive

TAG = "process "
"""How the tag of a flow run begins that names its process: then come its id, its start in the kernel's ticks, and its
machine."""
OPEN = ["RUNNING", "PENDING", "CANCELLING"]
ASKED_AT_ONCE = 200


def bury_dead(home: Path, api: str) -> list[str]:
    """Mark the flow runs of dead runs below ``home`` Crashed, with their task runs; gives their names.

    Only runs that this machine started, by the flow run's id in their run.json or by the flow run's tag. A server that
    does not answer is no reason to stop: the next run tries again.
    """
    dead = {flow_run: directory.name for directory in _silent(home) if (flow_run := _flow_run(directory))}
    ids, buried = list(dead), list[str]()
    try:
        for some in (ids[i : i + ASKED_AT_ONCE] for i in range(0, len(ids), ASKED_AT_ONCE)):
            of_runs = {"flow_runs": {"id": {"any_": some}, "state": {"type": {"any_": OPEN}}}}
            for run in ask(api, "flow_runs/filter", of_runs):
                _bury(api, run)
                buried.append(dead[run["id"]])
        for run in ask(api, "flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": OPEN}}}}):
            if any(is_dead(holder) for tag in run["tags"] if (holder := _holder(tag))):
                _bury(api, run)
                buried.append(run["name"])
    except ServiceError:
        pass
    return buried


def own_tag() -> str:
    """The tag that names this process."""
    me = this_process()
    return f"{TAG}{me['pid']} {me['start']} {me['host']}"


def _holder(tag: str) -> Holder | None:
    """The process that a tag names; None when it names none."""
    pid, _, rest = tag.removeprefix(TAG).partition(" ")
    start, _, host = rest.partition(" ")
    if not tag.startswith(TAG) or not pid.isdigit() or not start.isdigit():
        return None
    return {"pid": int(pid), "start": start, "host": host, "nonce": ""}


def _bury(api: str, run: dict[str, Any]) -> None:
    """Mark a flow run and its task runs that go on."""
    of_tasks = {"flow_runs": {"id": {"any_": [run["id"]]}}, "task_runs": {"state": {"type": {"any_": OPEN}}}}
    for task in ask(api, "task_runs/filter", of_tasks):
        _crash(api, "task_runs", task["id"])
    _crash(api, "flow_runs", run["id"])


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
    prefect: dict[str, str] = facts.get("prefect") or {}
    if facts.get("host", socket.gethostname()) != socket.gethostname():
        return None
    return prefect.get("flow_run_id")


def _crash(api: str, kind: str, name: str) -> None:
    state = {"type": "CRASHED", "name": "Crashed", "message": "its process ended without a word"}
    ask(api, f"{kind}/{name}/set_state", {"state": state})
