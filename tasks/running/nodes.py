"""Several machines train together: the one that runs a stage calls, the others have joined and take part.

A call is a directory below ``PIPELINE_HOME/nodes``, which lies in a folder that all machines see under the same path:
``call.json`` (module, spec, resources, address) by the caller, and a file per node number, made by whoever takes that
number. So nothing has to be started by ssh, and the number of a node says which ranks it starts. No rank starts before
all numbers are taken. Until then the caller listens at its address, so that a node only takes a number of a caller that
lives and can be reached; a node's file says who it is, changes while it lives, and says when its ranks have ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from storage.files import write_text

CALL, GO = "call.json", "go"
BEAT_SECONDS = 3.0
"""How often a node's file changes while it takes part."""
SILENCE_SECONDS = 60.0
"""A node's file that has not changed for so long has lost its node; a shared folder may show changes late."""
NOTE_SECONDS = 30.0
"""How often people are told whom the caller waits for."""


@dataclass(frozen=True)
class Call:
    """What a node needs to know: start ``worker`` (module and arguments) in ``run`` on ``resources``, whose
    rdzv_endpoint is the caller's address."""

    id: str
    worker: list[str]
    run: str
    resources: dict[str, Any]

    @property
    def endpoint(self) -> tuple[str, int]:
        """Host and port where rank 0's store listens."""
        return split(self.resources["rdzv_endpoint"])


class Roll:
    """The caller's view of a call: which nodes are there, and which have been lost."""

    def __init__(self, place: Path, nodes: int, endpoint: str) -> None:
        self.place, self.nodes, self.endpoint = place, nodes, endpoint
        self._seen: dict[int, tuple[str, float]] = {}

    def states(self) -> dict[int, dict[str, Any]]:
        """What the nodes that have taken a number say of themselves, by number: ``host``, ``beat``, ``ended`` (why, or
        empty)."""
        found = {}
        for number in range(1, self.nodes):
            with contextlib.suppress(OSError):
                text = (self.place / str(number)).read_text("utf-8")
                found[number] = json.loads(text) if text else {"host": "?", "beat": 0, "ended": ""}  # just taken
        return found

    def lost(self) -> str:
        """Which node has been lost and how, in words; empty when none is."""
        now = time.monotonic()
        for number, state in self.states().items():
            text, since = self._seen.get(number, ("", now))
            self._seen[number] = (str(state["beat"]), since if str(state["beat"]) == text else now)
            if state["ended"]:
                return f"node {number} ({state['host']}): {state['ended']}"
            if now - self._seen[number][1] > SILENCE_SECONDS:
                return (
                    f"node {number} ({state['host']}) has not been heard of for {SILENCE_SECONDS:.0f} s: its machine or"
                    " its `pipeline join` has died"
                )
        return ""

    def wait(self, seconds: float, note: Callable[[str], None], go_on: Callable[[], None]) -> str:
        """Let all nodes start when they are there (empty), or say what went wrong: one was lost, or after ``seconds``
        (0: never) some are missing.

        ``note`` gets a line now and then, and ``go_on`` is called a few times a second and may raise.
        """
        began, told, here = time.monotonic(), 0.0, -1
        with self._listening():
            while True:
                hosts = {n: state["host"] for n, state in self.states().items()}
                if trouble := self.lost():
                    return trouble
                if len(hosts) == self.nodes - 1:
                    (self.place / GO).touch()
                    return ""
                now = time.monotonic()
                known = ", ".join(sorted(hosts.values())) or "none yet"
                missing = (
                    f"{self.nodes - 1 - len(hosts)} of {self.nodes - 1} other node(s) missing at {self.endpoint}"
                    f" (joined: {known})"
                )
                if seconds and now - began > seconds:
                    return missing
                if len(hosts) != here or now - told > NOTE_SECONDS:
                    left = f", giving up in {seconds - (now - began):.0f} s (resources.join_seconds)" if seconds else ""
                    note(f"{missing}: run `pipeline join` there, with PIPELINE_HOME={self.place.parent.parent}{left}")
                    told, here = now, len(hosts)
                go_on()
                time.sleep(0.2)

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        port = split(self.endpoint)[1]
        both = socket.has_dualstack_ipv6()
        try:
            door = socket.create_server(
                ("", port), family=socket.AF_INET6 if both else socket.AF_INET, backlog=128, dualstack_ipv6=both
            )
        except OSError as error:
            raise ValueError(
                f"resources.rdzv_endpoint: cannot listen at port {port} ({error.strerror}); choose another port"
            ) from None
        with door:
            yield


