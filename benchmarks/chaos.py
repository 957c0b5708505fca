"""Kills -9 at random moments, and what is left afterwards: no process, no artifact that verifies wrong, no run that
shows Running for ever, no lost metric, and the digests of an undisturbed run.

    python benchmarks/chaos.py training [--kills 100] [--seed 0] [--minutes 60] [--scratch DIR]
    python benchmarks/chaos.py pipeline [--kills 100] [--seed 0] [--minutes 60] [--scratch DIR] [--preset FILE]

``training``: one small training of two ranks is killed again and again, each time in one of its processes (flow, guard,
launcher, rank), before its first step or some steps after it resumed, until it ends by itself.

``pipeline``: whole runs of a preset (default tests/micro.toml) in a home with its own servers; at random moments one of
flow, tracker, guard, launcher, rank, worker, Prefect server and MLflow server is killed, several in an attempt as long
as the flow lives. A run that ends well is compared and begun anew in an empty store.

Linux only: processes are told by PIPELINE_HOME in their environment. Ends with exit code 1 when anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
ROLES = {
    "flow": ("flows.cli run", "chaos-flow"),
    "tracker": ("tasks.tracking.tracker",),
    "guard": ("running/guard.py",),
    "launcher": ("torch.distributed.run",),
    "rank": ("-m model.", "-u -m model."),
    "worker": ("pipeline.running.worker",),
    "Prefect server": ("prefect server",),
    "MLflow server": ("mlflow server", "uvicorn", "mlflow.server"),
}
SERVERS = {"Prefect server", "MLflow server"}
GRACE = "3"
FLOW = """
import json, sys
from pathlib import Path
from pipeline.config.resources import Resources
from tasks.running import processes
from tasks.running.launch import launch
processes.POLL_SECONDS = 0.1
spec = json.loads(sys.argv[1])
launch("model.pretrain", spec, Path(spec["out"]), Resources(device="cpu", threads=1, nproc=2), lambda record: None)
# chaos-flow
"""

MLFLOW = "from flows.services import ensure_mlflow; from storage.places import home; ensure_mlflow(home(), wait=False)"
"""A run needs no MLflow server; this starts the one that `pipeline up` would."""


def processes(home: Path) -> dict[int, str]:
    """Role of every living process that works for ``home``."""
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


def kill(home: Path, roles: list[str], rng: random.Random, counts: Counter[str]) -> str | None:
    """Kill one process: a role by lot among those that are there, then one of them; the role."""
    by_role: dict[str, list[int]] = {}
    for pid, role in sorted(processes(home).items()):
        by_role.setdefault(role, []).append(pid)
    there = [role for role in roles if role in by_role]
    if not there:
        return None
    role = rng.choice(there)
    try:
        os.kill(rng.choice(by_role[role]), signal.SIGKILL)
    except ProcessLookupError:
        return None
    counts[role] += 1
    return role


def quiet(home: Path, but: set[str], seconds: float) -> list[str]:
    """Wait until nothing works for ``home`` any more, apart from some roles; what is left after so long."""
    end = time.monotonic() + seconds
    while left := [f"{role} {pid}" for pid, role in processes(home).items() if role not in but]:
        if time.monotonic() > end:
            return left
        time.sleep(0.1)
    return []


class Tally:
    """What was done and what was wrong."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.kills, self.wrong, self.done = Counter[str](), list[str](), Counter[str]()
        self.limit, self.end = options.kills, time.monotonic() + 60 * options.minutes

    def over(self) -> bool:
        """Whether enough was killed, or the time is up."""
        return sum(self.kills.values()) >= self.limit or time.monotonic() > self.end

    def blame(self, what: str) -> None:
        self.wrong.append(what)
        print(f"  WRONG: {what}", flush=True)

    def report(self) -> int:
        rows = ", ".join(f"{role} {n}" for role, n in sorted(self.kills.items()))
        print(f"\n{sum(self.kills.values())} kills: {rows}")
        print(", ".join(f"{what} {n}" for what, n in sorted(self.done.items())))
        print("\n".join(["nothing was wrong"] if not self.wrong else self.wrong))
        return bool(self.wrong)


