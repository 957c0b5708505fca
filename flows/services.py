"""Services on this machine: Prefect server, MLflow server and process workers, in the background, all below one root.

What is started here is written to ``<home>/services.json`` and ended by :func:`down`, which touches nothing else
(flows/processes.py). A service is taken over when its very process still lives; a stale entry (reboot, crash, a copied
home) is replaced. An address in ``PREFECT_API_URL`` or an ``http`` one in ``MLFLOW_TRACKING_URI`` means that somebody
else runs that service: it is checked and used, never started or stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from flows.automations import check
from flows.deploying import PREFECT_QUIET, deploy
from flows.pools import POOLS, make_pools
from flows.processes import (
    START_SECONDS,
    ServiceError,
    alive,
    answers,
    ask,
    delete,
    end,
    end_remains,
    ensure,
    entries,
    forget,
    last_lines,
    locked,
    ours,
    read_json,
    revive,
)
from model.running.devices import visible_gpus
from storage.places import ROOT
from storage.places import home as own_home
from tasks.tracking.moved import mend
from tasks.tracking.records import without_login
from tasks.tracking.tracker import tracking_uri
from tasks.tracking.view import VIEW

PREFECT_PORT, MLFLOW_PORT = 4200, 5000
LOOK_SECONDS = 1.0
"""How often a run looks whether its servers live."""
POLL_SECONDS = 2
"""How often a worker asks for runs; Prefect's default of 10 s feels broken on a laptop."""


def ensure_prefect(home: Path, wait: bool = True) -> str:
    """The API URL of a Prefect server: the one in ``PREFECT_API_URL``, a running one of ours, or a new one.

    Also points this process's Prefect files below ``home``. ``wait`` False returns while a new server still boots.
    """
    os.environ.setdefault("PREFECT_HOME", str(home / "prefect"))
    given = os.environ.get("PREFECT_API_URL")
    if given and given != f"{entries(home).get('prefect', {}).get('url')}/api":
        if not answers(f"{given.rstrip('/')}/health"):
            raise ServiceError(
                f"no Prefect server answers at PREFECT_API_URL={given}; start it, or unset PREFECT_API_URL to get one"
                " here"
            )
        return given
    return ensure(home, "prefect", PREFECT_PORT, _prefect, wait)["url"] + "/api"


def ensure_mlflow(home: Path, wait: bool = True) -> str:
    """The address of an MLflow server that shows what the runs below ``home`` log; arguments as
    :func:`ensure_prefect`."""
    uri = tracking_uri(home)
    if uri.startswith("http"):
        if wait and not answers(f"{uri.rstrip('/')}/health"):
            raise ServiceError(
                f"no MLflow server answers at MLFLOW_TRACKING_URI={without_login(uri)}; start it, or unset"
                " MLFLOW_TRACKING_URI to get one here"
            )
        return without_login(uri)
    return ensure(home, "mlflow", MLFLOW_PORT, _mlflow, wait)["url"]


