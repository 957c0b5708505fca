"""Services on this machine: Prefect server, MLflow server and process workers, in the background, all below one root.

What is started here is written to ``<home>/services.json`` (pid, start time, port, url, log) and ended by :func:`down`,
which touches nothing else. A service is taken over when its process still lives and answers; a stale entry (reboot,
crash) is replaced. An address in ``PREFECT_API_URL`` or an ``http`` one in ``MLFLOW_TRACKING_URI`` means that somebody
else runs that service: it is checked and used, never started or stopped.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from storage.files import write_json
from storage.places import ROOT
from tasks.tracking.tracker import tracking_uri

POOLS = ("cpu-pool", "gpu-pool")
PREFECT_PORT, MLFLOW_PORT = 4200, 5000
START_SECONDS = 180
STOP_SECONDS = 40
"""Longer than the grace that ranks get for their last checkpoint."""
POLL_SECONDS = 2
"""How often a worker asks for runs; Prefect's default of 10 s feels broken on a laptop."""
PREFECT_QUIET = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "true", "PREFECT_CLI_PROMPT": "false"}


class ServiceError(RuntimeError):
    """A service did not start or does not answer; the text names its log and what to change."""


def ensure_prefect(home: Path, wait: bool = True) -> str:
    """The API URL of a Prefect server: the one in ``PREFECT_API_URL``, a running one of ours, or a new one.

    Also points this process's Prefect files below ``home``. ``wait`` False returns while a new server still boots.
    """
    os.environ.setdefault("PREFECT_HOME", str(home / "prefect"))
    given = os.environ.get("PREFECT_API_URL")
    if given and given != f"{_read(home).get('prefect', {}).get('url')}/api":
        if not _answers(f"{given.rstrip('/')}/health"):
            raise ServiceError(
                f"no Prefect server answers at PREFECT_API_URL={given}; start it, or unset PREFECT_API_URL to get one"
                " here"
            )
        return given
    return _ensure(home, "prefect", PREFECT_PORT, _prefect, wait)["url"] + "/api"


def ensure_mlflow(home: Path, wait: bool = True) -> str:
    """The address of an MLflow server that shows what the runs below ``home`` log; arguments as
    :func:`ensure_prefect`."""
    uri = tracking_uri(home)
    if uri.startswith("http"):
        if wait and not _answers(f"{uri.rstrip('/')}/health"):
            raise ServiceError(
                f"no MLflow server answers at MLFLOW_TRACKING_URI={uri}; start it, or unset MLFLOW_TRACKING_URI to get"
                " one here"
            )
        return uri
    return _ensure(home, "mlflow", MLFLOW_PORT, _mlflow, wait)["url"]


def up(home: Path) -> None:
    """Start everything that ``prefect deployment run full-pipeline/cpu`` needs, deploy, and print where it is."""
    ensure_mlflow(home, wait=False)
    api = ensure_prefect(home)
    _pools(api)
    pools = [pool for pool in POOLS if pool == "cpu-pool" or _has_gpu()]
    for pool in pools:
        _ensure(home, f"worker {pool}", 0, lambda port, log, pool=pool: _worker(home, api, pool, log), wait=False)
    _deploy(api)
    mlflow = ensure_mlflow(home)
    for pool in pools:
        _wait_for_worker(home, api, pool)
    print(
        f"Prefect   {api.removesuffix('/api')}\nMLflow    {mlflow}\nworkers   {', '.join(pools)}   (logs:"
        f" {home / 'logs'})"
    )
    if "gpu-pool" not in pools:
        print(
            f"gpu-pool  no GPU on this machine; on one that has: PREFECT_API_URL={api} prefect worker start --pool"
            " gpu-pool"
        )
    prefect = "prefect" if shutil.which("prefect") else str(Path(sys.executable).with_name("prefect"))
    print(f"run it    PREFECT_API_URL={api} {prefect} deployment run full-pipeline/cpu --watch")


def down(home: Path) -> None:
    """End what :func:`ensure_prefect`, :func:`ensure_mlflow` and :func:`up` started, workers first; nothing else."""
    with _locked(home):
        entries = _read(home)
        for name in sorted(entries, key=lambda name: (not name.startswith("worker"), name)):
            if _alive(entries[name]):
                _end(entries[name]["pid"])
                print(f"stopped {name}")
            _forget(home, name)
    if not entries:
        print("nothing to stop")


# -- one service -----------------------------------------------------------------------------------------------------


def _ensure(home: Path, name: str, port: int, start: Any, wait: bool) -> dict[str, Any]:
    """The entry of a living service, started if there is none. Two callers at once start it once."""
    with _locked(home):
        entry = _read(home).get(name)
        if not entry or not _alive(entry):
            log = home / "logs" / f"{name.replace(' ', '-')}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            entry = _spawn(start, _free_port(port) if port else 0, log)
            write_json(home / "services.json", {**_read(home), name: entry})
    if wait:
        _wait(home, name, entry)
    return entry


def _spawn(start: Any, port: int, log: Path) -> dict[str, Any]:
    import psutil

    command, environment = start(port, log)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT__", "MLFLOW_RUN_ID"))}
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command,
            env={**kept, **environment},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    entry = {"pid": process.pid, "started": psutil.Process(process.pid).create_time(), "log": str(log)}
    return {**entry, "port": port, "url": f"http://127.0.0.1:{port}"} if port else entry


def _wait(home: Path, name: str, entry: dict[str, Any]) -> None:
    """Wait until a service answers; ServiceError with the end of its log when it dies or takes too long."""
    path = "/api/health" if name == "prefect" else "/health"
    deadline = time.monotonic() + START_SECONDS
    while not _answers(entry["url"] + path):
        if not _alive(entry) or time.monotonic() > deadline:
            what = "did not answer in time" if _alive(entry) else "ended while starting"
            raise ServiceError(
                f"the {name} server {what}; the end of {entry['log']}:\n{_last_lines(Path(entry['log']))}"
            )
        time.sleep(0.1)


