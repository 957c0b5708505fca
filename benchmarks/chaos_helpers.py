"""What the parts of benchmarks/chaos.py share: whose process is which, the kill, and the book of what was done."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROLES = {
    "flow": ("flows.cli run", "chaos-flow"),
    "tracker": ("tasks.tracking.tracker",),
    "guard": ("running/guard.py",),
    "launcher": ("torch.distributed.run",),
    "rank": ("-m model.", "-u -m model."),
    "worker": ("pipeline.running.worker",),
    "Ray node": ("raylet/raylet",),
    "Prefect server": ("prefect server", "prefect.server"),
    "MLflow server": ("mlflow server", "mlflow.server"),
    "S3 server": ("s3_server.py",),
}
GRACE = "3"


def processes(home: Path) -> dict[int, str]:
    """Role of every living process that works for ``home``, by PIPELINE_HOME in its environment."""
    wanted, found = f"PIPELINE_HOME={home}".encode(), {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if wanted not in (entry / "environ").read_bytes().split(b"\0"):
                continue
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            if (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                continue
        except OSError:
            continue
        # a guard's command line holds its command's: the first role that fits it is looked for from the outside in
        role = next((r for r in ("guard", "launcher", *ROLES) if any(mark in line for mark in ROLES[r])), "other")
        found[int(entry.name)] = role
    return found


def kill(home: Path, role: str, rng: random.Random) -> bool:
    """Kill -9 one process of a role, if there is one."""
    there = sorted(pid for pid, its in processes(home).items() if its == role)
    try:
        os.kill(rng.choice(there), signal.SIGKILL)
    except (IndexError, ProcessLookupError):
        return False
    return True


def left_over(home: Path, but: Collection[str], seconds: float) -> list[str]:
    """Wait until nothing works for ``home`` any more, apart from some roles; what is left after so long."""
    end = time.monotonic() + seconds
    while left := [f"{role} {pid}" for pid, role in processes(home).items() if role not in but]:
        if time.monotonic() > end:
            return left
        time.sleep(0.1)
    return []


class Book:
    """The kills and what was wrong, a line each in a file: the next call goes on from there."""

    def __init__(self, path: Path, kills: int, minutes: float) -> None:
        self.path, self.wanted, self.end = path, kills, time.monotonic() + 60 * minutes

    def note(self, **facts: Any) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"time": round(time.time(), 1), **facts}, ensure_ascii=False) + "\n")
        if "wrong" in facts:
            print(f"  WRONG: {facts['wrong']}", flush=True)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def kills(self) -> list[dict[str, Any]]:
        return [line for line in self.lines() if "role" in line]

    @property
    def enough(self) -> bool:
        return len(self.kills()) >= self.wanted

    @property
    def over(self) -> bool:
        """Whether this call ends: enough was killed, or its time is up."""
        return self.enough or time.monotonic() > self.end

    def report(self) -> int:
        """Print the table; the exit code."""
        kills, rest = self.kills(), [line for line in self.lines() if "role" not in line]
        roles = Counter(line["role"] for line in kills)
        stages = list(dict.fromkeys(line["stage"] for line in kills))
        print(f"\n{len(kills)} kills: " + ", ".join(f"{role} {roles[role]}" for role in ROLES if role in roles))
        for stage in stages:
            own = Counter(line["role"] for line in kills if line["stage"] == stage)
            print(f"  {stage:<14} {sum(own.values()):4}  " + ", ".join(f"{r} {own[r]}" for r in ROLES if r in own))
        done = Counter[str]()
        for line in rest:
            done.update(line.get("done", {}))
        print(", ".join(f"{what} {n:,}" for what, n in sorted(done.items())))
        wrong = [line["wrong"] for line in rest if "wrong" in line]
        print("\n".join(wrong or ["nothing was wrong"]))
        return bool(wrong)


def records(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a curve."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().split("\n") if line.startswith("{") and line.endswith("}")]
