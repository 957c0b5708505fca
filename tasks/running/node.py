"""One machine of a cluster in a training or scoring stage: an actor that starts this machine's ranks and tells of them.

A machine that sees the caller's folder works in it. Any other one works below a ``PIPELINE_HOME`` of its own: it brings
the inputs from the store that all share, keeps checkpoints on its own disk, and what the first node makes is carried to
the caller. When the actor ends, however it ends, the guard ends its ranks.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import shutil
import socket
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, cast

from storage.code import fingerprint
from storage.digest import VOLATILE, sha256_file, sha256_json
from storage.places import ROOT, home
from storage.store import StoreError, open_store
from tasks.running.command import Meeting, launcher_command
from tasks.running.environment import check_devices, worker_environment
from tasks.running.failure import WorkerFailed
from tasks.running.network import free_port
from tasks.running.processes import logged
from tasks.running.sharing import have_only, sharing
from tasks.running.stage import NEVER, PACKAGES

CHUNK_BYTES = 8 << 20
"""The most of a file that travels at once."""
LOG = "logs/launcher.log"
CURVE = "metrics.jsonl"
OWN_DISK = "PIPELINE_OWN_DISK"
"""Tells ranks that their machines share no folder (model/running/checkpoint.py)."""


@dataclass(frozen=True)
class Work:
    """What every node is told: what to run, and where the caller has it.

    ``needed`` are the absolute paths outside ``home`` that the spec names, ``artifacts`` stage and key of those inside
    its store, ``token`` the text of a file in the caller's folder by which a node knows that it sees it.
    """

    module: str
    spec: str
    home: str
    out: str
    token: str
    needed: tuple[str, ...]
    artifacts: tuple[tuple[str, str], ...]
    environment: dict[str, str]
    single: bool


class Facts(TypedDict):
    """What a node says of itself before anything starts."""

    id: str
    host: str
    address: str
    port: int
    shared: bool
    versions: dict[str, str]


class News(TypedDict):
    """What has come since the last look: the exit code once there is one (or what went wrong in words), the time of
    the last heartbeat, lines for people, and parts of files as (inode, offset, bytes)."""

    code: int | None
    error: str
    notes: list[str]
    start: int
    beat: int
    parts: dict[str, tuple[int, int, bytes]]


OWN = sha256_file(Path(__file__))[:12]


def versions(module: str) -> dict[str, str]:
    """What nodes that compute together must agree in."""
    own = fingerprint((module,), ROOT, PACKAGES, NEVER) if module.startswith("model.") else {}
    return {"torch": importlib.metadata.version("torch").partition("+")[0], "code": sha256_json(own)[:12], "node": OWN}


class Node:
    """This machine as one of a stage's nodes; it gets its number once all are known."""

    def __init__(self, work: Work) -> None:
        self.number, self.work = 0, work
        own = os.environ.get("PIPELINE_HOME")
        elsewhere = bool(own) and Path(str(own)).expanduser().resolve() != Path(work.home)
        self.shared = not elsewhere and _text(Path(work.out) / VOLATILE / ".caller") == work.token
        for name, value in work.environment.items():
            os.environ.setdefault(name, value)
        os.environ["PIPELINE_HOME"] = work.home if self.shared else str(home())
        os.environ.pop("OMP_NUM_THREADS", None)  # Ray's, of one process
        self.out = Path(self._own(work.out))
        self.run = self.out / VOLATILE
        self.notes: list[str] = []
        self._ranks = 0
        self._end: tuple[int | None, str] = (None, "")
        self._stopped = threading.Event()
        self._start = 0

    def facts(self) -> Facts:
        """Who this is, and where rank 0's store could listen."""
        import ray
        from ray.util import (
            get_node_ip_address,  # pyright: ignore[reportUnknownVariableType] - Ray says no types
        )

        return {
            "id": ray.get_runtime_context().get_node_id(),
            "host": socket.gethostname(),
            "address": get_node_ip_address(),
            "port": free_port(),
            "shared": self.shared,
            "versions": versions(self.work.module),
        }

    def prepare(self, number: int, files: dict[str, bytes], checkpoint: str) -> None:
        """Become node ``number``; bring the inputs, ``files`` of the caller's folder and the shared ``checkpoint``
        here. Raises ValueError naming what is not here and cannot be brought."""
        self.number, host = number, socket.gethostname()
        if missing := [path for path in self.work.needed if not os.path.exists(path)]:
            raise ValueError(f"{host} does not have {', '.join(missing)}; put it there, or where all machines see it")
        if self.shared:
            return
        if not os.environ.get("PIPELINE_STORE"):
            raise ValueError(
                f"{host} sees neither {self.work.home}, where the run keeps its files, nor a bucket: put PIPELINE_HOME"
                " in a folder that all machines see under the same path, or share the store (PIPELINE_STORE=s3://…)"
            )
        try:
            store = open_store(home() / "store")
            for stage, key in self.work.artifacts:
                if store.ready(stage, key) is None:
                    raise StoreError(f"{stage}/{key[:12]} is not in the bucket")
            store.partial(self.out.parent.name, self.out.name.removesuffix(".partial"))
            have_only(self.out, checkpoint)
        except StoreError as error:
            raise ValueError(f"{host}: {error}") from error
        for path in self.run.iterdir():
            if path.is_file():
                path.unlink()
        (self.run / "logs").mkdir(exist_ok=True)
        for rel, data in files.items():
            (self.out / rel).parent.mkdir(parents=True, exist_ok=True)
            (self.out / rel).write_bytes(data)
        (self.run / "spec.json").write_text(self._own_spec(), "utf-8")

    def start(self, resources: dict[str, Any], meeting: Meeting | None) -> None:
        """Start this machine's ranks. Raises ValueError when they cannot be had here."""
        from pipeline.config.resources import Resources

        on, work = Resources(**resources), self.work
        check_devices(on)
        environment = worker_environment(on, single=work.single)
        if not self.shared and meeting:
            environment[OWN_DISK] = "1"
        worker = [work.module, "--spec", str(self.run / "spec.json")]
        if work.single:
            command = [sys.executable, "-m", *worker]
        else:
            mine = replace(meeting, node=self.number) if meeting else None
            command = launcher_command(on, worker, environment, self.run, mine)
        log = self.log
        self._start = log.stat().st_size if log.exists() else 0

        def run() -> None:
            try:
                with contextlib.nullcontext() if self.shared or work.single else self._sharing():
                    code = logged(command, environment, log, self)[1]
                    self._ranks = code
                    if code:
                        raise WorkerFailed("", "exit")  # the last checkpoint is still to be sent
                self._end = (0, "")
            except WorkerFailed as error:
                self._end = (self._ranks or 143, str(error))
            except BaseException as error:
                self._end = (1, f"{type(error).__name__}: {error}")

        threading.Thread(target=run, daemon=True).start()

    def _sharing(self) -> contextlib.AbstractContextManager[None]:
        return sharing(self.out, self.notes.append, state=self.number == 0)

    @property
    def log(self) -> Path:
        """What this machine's ranks print."""
        return self.run / (LOG if self.number == 0 or not self.shared else f"logs/node-{self.number}.log")

    def look(self) -> None:
        """Called while the ranks run; ends them when :meth:`stop` was called."""
        if self._stopped.is_set():
            raise WorkerFailed("the caller ended it", "stopped")

    def deliver(self, last: bool = False) -> None:
        """Nothing: the caller asks."""

    def stop(self) -> None:
        """End the ranks; they write a checkpoint first."""
        self._stopped.set()

    def news(self, seen: dict[str, tuple[int, int]]) -> News:
        """What the caller, who has ``seen`` files up to (inode, offset), does not know yet."""
        code, error = self._end  # first: what was written before the end is then among the parts
        parts: dict[str, tuple[int, int, bytes]] = {}
        beat = 0
        if not self.shared:
            names = [LOG, CURVE] if self.number == 0 else [LOG]
            for name in names:
                inode, offset = seen.get(name, (0, self._start if name == LOG else 0))
                if part := _rest(self.run / name, inode, offset):
                    parts[name] = part
            heart = self.run / "heartbeat"
            beat = heart.stat().st_mtime_ns if heart.exists() else 0
        whole = all(len(part[2]) < CHUNK_BYTES for part in parts.values())
        notes, self.notes[:] = list(self.notes), []
        return {
            "code": code if whole else None,
            "error": error,
            "notes": notes,
            "start": self._start,
            "beat": beat,
            "parts": parts,
        }

    def made(self) -> dict[str, int]:
        """Size of every file that the ranks left, apart from checkpoints and logs."""
        return {
            rel: path.stat().st_size
            for path in sorted(self.out.rglob("*"))
            if path.is_file()
            and not path.name.endswith(".tmp")
            and not (rel := path.relative_to(self.out).as_posix()).startswith(
                (f"{VOLATILE}/checkpoints/", f"{VOLATILE}/logs/")
            )
        }

    def read(self, rel: str, offset: int) -> bytes:
        """A part of one of the files that :meth:`made` lists."""
        with open(self.out / rel, "rb") as file:
            file.seek(offset)
            return file.read(CHUNK_BYTES)

    def clean(self) -> None:
        """Take away this machine's own copy of what the caller now has."""
        if not self.shared:
            shutil.rmtree(self.out, ignore_errors=True)

    def _own(self, path: str) -> str:
        inside = not self.shared and path.startswith(self.work.home + os.sep)
        return str(home()) + path.removeprefix(self.work.home) if inside else path

    def _own_spec(self) -> str:
        def own(value: object) -> object:
            if isinstance(value, dict):
                return {key: own(item) for key, item in cast(dict[str, object], value).items()}
            if isinstance(value, list):
                return [own(item) for item in cast(list[object], value)]
            return self._own(value) if isinstance(value, str) else value

        return json.dumps(own(json.loads(self.work.spec)), indent=1, sort_keys=True)


def _rest(path: Path, inode: int, offset: int) -> tuple[int, int, bytes] | None:
    """What a file has from ``offset`` on; from its start when it was replaced or cut; None when nothing is new."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            changed = inode not in (0, status.st_ino) or status.st_size < offset
            offset = 0 if changed else offset
            file.seek(offset)
            data = file.read(CHUNK_BYTES)
    except FileNotFoundError:
        return None
    return (status.st_ino, offset, data) if data or changed else None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError:
        return ""
