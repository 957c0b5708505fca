"""What the pipeline costs around its stages: start of the command line, plans, cached and executed stages, many runs at
once on one Prefect server. Finishes in about five minutes.

    python benchmarks/overhead.py [--only start,plan,stages,hit,many] [--beside DIR] [--runs 100] [--at-once 10]
        [--artifacts 2000] [--rounds 5] [--scratch DIR]

``--beside`` names another checkout, whose code is measured in turns with this one's. Each side has a home of its own,
with servers of its own that are ended at the end; the runs are of benchmarks/nano.toml.

- ``start``: wall time of ``pipeline --help``, and of ``pipeline run`` to its first line.
- ``plan``: wall time of ``pipeline plan`` over a store of so many artifacts.
- ``stages``: of a run with everything cached the time of the flow, divided by stages; of a run with everything made
  anew what passes at each stage outside of its own function, from the run's events.
- ``hit``: what it costs to be sure of an artifact of 1 GB: published, found again, and found in a copied store.
- ``many``: so many cached runs, some at once: wall time and processor time of each, and whether Prefect and MLflow have
  every one of them whole.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PRESET = ROOT / "benchmarks" / "nano.toml"
DATA = ("ingest", "clean", "language", "dedup", "decontaminate", "shard", "tokenizer", "encode")
"""Stages that nano.toml runs one after the other in the flow's own process."""
SYNC_SECONDS = 120


@dataclass
class Side:
    """A checkout whose code is measured, in a home of its own."""

    name: str
    code: Path
    home: Path

    def env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
        return {**kept, "PIPELINE_HOME": str(self.home), "PYTHONPATH": str(self.code), "OMP_NUM_THREADS": "1"}

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "flows.cli", *words]
        return subprocess.Popen(command, env=self.env(), cwd=self.home.parent, text=True, stdout=subprocess.PIPE)

    def __call__(self, *words: str) -> str:
        """Standard output of ``pipeline words…``."""
        process = self.start(*words)
        output = process.communicate()[0]
        if process.returncode:
            raise SystemExit(f"pipeline {' '.join(words)} -> {process.returncode}")
        return output

    def run(self, *words: str) -> dict[str, Any]:
        return json.loads(self("run", str(PRESET), "--json", *words))

    def seconds(self, *words: str) -> float:
        began = time.perf_counter()
        self(*words)
        return time.perf_counter() - began

    def first_line(self) -> float:
        """Seconds until a run says something."""
        began = time.perf_counter()
        process = self.start("run", str(PRESET))
        assert process.stdout
        process.stdout.readline()
        passed = time.perf_counter() - began
        process.communicate()
        return passed


def show(side: Side, what: str, values: list[float], unit: str = "s") -> None:
    """A line of the table: the middle of all values, and the best and the worst."""
    middle = statistics.median(values)
    print(f"{side.name:<8} {what:<58} {middle:8.3f} {unit:<3} {min(values):8.3f} to {max(values):.3f}", flush=True)


def start(sides: list[Side], options: argparse.Namespace) -> None:
    """Start of the command line."""
    took: dict[tuple[str, str], list[float]] = {}
    for _ in range(options.rounds):
        for side in sides:
            took.setdefault((side.name, "pipeline --help"), []).append(side.seconds("--help"))
            took.setdefault((side.name, "pipeline run, to its first line"), []).append(side.first_line())
    for side in sides:
        for (name, what), values in took.items():
            if name == side.name:
                show(side, what, values)


def plan(sides: list[Side], options: argparse.Namespace) -> None:
    """A plan over a large store."""
    for side in sides:
        grow(side.home / "store", options.artifacts)
    took: dict[str, list[float]] = {}
    for _ in range(options.rounds + 1):
        for side in sides:
            took.setdefault(side.name, []).append(side.seconds("plan", str(PRESET)))
    for side in sides:
        count = len(list((side.home / "store").glob("*/*/lineage.json")))
        show(side, f"pipeline plan over {count:,} artifacts, cached", took[side.name][1:])
        show(side, "  the same, the first time", took[side.name][:1])
    took = {}
    for _ in range(options.rounds):
        for side in sides:
            words = ("plan", str(PRESET), "clean.min_width=4")
            took.setdefault(side.name, []).append(side.seconds(*words))
    for side in sides:
        show(side, "  the same, everything from clean on a miss to explain", took[side.name])


def grow(store: Path, count: int) -> None:
    """Add artifacts to a store until it has so many: copies of those that are there, as if of other seeds."""
    there = sorted(store.glob("*/*/lineage.json"))
    for number in range(max(0, count - len(there))):
        old = there[number % len(there)].parent
        key = f"{number:032x}"
        new = old.with_name(key)
        shutil.copytree(old, new, ignore=shutil.ignore_patterns("_run"))
        record = json.loads((new / "lineage.json").read_text())
        record["key"] = key
        record["identity"]["section"]["seed"] = number
        (new / "lineage.json").write_text(json.dumps(record))


def stages(sides: list[Side], options: argparse.Namespace) -> None:
    """What a stage costs beside its own work."""
    cached: dict[str, list[float]] = {}
    executed: dict[str, list[float]] = {}
    whole: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for side in sides:
            began = time.perf_counter()
            result = side.run()
            whole.setdefault(side.name, []).append(time.perf_counter() - began)
            cached.setdefault(side.name, []).extend(1000 * s for s in gaps(side, result).values())
    for _ in range(2):
        for side in sides:
            result = side.run(*(word for name in DATA for word in ("--refresh", name)), "--until", DATA[-1])
            executed.setdefault(side.name, []).extend(1000 * s for s in gaps(side, result).values())
    for side in sides:
        show(side, "a run with everything cached, servers up", whole[side.name])
        show(side, "  each cached stage of it", cached[side.name], "ms")
        show(side, "an executed stage beside its function", executed[side.name], "ms")


