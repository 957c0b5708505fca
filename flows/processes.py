"""Background processes of one root: started once, found again, told from strangers, ended with all below them.

An entry of ``<home>/services.json`` is {pid, started, ticks, log, home, port, url}. It counts while that very process
lives, works for this root and, before it is first used, holds its port itself. ``<home>/ports.json`` remembers ports,
so that addresses stay the same from one start to the next.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from storage.errors import Failed
from storage.files import write_json
from storage.lease import start_time
from storage.places import ROOT, below_home

if TYPE_CHECKING:
    import psutil

MARK = "PIPELINE_SERVICE"
"""Variable that tells the processes of a service, whoever started them, when their first one is gone."""
START_SECONDS = 180
STARTS = 3
"""Attempts when somebody else takes the port of a server that starts."""
STOP_SECONDS = 40
"""Longer than the grace that ranks get for their last checkpoint."""


Entry: TypeAlias = dict[str, Any]
"""A service as ``services.json`` has it: ``pid``, when its process ``started`` (seconds since the epoch), its ``log``,
whose ``home`` it is; a server also has a ``port`` and an ``url``."""


class ServiceError(Failed):
    """A service did not start or does not answer; the text names its log and what to change."""


def ensure(
    home: Path, name: str, port: int, start: Callable[[int, Path], tuple[list[str], dict[str, str]]], wait: bool
) -> Entry:
    """The entry of a living service, started if there is none. Two callers at once start it once."""
    with locked(home):
        entry = entries(home).get(name)
        if not entry or not ours(home, entry):
            entry = _started(home, name, port, start)
    for _ in range(STARTS):
        if not wait or _answered(home, name, entry):
            return entry
        with locked(home):  # its port went to somebody else while it started
            if entries(home).get(name) == entry:
                end(entry["pid"])
                entry = _started(home, name, port, start)
            else:
                entry = entries(home).get(name) or entry
    raise ServiceError(f"the {name} server found no port that stays free; see {entry['log']}")


def revive(home: Path, name: str, port: int, start: Callable[[int, Path], tuple[list[str], dict[str, str]]]) -> bool:
    """Start a service again whose process has died; True when it had. One that was stopped has no entry, and stays."""
    entry = entries(home).get(name)
    if not entry or alive(entry):
        return False
    with locked(home):
        same = entries(home).get(name) == entry
        if same:
            _started(home, name, port, start)
        return same


def _started(home: Path, name: str, port: int, start: Callable[[int, Path], tuple[list[str], dict[str, str]]]) -> Entry:
    """Start a service at the port it had last time, if that is free; its entry, also written to services.json."""
    log = home / "logs" / f"{name.replace(' ', '-')}.log"
    below_home(log.parent)
    ports = read_json(home / "ports.json")
    last = ports.get(name, port) if port else 0
    if port:
        end_remains(home, name)
    mark = {MARK: _mark(home, name)}
    entry = {**_spawn(start, _free_port(last, port) if port else 0, log, mark), "home": str(home)}
    if port:
        write_json(home / "ports.json", {**ports, name: entry["port"]})
    write_json(home / "services.json", {**entries(home), name: entry})
    return entry


def ours(home: Path, entry: Entry) -> bool:
    """Whether an entry is of a living service of this root. In a copied home it is the original's and left alone; after
    a move the service works on a folder that is gone, and is ended."""
    if not alive(entry):
        return False
    made_for = entry.get("home", str(home))
    if made_for == str(home):
        return True
    if not Path(made_for).exists():
        end(entry["pid"])
    return False


def _mark(home: Path, name: str) -> str:
    return f"{home}/{name}"


def end_remains(home: Path, name: str) -> None:
    """End what a server left that was killed alone: MLflow's main process has children that go on and hold its port."""
    import psutil

    left: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == _mark(home, name):
                left.append(process)
    for process in left:
        _signal(process, signal.SIGTERM)
    for process in _remaining(left, 5):
        _signal(process, signal.SIGKILL)


def _spawn(
    start: Callable[[int, Path], tuple[list[str], dict[str, str]]], port: int, log: Path, mark: dict[str, str]
) -> Entry:
    import psutil

    command, environment = start(port, log)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT__", "MLFLOW_RUN_ID"))}
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command,
            env={**kept, **environment, **mark},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=_hears_interrupts,
        )
    started = psutil.Process(process.pid).create_time()
    entry = {"pid": process.pid, "started": started, "ticks": start_time(process.pid), "log": str(log)}
    return {**entry, "port": port, "url": f"http://127.0.0.1:{port}"} if port else entry


