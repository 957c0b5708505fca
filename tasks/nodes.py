"""Several machines train together: the one that runs a stage calls, the others have joined and take part.

A call is a directory below ``PIPELINE_HOME/nodes``, which lies in a folder that all machines see under the same path:
``call.json`` (module, spec, resources, address) by the caller, and an empty file per node number, made by whoever takes
that number. So nothing has to be started by ssh, and the number of a node says which ranks it starts.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

CALL = "call.json"


@dataclass(frozen=True)
class Call:
    """What a node needs to know: start ``worker`` (module and arguments) in ``run`` on ``resources``, whose rdzv_endpoint is the caller's address."""

    id: str
    worker: list[str]
    run: str
    resources: dict[str, Any]

    @property
    def endpoint(self) -> tuple[str, int]:
        """Host and port where rank 0's store listens."""
        return split(self.resources["rdzv_endpoint"])


@contextlib.contextmanager
def calling(home: Path, worker: list[str], run: Path, resources: dict[str, Any]) -> Iterator[None]:
    """Other machines may join while this is open."""
    place = home / "nodes" / f"{run.parent.parent.name}-{run.parent.name}"
    shutil.rmtree(place, ignore_errors=True)  # of an attempt that was killed
    place.mkdir(parents=True)
    part = place / f"{CALL}.part"
    part.write_text(json.dumps(asdict(Call(uuid.uuid4().hex, worker, str(run.resolve()), resources))), "utf-8")
    os.replace(part, place / CALL)
    try:
        yield
    finally:
        shutil.rmtree(place, ignore_errors=True)


def find(home: Path, known: set[str]) -> tuple[Path, Call] | None:
    """A call that is not among the ``known`` ids and whose caller can be reached, with its directory."""
    for path in sorted((home / "nodes").glob(f"*/{CALL}")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            call = Call(**json.loads(path.read_text("utf-8")))
            if call.id not in known:
                socket.create_connection(call.endpoint, timeout=5).close()
                return path.parent, call
    return None


def claim(place: Path, nodes: int) -> int | None:
    """The first free node number of a call (1 to ``nodes`` - 1); None when all are taken or the call is over."""
    for number in range(1, nodes):
        with contextlib.suppress(OSError):
            os.close(os.open(place / str(number), os.O_CREAT | os.O_EXCL))
            return number
    return None


def split(endpoint: str) -> tuple[str, int]:
    """Host and port of "HOST:PORT". Raises ValueError for anything else."""
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"resources.rdzv_endpoint must be HOST:PORT of the first node, not {endpoint!r}")
    return host, int(port)


def address_towards(host: str) -> str:
    """This machine's own address on the way to ``host``; sends nothing. Raises OSError when there is no way."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))
        return str(probe.getsockname()[0])


def own_endpoint() -> str:
    """HOST:PORT at which other machines reach this one: the address of its default route, and a free port."""
    try:
        host = address_towards("192.0.2.1")  # a documentation address (RFC 5737): outside, nobody's
    except OSError:
        host = socket.gethostname()
    return f"{host}:{free_port()}"


def interface_towards(host: str) -> str | None:
    """Name of the network interface on the way to ``host``, for gloo, which otherwise goes by what the host name resolves to."""
    with contextlib.suppress(OSError):
        own = address_towards(host)
        return next((name for name, found in psutil.net_if_addrs().items() if any(a.address == own for a in found)), None)
    return None


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])