def gaps(side: Side, result: dict[str, Any]) -> dict[str, float]:
    """Seconds from the end of the stage before to a stage's own end, less what its function took; of stages that
    follow each other."""
    lines = (side.home / "runs" / result["run_id"] / "events.jsonl").read_text().splitlines()
    events = [event for line in lines if (event := json.loads(line))["event"] == "stage_finished"]
    found: dict[str, float] = {}
    for before, event in itertools.pairwise(events):
        if "export" not in (before["stage"], event["stage"]):  # which runs beside others
            found[event["stage"]] = event["time"] - before["time"] - event["seconds"]
    return found


HIT = """
import json, os, shutil, sys, time
from pathlib import Path
from storage.store import Store
root, key, took = Path(sys.argv[1]), "k" * 32, {}
def timed(name, do):
    began = time.perf_counter(); result = do(); took[name] = time.perf_counter() - began; return result
store = Store(root / "one")
partial = store.partial("clean", key)
block = os.urandom(1 << 20)
for i in range(32):
    (partial / f"part-{i}.bin").write_bytes(block * 32)
timed("published (hashed, synced, renamed)", lambda: store.publish("clean", key, {"inputs": [], "created": ""}))
timed("found again", lambda: store.ready("clean", key))
shutil.copytree(root / "one", root / "two")
timed("found in a copied store (hashed once)", lambda: Store(root / "two").ready("clean", key))
timed("found there again", lambda: Store(root / "two").ready("clean", key))
(root / "two" / "clean" / key / "part-7.bin").open("r+b").write(b"!")
assert timed("one byte written to: refused", lambda: Store(root / "two").ready("clean", key)) is None
print(json.dumps(took))
"""


def hit(sides: list[Side], options: argparse.Namespace) -> None:
    """What it costs to be sure of an artifact of 1 GB."""
    for side in sides:
        command = [sys.executable, "-c", HIT]
        with tempfile.TemporaryDirectory(dir=side.home.parent) as place:
            done = subprocess.run([*command, place], env=side.env(), cwd=place, text=True, stdout=subprocess.PIPE)
        for what, seconds in json.loads(done.stdout).items():
            show(side, f"1 GB in 32 files, {what}", [1000 * seconds], "ms")


def many(sides: list[Side], options: argparse.Namespace) -> None:
    """Many cached runs at once."""
    for side in sides:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        with ThreadPoolExecutor(options.at_once) as pool:
            walls = list(pool.map(lambda _, side=side: side.seconds("run", str(PRESET), "--json"), range(options.runs)))
        passed = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        show(side, f"{options.runs} cached runs, {options.at_once} at once: each", walls)
        show(side, "  wall time of all, divided by runs", [passed / options.runs])
        show(side, "  processor time of each", [used / options.runs])
        time.sleep(10)  # Prefect writes the last events down
        print(f"{side.name:<8} lost: {lost(side)}", flush=True)


def lost(side: Side) -> str:
    """How many of the home's runs Prefect does not show as completed, and how many MLflow has not whole."""
    subprocess.run([sys.executable, "-m", "tasks.tracking.tracker", "--sync", str(side.home)], env=side.env(),
                   cwd=side.code, stdout=subprocess.DEVNULL, timeout=SYNC_SECONDS, check=False)  # fmt: skip
    code = (
        "import json, sys; from pathlib import Path; from flows.processes import ask, entries\n"
        "home = Path(sys.argv[1]); api = entries(home)['prefect']['url'] + '/api'\n"
        "runs = [json.loads(p.read_text())['prefect']['flow_run_id'] for p in home.glob('runs/*/run.json')]\n"
        "done = {r['id'] for i in range(0, 2000, 200) for r in ask(api, 'flow_runs/filter',"
        " {'flow_runs': {'state': {'type': {'any_': ['COMPLETED']}}}, 'limit': 200, 'offset': i})}\n"
        "whole = [json.loads(p.read_text()).get('complete') for p in home.glob('runs/*/mlflow.json')]\n"
        "def calls(run): return len(json.loads((run / 'summary.json').read_text())['stages'])\n"
        "want = sum(calls(p.parent) for p in home.glob('runs/*/summary.json'))\n"
        "have = ask(api, 'task_runs/count', {'task_runs': {'state': {'type': {'any_': ['COMPLETED']}}}})\n"
        "print(f'{len(set(runs) - done)} of {len(runs)} runs and {want - have} of {want} stages in Prefect,'"
        " f' {len(runs) - sum(whole)} runs in MLflow')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(side.home)], env=side.env(), capture_output=True, text=True)
    return done.stdout.strip() or done.stderr.strip()[-300:]


PARTS = {"start": start, "plan": plan, "stages": stages, "hit": hit, "many": many}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--beside", type=Path, help="another checkout, measured in turns with this one")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--at-once", type=int, default=10)
    parser.add_argument("--artifacts", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scratch", type=Path, help="kept, and taken up again where it is")
    options = parser.parse_args()
    scratch = Path(options.scratch or tempfile.mkdtemp(prefix="overhead-")).resolve()
    named = {"here": ROOT} | ({"beside": options.beside.resolve()} if options.beside else {})
    sides = [Side(name, code, scratch / name / "home") for name, code in named.items()]
    try:
        for side in sides:
            side.home.parent.mkdir(parents=True, exist_ok=True)
            if options.only != "hit":  # which needs no run
                side.run()
        for name in options.only.split(","):
            PARTS[name](sides, options)
    finally:
        for side in sides:
            side("down")
        if not options.scratch:
            shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
