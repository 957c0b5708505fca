"""The pipeline part of benchmarks/chaos.py: whole runs in a home whose store lies in a bucket, with anything killed.

An attempt takes the artifacts of some stages away (here and in the bucket), starts the run, waits until one of those
stages is at work, kills somebody at a random moment of it, others after that as long as the run lives, and looks at
what is left. The next attempt goes on where it was, and takes other stages' away; so every kill costs seconds, and what
it left behind must be mended by a later one.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from chaos_helpers import GRACE, ROLES, ROOT, Book, kill, left_over, processes, records

from flows.processes import ensure
from flows.services import ensure_mlflow
from storage.store import Store

SERVERS = {"Prefect server", "MLflow server", "S3 server"}
HARMLESS = {"tracker", "MLflow server", "Prefect server"}
"""A run must end well without them, or with those that take their place."""
TRAINING = ("pretrain", "sft", "dpo", "evaluate")
DATA = ("ingest", "clean", "language", "dedup", "decontaminate", "shard", "encode")
WORKS_IN = {"guard": TRAINING, "launcher": TRAINING[:3], "rank": TRAINING, "worker": DATA}
"""Stages in which a role has something to do; any where nothing is said."""
STAYS = {*SERVERS, "other", "worker"}
"""What may live after a run: servers, and idle workers, which leave by themselves."""
NOWHERE = {"Ray node"}
OVERRIDES = [
    "resources.workers=2",
    "resources.checkpoint_every=2",
    "ingest.sources=python-docs,teaching",
    "ingest.python_docs_chars=100000",
]
STUCK_SECONDS = 240


class Place:
    """A home, its servers, and the commands in it."""

    def __init__(self, scratch: Path, preset: str) -> None:
        self.scratch, self.preset, self.home = scratch, preset, scratch / "home"
        self.home.mkdir(exist_ok=True)
        port, ports = 0, scratch / "ports.json"
        if ports.exists():
            port = json.loads(ports.read_text())
        else:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            ports.write_text(json.dumps(port))
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "PIPELINE_"))}
        self.env = kept | {
            "PIPELINE_HOME": str(self.home),
            "PIPELINE_GRACE_SECONDS": GRACE,
            "PYTHONPATH": str(ROOT),
            "PIPELINE_STORE": "s3://chaos/store",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "chaos",
            "AWS_SECRET_ACCESS_KEY": "chaos",
            "AWS_DEFAULT_REGION": "us-east-1",
            "NO_PROXY": "127.0.0.1",
        }
        os.environ.update({"PIPELINE_HOME": str(self.home), "PIPELINE_GRACE_SECONDS": GRACE, "PYTHONPATH": str(ROOT)})
        self.port = port

    def serve(self) -> None:
        """Start the S3 and the MLflow server unless they live."""
        server = [sys.executable, str(ROOT / "benchmarks" / "s3_server.py"), str(self.scratch / "bucket")]
        ensure(self.home, "s3", 0, lambda _, log: ([*server, str(self.port)], {}), wait=False)
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        self.env["MLFLOW_TRACKING_URI"] = os.environ["MLFLOW_TRACKING_URI"] = ensure_mlflow(self.home)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)

    def command(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *words], env=self.env, cwd=self.scratch, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def run(self) -> subprocess.Popen[str]:
        return self.command("run", self.preset, *OVERRIDES, "--json")

    def take_away(self, stage: str) -> None:
        """Remove a stage's artifacts here and in the bucket."""
        shutil.rmtree(self.home / "store" / stage, ignore_errors=True)
        for path in (self.scratch / "bucket").glob(f"chaos%2Fstore%2F{stage}%2F*"):
            path.unlink(missing_ok=True)

    def newest_run(self) -> Path | None:
        return max((p.parent for p in (self.home / "runs").glob("*/run.json")), default=None)


def pipeline(book: Book, scratch: Path, rng: random.Random, preset: str) -> None:
    """Attempts until enough was killed or the time is up; then one undisturbed run, and everything is looked at."""
    place = Place(scratch, preset)
    place.serve()
    known = scratch / "expected.json"
    if not known.exists():
        result = _result(place.run().communicate()[0])
        known.write_text(json.dumps(result))
    expected: dict[str, dict[str, Any]] = json.loads(known.read_text())
    while not book.over:
        attempt(place, expected, book, rng)
    place.serve()
    output = place.run().communicate()[0]
    _compare(output, expected, book)
    check_store(place.home, book)
    check_prefect(place.home, book)
    check_metrics(place, book)
    place.command("down").wait()
    if left := left_over(place.home, set(), 90):
        book.note(wrong=f"left over after `down`: {left}")


def attempt(place: Place, expected: dict[str, dict[str, Any]], book: Book, rng: random.Random) -> None:
    """One run with a kill, or several as long as nobody dies without whom it cannot go on."""
    place.serve()
    role = _next(book, rng)
    stage = rng.choice([name for name in WORKS_IN.get(role, tuple(expected)) if name in expected])
    for name in {stage, *rng.sample(list(expected), 2)}:
        place.take_away(name)
    before, began, dead = place.newest_run(), time.monotonic(), set[str]()
    run = place.run()
    _wait_for(run, place, before, stage)
    while run.poll() is None and dead <= HARMLESS:
        role = role if not dead else _next(book, rng)
        _sleep(run, rng.uniform(0, 1.1 * expected[stage]["seconds"] + 0.3))
        if struck := _strike(run, place, role, book, rng, before):
            dead.add(struck)
    try:
        output = run.communicate(timeout=STUCK_SECONDS)[0]
    except subprocess.TimeoutExpired:
        book.note(wrong=f"a run that does not end after {sorted(dead)} in {stage}")
        os.killpg(run.pid, 9)
        output = run.communicate()[0]
    if left := left_over(place.home, STAYS, 60):
        book.note(wrong=f"left over after {sorted(dead)} in {stage}: {left}")
    check_store(place.home, book)
    book.note(done={"runs": 1, f"ended {run.returncode}": 1, "seconds": round(time.monotonic() - began)})
    if run.returncode == 0:
        _compare(output, expected, book)
    elif "Traceback (most recent call last)" in output:
        book.note(wrong=f"a traceback for the user after {sorted(dead)} in {stage}: …{output[-1500:]}")
    elif dead <= HARMLESS:
        book.note(wrong=f"a run did not outlive {sorted(dead)} in {stage}: {output[-1500:]}")


