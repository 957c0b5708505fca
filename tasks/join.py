"""Take part in the trainings of other machines: what ``pipeline join`` does until it is interrupted."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from pipeline.sections.resources import Resources
from tasks.failure import WorkerFailed
from tasks.launch import take_part
from tasks.nodes import CALL, claim, find

GRACE_SECONDS = 30.0
"""How long this node's ranks may go on after the caller has ended."""


class _Caller:
    """Looks whether the caller is still there; what its workers report is the caller's to read."""

    def __init__(self, place: Path) -> None:
        self.place, self.there = place, time.monotonic()

    def look(self) -> None:
        now = time.monotonic()
        self.there = now if (self.place / CALL).exists() else self.there
        if now - self.there > GRACE_SECONDS:
            raise WorkerFailed("the node that called has ended", "stopped")

    def deliver(self, last: bool = False) -> None:
        pass


def join(home: Path, say: Callable[[str], None], once: bool = False) -> None:
    """Wait for calls below ``home`` and start this machine's ranks for each; ``once``: leave after the first."""
    known: set[str] = set()
    say(f"ready to join; start `pipeline run … resources.nnodes=N` on one machine with PIPELINE_HOME={home}, a folder that all share")
    while True:
        found = find(home, known)
        if found is None:
            time.sleep(0.5)
            continue
        place, call = found
        known.add(call.id)
        on = Resources(**call.resources)
        number = claim(place, on.nnodes)
        if number is None:
            continue
        say(f"{place.name}: node {number} of {on.nnodes}, {on.nproc} rank(s)")
        try:
            code = take_part(call, number, on, _Caller(place))
            say(f"{place.name}: " + ("done" if code == 0 else f"ended with exit code {code}; log: {call.run}/logs/node-{number}.log"))
        except (WorkerFailed, ValueError, OSError) as error:
            say(f"{place.name}: {error}")
        if once:
            return