def _hears_interrupts() -> None:
    """In the child before exec: a shell's background job ignores SIGINT, and so would a service that it starts, but
    Prefect's worker ends itself by SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _answered(home: Path, name: str, entry: Entry) -> bool:
    """Wait until a service answers; False when its port belongs to another process. ServiceError with the end of its
    log when it dies or takes too long."""
    path = "/api/health" if name == "prefect" else "/health"
    deadline = time.monotonic() + START_SECONDS
    while not answers(entry["url"] + path):
        living = alive(entry)
        if not living and _taken(entry["port"]):
            return False
        if not living or time.monotonic() > deadline:
            what = "did not answer in time" if living else "ended while starting"
            raise ServiceError(
                f"the {name} server {what}; the end of {entry['log']}:\n{last_lines(Path(entry['log']))}"
            )
        time.sleep(0.1)
    return _listens(entry)


def _listens(entry: Entry) -> bool:
    """Whether the service itself, and not a stranger, holds its port."""
    import psutil

    for process in _family(entry["pid"]):
        try:
            sockets = process.net_connections("tcp")
        except psutil.AccessDenied:
            return True  # cannot be told here
        except psutil.NoSuchProcess:
            continue
        if any(s.status == psutil.CONN_LISTEN and s.laddr.port == entry["port"] for s in sockets):
            return True
    return False


def _taken(port: int) -> bool:
    """Whether somebody listens at a port of this machine."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def end(pid: int) -> None:
    """SIGTERM to a service and all below it, a wait in which runs write their checkpoint and are recorded, then
    SIGKILL."""
    mine = _family(pid)
    for process in mine:
        if not _is_tracker(process):  # it ends by itself once its flow is gone, after noting that
            _signal(process, signal.SIGTERM)
    left = _remaining(mine, STOP_SECONDS)
    for process in {*left, *_family(pid)}:
        _signal(process, signal.SIGKILL)
    _remaining(left, 5)


def _remaining(processes: list[Any], seconds: float) -> list[Any]:
    """Those that still run after at most ``seconds``. A zombie has ended: in a container whose first process collects
    no children it stays in the process table for ever, and psutil.wait_procs would wait for it."""
    deadline = time.monotonic() + seconds
    while (living := [p for p in processes if _runs(p)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return living


def _runs(process: Any) -> bool:
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _family(pid: int) -> list[psutil.Process]:
    """The process, its descendants, and what is left of its session when a parent between them has died."""
    import psutil

    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            if process.pid == pid or os.getsid(process.pid) == pid:
                found |= {p.pid: p for p in [process, *process.children(recursive=True)]}
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    return list(found.values())


def _is_tracker(process: psutil.Process) -> bool:
    import psutil

    try:
        return "tasks.tracking.tracker" in process.cmdline()
    except psutil.Error:
        return False


def _signal(process: psutil.Process, number: int) -> None:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def alive(entry: Entry) -> bool:
    """Whether the very process of an entry lives (its number may have gone to another one since). Its start counts in
    the kernel's ticks where there are any: a time of day changes when somebody sets the clock."""
    import psutil

    if entry.get("ticks"):
        return start_time(entry["pid"]) == entry["ticks"]
    try:
        process = psutil.Process(entry["pid"])
        return abs(process.create_time() - entry["started"]) < 1 and _runs(process)
    except psutil.NoSuchProcess:
        return False


def entries(home: Path) -> dict[str, Entry]:
    return read_json(home / "services.json")


def read_json(path: Path) -> dict[str, Any]:
    """An object from a small file of ours; {} when it is missing or broken."""
    try:
        found: object = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return cast(dict[str, Any], found) if isinstance(found, dict) else {}


def forget(home: Path, name: str) -> None:
    left = {k: v for k, v in entries(home).items() if k != name}
    write_json(home / "services.json", left)


@contextlib.contextmanager
def locked(home: Path) -> Generator[None]:
    """Only one process at a time starts or stops services of this root."""
    below_home(home)
    with open(home / "services.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _free_port(*wanted: int) -> int:
    """The first of ``wanted`` at which nobody listens, else any free port."""
    for port in (*wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
            except OSError:
                continue
    raise ServiceError("no free TCP port on 127.0.0.1")


def opened(request: str | urllib.request.Request, seconds: float) -> Any:
    """An HTTP answer; never through a proxy, which does not know this machine's ports."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=seconds)


def answers(url: str) -> bool:
    """Whether a health address answers 200."""
    try:
        with opened(url, 3) as answer:
            return answer.status == 200
    except (OSError, ValueError):
        return False


def _login() -> dict[str, str]:
    """The header that a Prefect server with a password (``PREFECT_API_AUTH_STRING``) asks for."""
    login = os.environ.get("PREFECT_API_AUTH_STRING")
    return {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if login else {}


def ask(api: str, path: str, body: Any = None, method: str = "POST") -> Any:
    """What Prefect's API answers at ``path`` (a filter without conditions when there is no body). Raises
    ServiceError."""
    headers = {"Content-Type": "application/json", **_login()}
    try:
        request = urllib.request.Request(f"{api}/{path}", json.dumps(body or {}).encode(), headers, method=method)
        with opened(request, 30) as answer:
            return json.loads(answer.read() or b"null")
    except (OSError, ValueError) as error:
        raise ServiceError(f"the Prefect server at {api} refused {path}: {error}") from error


def delete(api: str, path: str) -> bool:
    """Delete what Prefect's API has at ``path``; whether it was there. Raises ServiceError."""
    try:
        with opened(urllib.request.Request(f"{api}/{path}", headers=_login(), method="DELETE"), 30):
            return True
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return False
        raise ServiceError(f"the Prefect server at {api} does not delete {path}: {error}") from error
    except OSError as error:
        raise ServiceError(f"the Prefect server at {api} does not delete {path}: {error}") from error


def last_lines(log: Path, count: int = 15) -> str:
    return "\n".join(log.read_text("utf-8", "replace").splitlines()[-count:]) if log.exists() else "(no log)"