def training(options: argparse.Namespace, scratch: Path) -> int:
    """One training killed again and again."""
    from spec_helpers import spec as make
    from test_model_data import write_tokens

    from model.specs.base import dump

    rng, tally, home = random.Random(options.seed), Tally(options), scratch / "home"
    rows = [[*range(3 + i % 40, 60), 0] for i in range(200)]
    write_tokens(scratch / "text", rows, None, "text", 64, [[*range(3, 60), 0]] * 4)
    (scratch / "tokenizer").mkdir()
    (scratch / "tokenizer" / "tokenizer.json").write_text('{"added_tokens": []}')
    steps = 4 * options.kills

    def spec(name: str) -> dict[str, Any]:
        shape = {"dim": 32, "layers": 1, "heads": 2, "kv_heads": 2, "ffn": 48}
        places = {"data": str(scratch / "text"), "tokenizer": str(scratch / "tokenizer"), "out": str(scratch / name)}
        return dump(make(**places, model=shape, steps=steps, threads=1, checkpoint_every=3, engine="ddp"))

    def start(name: str) -> subprocess.Popen[bytes]:
        env = os.environ | {"PIPELINE_HOME": str(home), "PIPELINE_GRACE_SECONDS": GRACE, "PYTHONPATH": str(ROOT)}
        output = open(scratch / "flow.log", "ab")  # noqa: SIM115 - the child's
        return subprocess.Popen([sys.executable, "-c", FLOW, json.dumps(spec(name))], env=env, stderr=output)

    assert start("undisturbed").wait() == 0, (scratch / "flow.log").read_text()
    curve = scratch / "killed" / "_run" / "metrics.jsonl"
    while True:
        flow, before = start("killed"), last_step(curve)
        if not tally.over():
            early, after = rng.random() < 0.3, rng.randrange(1, 12)
            until = time.monotonic() + rng.uniform(0, 6)
            while flow.poll() is None and (
                time.monotonic() < until if early else not before < last_step(curve) - after < steps
            ):
                time.sleep(0.01)
            role = kill(home, ["flow", "guard", "launcher", "rank"], rng, tally.kills)
            tally.done["before the first step" if early else "while it trained"] += role is not None
        code = flow.wait()
        if left := quiet(home, set(), 30):
            tally.blame(f"left over: {left}")
        if not code:
            break
    if model_of(scratch / "killed") != model_of(scratch / "undisturbed"):
        tally.blame("the model differs from the undisturbed one")
    logged = sorted(record["step"] for record in records(curve) if "loss" in record)
    if sorted(set(logged)) != list(range(1, steps + 1)):
        tally.blame("steps are missing from the curve")
    if len(logged) != len(set(logged)):
        tally.blame("steps are twice in the curve")
    tally.done["steps"] = steps
    return tally.report()


def records(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a curve."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().split("\n") if line.startswith("{") and line.endswith("}")]


def last_step(curve: Path) -> int:
    return max((record.get("step", 0) for record in records(curve)), default=0)


def model_of(out: Path) -> bytes:
    return (out / "model.safetensors").read_bytes()


def pipeline(options: argparse.Namespace, scratch: Path) -> int:
    """Whole runs with anything killed."""
    rng, tally, home = random.Random(options.seed), Tally(options), scratch / "home"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
    env |= {"PIPELINE_HOME": str(home), "PIPELINE_GRACE_SECONDS": GRACE, "PYTHONPATH": str(ROOT)}

    def command(*words: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *words], env=env, cwd=scratch, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, **options,
        )  # fmt: skip

    began = time.monotonic()
    run = command("run", options.preset, "--json")
    expected = digests(run.communicate()[0])
    length = time.monotonic() - began
    print(f"undisturbed: {len(expected)} stages in {length:.0f} s", flush=True)
    shutil.rmtree(home / "store")
    while not tally.over():
        subprocess.run([sys.executable, "-c", MLFLOW], env=env, cwd=scratch, check=False)
        run = command("run", options.preset, "--json")
        output = strike(run, home, rng, tally, length)
        left = quiet(home, {*SERVERS, "other", "worker"}, 60)  # idle workers leave by themselves
        if left:
            tally.blame(f"left over after exit code {run.returncode}: {left}")
        tally.done["attempts"] += 1
        if run.returncode == 0:
            tally.done["runs that ended well"] += 1
            if digests(output) != expected:
                tally.blame(f"digests differ: {digests(output)} and {expected}")
            check_store(command, tally)
            shutil.rmtree(home / "store")
        elif "Traceback (most recent call last)" in output:
            tally.blame(f"a traceback for the user: …{output[-1500:]}")
    run = command("run", options.preset, "--json")
    if digests(run.communicate()[0]) != expected:
        tally.blame("the last run differs")
    check_store(command, tally)
    check_prefect(home, tally)
    check_metrics(home, env, tally)
    command("down").wait()
    if left := quiet(home, set(), 90):
        tally.blame(f"left over after `down`: {left}")
    return tally.report()