@contextlib.contextmanager
def kept_up(home: Path, api: str) -> Generator[None]:
    """Around a run: servers of ours that die are started again, at their ports and with what they had written, so that
    the run's calls, which Prefect repeats for a minute, are answered."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            known = entries(home)
            mine = {name for name, entry in known.items() if entry.get("home") == str(home)}
            with contextlib.suppress(ServiceError, OSError):
                if "prefect" in mine and api == f"{known['prefect']['url']}/api":
                    revive(home, "prefect", PREFECT_PORT, _prefect)
                if "mlflow" in mine and not tracking_uri(home).startswith("http"):
                    revive(home, "mlflow", MLFLOW_PORT, _mlflow)

    watch = threading.Thread(target=look, daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


def run_page(base: str, tracking: Mapping[str, Any]) -> str:
    """The page of a run on an MLflow server, in the part of its UI that is for training."""
    if not tracking.get("parent_run_id"):
        return base
    where = f"experiments/{tracking['experiment_id']}/runs/{tracking['parent_run_id']}"
    return f"{base.rstrip('/')}/#/{where}?workflowType=machine_learning"


def runs_page(base: str, experiment: str) -> str:
    """The table of all runs, with the columns that tell runs apart (tasks/tracking/view.py)."""
    return f"{base.rstrip('/')}/#/experiments/{experiment}/runs?viewStateShareKey={VIEW}&workflowType=machine_learning"


def mlflow_address(home: Path) -> str | None:
    """Where the MLflow server of this root answers, as far as it is known without asking."""
    uri, entry = tracking_uri(home), entries(home).get("mlflow", {})
    mine = entry.get("home", str(home)) == str(home)
    return without_login(uri) if uri.startswith("http") else entry.get("url") if mine else None


def forget_flow_runs(home: Path, names: list[str]) -> int:
    """Delete the flow runs of these pipeline runs from the Prefect server in use; gives how many it had. Raises
    ServiceError when none answers."""
    api = ensure_prefect(home)
    count = 0
    for name in names:
        prefect: dict[str, str] = read_json(home / "runs" / name / "run.json").get("prefect") or {}
        flow_run = prefect.get("flow_run_id")
        count += bool(flow_run and delete(api, f"flow_runs/{flow_run}"))
    return count


def command(args: argparse.Namespace) -> int:
    """``pipeline up``, ``pipeline deploy`` and ``pipeline down``."""
    root = own_home()
    if args.command == "down":
        down(root)
        return 0
    targets = args.notify or os.environ.get("PIPELINE_NOTIFY", "").split() or None
    targets = [] if targets == ["none"] else targets
    check(targets or [])
    if args.command == "up":
        up(root, targets)
        return 0
    api = ensure_prefect(root)
    make_pools(api, args.gpu_pool)
    for line in deploy(api, targets):
        print(line)
    return 0


def up(home: Path, targets: list[str] | None = None) -> None:
    """Start everything that ``prefect deployment run full-pipeline/cpu`` needs, deploy, and print where it is.
    ``targets`` are told of failures, stuck runs and champions (flows/automations.py)."""
    from flows.zombies import bury_dead

    told = functools.partial(print, flush=True)
    told(f"starting below {home}: the Prefect server and MLflow (up to a minute the first time) …")
    ensure_mlflow(home, wait=False)
    api = ensure_prefect(home)
    if buried := bury_dead(home, api):
        told(f"marked as crashed: {', '.join(buried)}")
    make_pools(api)
    pools = [pool for pool in POOLS if pool == "cpu-pool" or visible_gpus()]
    for pool in pools:
        ensure(home, f"worker {pool}", 0, lambda port, log, pool=pool: _worker(home, api, pool, log), wait=False)
    told("Prefect answers; deploying the flow …")
    deploy(api, targets)
    told("waiting for MLflow …")
    mlflow = ensure_mlflow(home)
    for pool in pools:
        told(f"waiting for the worker of {pool} …")
        _wait_for_worker(home, api, pool)
    told(
        f"Prefect   {api.removesuffix('/api')}\nMLflow    {mlflow}\nworkers   {', '.join(pools)}   (logs:"
        f" {home / 'logs'})"
    )
    if "gpu-pool" not in pools:
        told(
            "gpu-pool  NO WORKER: this machine shows no GPU, so `prefect deployment run full-pipeline/gpu` waits until"
            f" one comes.\n          On a machine with one: PREFECT_API_URL={api} prefect worker start --pool gpu-pool"
            " --limit 1"
        )
    prefect = "prefect" if shutil.which("prefect") else str(Path(sys.executable).with_name("prefect"))
    told(f"run it    PREFECT_API_URL={api} {prefect} deployment run full-pipeline/cpu --watch")


def down(home: Path) -> None:
    """End what :func:`ensure_prefect`, :func:`ensure_mlflow` and :func:`up` started, workers first; nothing else."""
    if not (home / "services.json").is_file():
        print("nothing to stop")
        return
    with locked(home):
        known = entries(home)
        for name in sorted(known, key=lambda name: (not name.startswith("worker"), name)):
            if ours(home, known[name]):
                end(known[name]["pid"])
                print(f"stopped {name}")
            elif not name.startswith("worker"):
                end_remains(home, name)
            forget(home, name)
    if not known:
        print("nothing to stop")


# -- what is started -------------------------------------------------------------------------------------------------


def _prefect(port: int, log: Path) -> tuple[list[str], dict[str, str]]:
    home = log.parent.parent
    environment = {
        **PREFECT_QUIET,
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_UI_API_URL": f"http://127.0.0.1:{port}/api",  # its page would ask at the usual port
    }
    return [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)], environment


def _mlflow(port: int, log: Path) -> tuple[list[str], dict[str, str]]:
    home = log.parent.parent
    (home / "mlflow").mkdir(parents=True, exist_ok=True)
    mend(home)
    # Without job execution and with one worker: 6 s and 0.5 GB instead of 22 s and 1.2 GB.
    environment = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }
    return [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        tracking_uri(home),
        "--artifacts-destination",
        str(home / "mlflow" / "artifacts"),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ], environment


def _worker(home: Path, api: str, pool: str, log: Path) -> tuple[list[str], dict[str, str]]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {
        **PREFECT_QUIET,
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_API_URL": api,
        "PIPELINE_HOME": str(home),
        "PYTHONPATH": path,
        "PREFECT_WORKER_QUERY_SECONDS": str(POLL_SECONDS),
    }
    return [
        sys.executable,
        "-m",
        "prefect",
        "worker",
        "start",
        "--pool",
        pool,
        "--type",
        "process",
        "--name",
        f"{socket.gethostname()}-{pool}",
        "--limit",
        "1",
    ], environment


def _wait_for_worker(home: Path, api: str, pool: str) -> None:
    entry = entries(home)[f"worker {pool}"]
    deadline = time.monotonic() + START_SECONDS
    name = f"{socket.gethostname()}-{pool}"
    while not any(w["status"] == "ONLINE" and w["name"] == name for w in ask(api, f"work_pools/{pool}/workers/filter")):
        if not alive(entry) or time.monotonic() > deadline:
            raise ServiceError(
                f"the worker of {pool} did not come up; the end of {entry['log']}:\n{last_lines(Path(entry['log']))}"
            )
        time.sleep(0.3)