def _next(book: Book, rng: random.Random) -> str:
    """The role that was killed least so far."""
    done = {role: 0 for role in ROLES if role not in NOWHERE}
    for line in book.kills():
        done[line["role"]] += 1
    return min(done, key=lambda role: (done[role] + rng.random() * 3, role))


def _wait_for(run: subprocess.Popen[str], place: Place, before: Path | None, stage: str) -> None:
    """Wait until a stage is at work in the run."""
    while run.poll() is None and stage not in _at_work(place, before):
        time.sleep(0.02)


def _sleep(run: subprocess.Popen[str], seconds: float) -> None:
    end = time.monotonic() + seconds
    while run.poll() is None and time.monotonic() < end:
        time.sleep(0.01)


def _at_work(place: Place, before: Path | None) -> list[str]:
    """Stages that the present run has begun, in order."""
    directory = place.newest_run()
    if directory is None or directory == before:
        return []
    return [event["stage"] for event in records(directory / "events.jsonl") if event["event"] == "stage_started"]


def _strike(
    run: subprocess.Popen[str], place: Place, role: str, book: Book, rng: random.Random, before: Path | None
) -> str:
    """Kill a role as soon as one of it is there; one that does not come gives way to another. The role that was
    killed, "" when the run ended first."""
    end = time.monotonic() + 2
    while run.poll() is None:
        if kill(place.home, role, rng):
            now = ["start", *_at_work(place, before)][-1]
            book.note(what="pipeline", role=role, stage=now)
            print(f"  {len(book.kills()):4} {role} in {now}", flush=True)
            return role
        if time.monotonic() > end:
            there = sorted({r for r in processes(place.home).values() if r in ROLES} - {"worker"})
            role = rng.choice(there) if there else "flow"
        time.sleep(0.02)
    return ""


def _result(output: str) -> dict[str, dict[str, Any]]:
    """Digest and seconds by stage of what ``--json`` printed; empty when that is no result."""
    start = output.find('{"')
    try:
        result = json.JSONDecoder().raw_decode(output[max(start, 0) :])[0]
        return {s["name"]: {"digest": s["digest"], "seconds": s["built_seconds"]} for s in result["stages"]}
    except (ValueError, KeyError):
        return {}


def _compare(output: str, expected: dict[str, dict[str, Any]], book: Book) -> None:
    found = _result(output)
    wrong = [name for name in expected if found.get(name, {}).get("digest") != expected[name]["digest"]]
    if wrong:
        book.note(wrong=f"digests differ: {wrong} {output[-800:] if not found else ''}")
    else:
        book.note(done={"runs that ended with the digests of the undisturbed one": 1})


def check_store(home: Path, book: Book) -> None:
    """Every artifact is what its manifest says: all files are hashed."""
    store, count = Store(home / "store"), 0
    for record in store.records():
        if problems := store.verify(record["stage"], record["key"]):
            book.note(wrong=f"verify {record['stage']}/{record['key'][:12]}: {problems}")
        count += 1
    book.note(done={"artifacts verified": count})


def check_prefect(home: Path, book: Book) -> None:
    """No run of the home shows Running although its process is gone."""
    services = json.loads((home / "services.json").read_text())
    url = f"{services['prefect']['url']}/api/flow_runs/filter"
    body = json.dumps({"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}}).encode()
    ask = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    stuck = [entry["name"] for entry in json.load(urllib.request.urlopen(ask, timeout=30))]
    if stuck:
        book.note(wrong=f"stuck in Running: {stuck}")


def check_metrics(place: Place, book: Book) -> None:
    """What the curves of the artifacts hold is in MLflow, after it was told what it missed."""
    sync = [sys.executable, "-m", "tasks.tracking.tracker", "--sync", str(place.home)]
    done = subprocess.run(sync, env=place.env, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        book.note(wrong=f"MLflow has not all: {done.stdout[-600:]}{done.stderr[-600:]}")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(place.env["MLFLOW_TRACKING_URI"])
    for curve in sorted((place.home / "store").glob("*/*/_run/metrics.jsonl")):
        note = curve.with_name("mlflow.json")
        steps = {record["step"] for record in records(curve) if "loss" in record}
        if not steps:
            continue
        name = curve.parent.parent.parent.name
        if not note.exists():
            book.note(wrong=f"{name} has no MLflow run")
            continue
        run_id = json.loads(note.read_text())["run_id"]
        logged = {metric.step for metric in client.get_metric_history(run_id, "training/loss")}
        if missing := steps - logged:
            book.note(wrong=f"{name}: {len(missing)} of {len(steps)} steps are not in MLflow")
        book.note(done={"steps found in MLflow": len(steps & logged)})