@contextlib.contextmanager
def calling(home: Path, worker: list[str], run: Path, resources: dict[str, Any]) -> Iterator[Roll]:
    """Other machines may join while this is open."""
    place = home / "nodes" / f"{run.parent.parent.name}-{run.parent.name}"
    shutil.rmtree(place, ignore_errors=True)  # of an attempt that was killed
    place.mkdir(parents=True)
    _write(place / CALL, asdict(Call(uuid.uuid4().hex, worker, str(run.resolve()), resources)))
    try:
        yield Roll(place, resources["nnodes"], resources["rdzv_endpoint"])
    finally:
        shutil.rmtree(place, ignore_errors=True)


def find(
    home: Path, known: set[str], unreachable: Callable[[str, OSError], None] = lambda what, error: None
) -> tuple[Path, Call] | None:
    """A call that is not among the ``known`` ids, has a number to take and whose caller can be reached, with its
    directory.

    ``unreachable`` is told (name and address, error) of calls whose caller cannot.
    """
    for path in sorted((home / "nodes").glob(f"*/{CALL}")):
        with contextlib.suppress(OSError, ValueError, TypeError):
            call = Call(**json.loads(path.read_text("utf-8")))
            if call.id in known or all((path.parent / str(n)).exists() for n in range(1, call.resources["nnodes"])):
                continue
            try:
                socket.create_connection(call.endpoint, timeout=5).close()
            except OSError as error:
                unreachable(f"{path.parent.name} at {call.resources['rdzv_endpoint']}", error)
                continue
            return path.parent, call
    return None


class Claim:
    """A node's own number in a call, and its file."""

    def __init__(self, place: Path, number: int) -> None:
        self.place, self.number = place, number
        self.beats, self._last = 0, 0.0

    def wait(self) -> bool:
        """Wait for the other nodes; false when the call is over before they are there."""
        while not (self.place / GO).exists():
            self.beat()
            time.sleep(0.2)
            if not (self.place / CALL).exists():
                return False
        return True

    def beat(self) -> None:
        """Say that this node lives, every :data:`BEAT_SECONDS`."""
        if time.monotonic() - self._last > BEAT_SECONDS:
            self._tell("")

    def ended(self, why: str) -> None:
        """Say that this node takes no part any more."""
        self._tell(why)

    def _tell(self, ended: str) -> None:
        self.beats, self._last = self.beats + 1, time.monotonic()
        if (self.place / CALL).exists():
            with contextlib.suppress(OSError):  # the call may be over
                _write(
                    self.place / str(self.number), {"host": socket.gethostname(), "beat": self.beats, "ended": ended}
                )


def claim(place: Path, nodes: int) -> Claim | None:
    """The first free node number of a call (1 to ``nodes`` - 1); None when all are taken or the call is over."""
    for number in range(1, nodes):
        with contextlib.suppress(OSError):
            os.close(os.open(place / str(number), os.O_CREAT | os.O_EXCL))
            taken = Claim(place, number)
            taken.beat()
            return taken
    return None


def _write(path: Path, values: dict[str, Any]) -> None:
    """Write a small file whole or not at all."""
    write_text(path, json.dumps(values))


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
    """Name of the network interface on the way to ``host``, for gloo, which otherwise goes by what the host name
    resolves to."""
    with contextlib.suppress(OSError):
        own = address_towards(host)
        return next(
            (name for name, found in psutil.net_if_addrs().items() if any(a.address == own for a in found)), None
        )
    return None


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])
