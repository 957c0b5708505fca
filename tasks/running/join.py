"""Take part in the trainings of other machines: what ``pipeline join`` does until it is interrupted."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from pipeline.config.resources import Resources
from tasks.running.failure import WorkerFailed
from tasks.running.launch import take_part
from tasks.running.nodes import CALL, Claim, claim, find

GRACE_SECONDS = 30.0
"""How long this node's ranks may go on after the caller has ended."""


class _Caller:
    """Looks whether the caller is still there, and shows it that this node is; what its workers report is the caller's
    to read."""

    def __init__(self, own: Claim) -> None:
        self.own, self.there = own, time.monotonic()

    def look(self) -> None:
        now = time.monotonic()
        self.there = now if (self.own.place / CALL).exists() else self.there
        self.own.beat()
        if now - self.there > GRACE_SECONDS:
            raise WorkerFailed("the node that called has ended", "stopped")

    def deliver(self, last: bool = False) -> None:
        pass


def join(home: Path, say: Callable[[str], None], once: bool = False) -> None:
    """Wait for calls below ``home`` and start this machine's ranks for each; ``once``: leave after the first."""
    known: set[str] = set()
    told: set[str] = set()

    def unreachable(what: str, error: OSError) -> None:
        if what not in told:
            say(
                f"{what}: called for, but not reached from here ({error}); its caller has ended, or its port is closed"
                " to this machine"
            )
        told.add(what)

    say(
        f"ready to join; start `pipeline run … resources.nnodes=N` on one machine with PIPELINE_HOME={home}, a folder"
        " that all share"
    )
    while True:
        found = find(home, known, unreachable)
        if found is None:
            time.sleep(0.5)
            continue
        place, call = found
        known.add(call.id)
        on = Resources(**call.resources)
        own = claim(place, on.nnodes)
        if own is None:
            continue
        say(f"{place.name}: node {own.number} of {on.nnodes}, {on.nproc} rank(s)")
        why = "its `pipeline join` was stopped"
        try:
            if not own.wait():
                raise WorkerFailed("the call was over before all nodes had joined", "nodes")
            code = take_part(call, own.number, on, _Caller(own))
            why = f"its ranks ended with exit code {code}; log: {call.run}/logs/node-{own.number}.log" if code else ""
            say(f"{place.name}: {why or 'done'}")
        except (WorkerFailed, ValueError, OSError) as error:
            why = str(error)
            say(f"{place.name}: {why}")
        finally:
            if why:
                own.ended(why)
        if once:
            return