def _end(pid: int) -> None:
    """SIGTERM to a service and all below it, a wait in which runs write their checkpoint and are recorded, then
    SIGKILL."""
    import psutil

    mine = _family(pid)
    for process in mine:
        if not _is_tracker(process):  # it ends by itself once its flow is gone, after noting that
            _signal(process, signal.SIGTERM)
    _, left = psutil.wait_procs(mine, timeout=STOP_SECONDS)
    for process in {*left, *_family(pid)}:
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(left, timeout=5)


def _family(pid: int) -> list[Any]:
    """The process, its descendants, and what is left of its session when a parent between them has died."""
    import psutil

    found = {}
    for process in psutil.process_iter():
        try:
            if process.pid == pid or os.getsid(process.pid) == pid:
                found |= {p.pid: p for p in [process, *process.children(recursive=True)]}
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    return list(found.values())


def _is_tracker(process: Any) -> bool:
    import psutil

    try:
        return "tasks.tracking.tracker" in process.cmdline()
    except psutil.Error:
        return False


def _signal(process: Any, number: int) -> None:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _alive(entry: dict[str, Any]) -> bool:
    """Whether the very process of an entry lives (its number may have gone to another one since)."""
    import psutil

    try:
        process = psutil.Process(entry["pid"])
        return abs(process.create_time() - entry["started"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# -- what is started -------------------------------------------------------------------------------------------------


def _prefect(port: int, log: Path) -> tuple[list[str], dict[str, str]]:
    home = log.parent.parent
    environment = {
        **PREFECT_QUIET,
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
    }
    return [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)], environment


def _mlflow(port: int, log: Path) -> tuple[list[str], dict[str, str]]:
    home = log.parent.parent
    (home / "mlflow").mkdir(parents=True, exist_ok=True)
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
    ], environment


def _pools(api: str) -> None:
    """Create the process work pools that prefect.yaml names, as far as they are missing."""
    there = {pool["name"] for pool in _ask(api, "work_pools/filter")}
    started = [
        (_prefect_command(api, "work-pool", "create", pool, "--type", "process"), pool)
        for pool in POOLS
        if pool not in there
    ]
    for process, pool in started:
        _finish(process, f"creating work pool {pool}")


def _deploy(api: str) -> None:
    """``prefect deploy --all`` from the project's folder."""
    if not (ROOT / "prefect.yaml").is_file():
        raise ServiceError(f"{ROOT} has no prefect.yaml; `pipeline up` works from a checkout of the project")
    _finish(_prefect_command(api, "--no-prompt", "deploy", "--all"), "prefect deploy --all")


def _prefect_command(api: str, *arguments: str) -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, **PREFECT_QUIET, "PREFECT_API_URL": api, "PYTHONPATH": path}
    return subprocess.Popen(
        [sys.executable, "-m", "prefect", *arguments],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _finish(process: subprocess.Popen[str], what: str) -> None:
    output, _ = process.communicate()
    if process.returncode:
        raise ServiceError(f"{what} failed:\n{output[-3000:]}")


def _wait_for_worker(home: Path, api: str, pool: str) -> None:
    entry = _read(home)[f"worker {pool}"]
    deadline = time.monotonic() + START_SECONDS
    name = f"{socket.gethostname()}-{pool}"
    while not any(
        w["status"] == "ONLINE" and w["name"] == name for w in _ask(api, f"work_pools/{pool}/workers/filter")
    ):
        if not _alive(entry) or time.monotonic() > deadline:
            raise ServiceError(
                f"the worker of {pool} did not come up; the end of {entry['log']}:\n{_last_lines(Path(entry['log']))}"
            )
        time.sleep(0.3)


def _has_gpu() -> bool:
    return bool(list(Path("/dev").glob("nvidia[0-9]*"))) or Path("/dev/dxg").exists()


# -- files and sockets -----------------------------------------------------------------------------------------------


def _read(home: Path) -> dict[str, dict[str, Any]]:
    try:
        return json.loads((home / "services.json").read_text("utf-8"))
    except FileNotFoundError:
        return {}


def _forget(home: Path, name: str) -> None:
    left = {k: v for k, v in _read(home).items() if k != name}
    write_json(home / "services.json", left)


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Only one process at a time starts or stops services of this root."""
    home.mkdir(parents=True, exist_ok=True)
    with open(home / "services.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _free_port(wanted: int) -> int:
    """``wanted`` if nobody listens there, else any free port."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
            except OSError:
                continue
    raise ServiceError("no free TCP port on 127.0.0.1")


def _open(request: str | urllib.request.Request, seconds: float) -> Any:
    """An HTTP answer; never through a proxy, which does not know this machine's ports."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=seconds)


def _answers(url: str) -> bool:
    """Whether a health address answers 200."""
    try:
        with _open(url, 3) as answer:
            return answer.status == 200
    except (OSError, ValueError):
        return False


def _ask(api: str, path: str) -> list[dict[str, Any]]:
    """What Prefect's API lists at ``path`` (a filter without conditions)."""
    try:
        with _open(urllib.request.Request(f"{api}/{path}", b"{}", {"Content-Type": "application/json"}), 30) as answer:
            return json.load(answer)
    except OSError as error:
        raise ServiceError(f"the Prefect server at {api} refused {path}: {error}") from error


def _last_lines(log: Path, count: int = 15) -> str:
    return "\n".join(log.read_text("utf-8", "replace").splitlines()[-count:]) if log.exists() else "(no log)"