def strike(run: subprocess.Popen[str], home: Path, rng: random.Random, tally: Tally, length: float) -> str:
    """Kill now and then until the run has ended; its output."""
    output: list[str] = []
    while run.poll() is None and not tally.over():
        until = time.monotonic() + rng.uniform(0, length / 3)
        while run.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        if run.poll() is None and (role := kill(home, list(ROLES), rng, tally.kills)):
            print(f"  {sum(tally.kills.values()):3} {role}", flush=True)
    try:
        output.append(run.communicate(timeout=20 * length + 600)[0])
    except subprocess.TimeoutExpired:
        tally.blame("a run that does not end")
        os.killpg(run.pid, signal.SIGKILL)
        output.append(run.communicate()[0])
    return "".join(output)


def digests(output: str) -> dict[str, str]:
    """Digest by stage of what ``--json`` printed; empty when that is no result."""
    start = output.find('{"')
    try:
        result = json.JSONDecoder().raw_decode(output[start:])[0] if start >= 0 else json.loads(output)
        return {stage["name"]: stage["digest"] for stage in result["stages"]}
    except (ValueError, KeyError):
        return {"no result": output[-500:]}


def check_store(command: Callable[..., subprocess.Popen[str]], tally: Tally) -> None:
    """Every artifact is what its manifest says."""
    verify = command("verify")
    said = verify.communicate()[0]
    if verify.returncode:
        tally.blame(f"verify: {said[-1000:]}")


def check_prefect(home: Path, tally: Tally) -> None:
    """No run of the home shows Running although its process is gone."""
    services = json.loads((home / "services.json").read_text())
    url = f"{services['prefect']['url']}/api/flow_runs/filter"
    body = json.dumps({"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}}).encode()
    ask = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    stuck = [entry["name"] for entry in json.load(urllib.request.urlopen(ask, timeout=30))]
    if stuck:
        tally.blame(f"stuck in Running: {stuck}")


def check_metrics(home: Path, env: dict[str, str], tally: Tally) -> None:
    """What the curves of the artifacts hold is in MLflow, after it was told what it missed."""
    subprocess.run([sys.executable, "-m", "tasks.tracking.tracker", "--sync", str(home)], env=env, check=False)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{home}/mlflow/mlflow.db")
    for curve in sorted((home / "store").glob("*/*/_run/metrics.jsonl")):
        note = curve.with_name("mlflow.json")
        steps = {record["step"] for record in records(curve) if "loss" in record}
        if not steps:
            continue
        if not note.exists():
            tally.blame(f"{curve.parent.parent.parent.name} has no MLflow run")
            continue
        run_id = json.loads(note.read_text())["run_id"]
        logged = {metric.step for metric in client.get_metric_history(run_id, "loss")}
        if missing := steps - logged:
            tally.blame(f"{curve.parent.parent.parent.name}: {len(missing)} of {len(steps)} steps are not in MLflow")
        tally.done["steps found in MLflow"] += len(steps & logged)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("training", "pipeline"))
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--preset", default=str(ROOT / "tests" / "micro.toml"))
    parser.add_argument("--scratch", type=Path)
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="chaos-", dir=options.scratch)).resolve()
    try:
        return {"training": training, "pipeline": pipeline}[options.what](options, scratch)
    finally:
        for pid in processes(scratch / "home"):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
