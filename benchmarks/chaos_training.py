"""The training part of benchmarks/chaos.py: one small training of two ranks, killed again and again until it ends."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chaos_helpers import GRACE, ROOT, Book, kill, left_over, records

VICTIMS = ("flow", "guard", "launcher", "rank")
STEPS_A_KILL = 6
FLOW = """
import json, sys
from pathlib import Path
from pipeline.config.resources import Resources
from tasks.running import cluster, processes
from tasks.running.launch import launch
processes.POLL_SECONDS, cluster.LOST_SECONDS = 0.1, 1.0
spec, on = json.loads(sys.argv[1]), json.loads(sys.argv[2])
launch("model.pretrain", spec, Path(spec["out"]), Resources(device="cpu", threads=1, **on), lambda record: None)
# chaos-flow
"""


def training(book: Book, scratch: Path, rng: random.Random, ray: bool) -> None:
    """Kill, start again, until enough was killed or the time is up; then the training may end, and is compared."""
    from spec_helpers import spec as make
    from test_model_data import write_tokens

    from model.specs.base import dump

    home, length = scratch / "home", scratch / "steps"
    if not length.exists():  # what was begun stays so long, whatever a later call wants
        length.write_text(str(STEPS_A_KILL * book.wanted))
    steps = int(length.read_text())
    if not (scratch / "text").exists():
        rows = [[*range(3 + i % 40, 60), 0] for i in range(200)]
        write_tokens(scratch / "text", rows, None, "text", 64, [[*range(3, 60), 0]] * 4)
        (scratch / "tokenizer").mkdir()
        (scratch / "tokenizer" / "tokenizer.json").write_text('{"added_tokens": []}')

    def start(name: str, on: dict[str, Any]) -> subprocess.Popen[bytes]:
        shape = {"dim": 32, "layers": 1, "heads": 2, "kv_heads": 2, "ffn": 48}
        places = {"data": str(scratch / "text"), "tokenizer": str(scratch / "tokenizer"), "out": str(scratch / name)}
        spec = dump(make(**places, model=shape, steps=steps, threads=1, checkpoint_every=3, engine="ddp"))
        command = [sys.executable, "-c", FLOW, json.dumps(spec), json.dumps(on)]
        with open(scratch / "flow.log", "ab") as output:
            return subprocess.Popen(command, env=os.environ | environment(home), stdout=output, stderr=output)

    if not (scratch / "undisturbed" / "model.safetensors").exists():
        assert start("undisturbed", {"nproc": 2}).wait() == 0, (scratch / "flow.log").read_text()
    curve = scratch / "killed" / "_run" / "metrics.jsonl"
    with cluster(home) if ray else contextlib.nullcontext() as nodes:
        on = {"nproc": 1, "nnodes": 2, "engine": "ray"} if ray else {"nproc": 2}
        while not book.over:
            flow = start("killed", on)
            strike(flow, curve, steps, book, rng, home, nodes)
            flow.wait()
            check_nothing_left(home, book, ray)
    if not book.enough:
        return
    assert start("killed", {"nproc": 2}).wait() == 0, (scratch / "flow.log").read_text()[-3000:]
    check_nothing_left(home, book, False)
    compare(scratch, curve, steps, book)


def environment(home: Path) -> dict[str, str]:
    return {"PIPELINE_HOME": str(home), "PIPELINE_GRACE_SECONDS": GRACE, "PYTHONPATH": str(ROOT)}


def strike(
    flow: subprocess.Popen[bytes], curve: Path, steps: int, book: Book, rng: random.Random, home: Path, nodes: Any
) -> None:
    """Kill one process of the training, before its first step or some steps after it went on."""
    done = {role: 0 for role in (*VICTIMS, *(["Ray node"] if nodes else []))}
    for line in book.kills():
        done[line["role"]] += 1
    role = min(done, key=lambda role: (done[role], rng.random()))
    before, early, after = last_step(curve), rng.random() < 0.3, rng.randrange(1, 12)
    until = time.monotonic() + rng.uniform(0.2, 6)
    while flow.poll() is None and (
        time.monotonic() < until if early else not before < last_step(curve) - after < steps - before
    ):
        time.sleep(0.01)
    struck = False
    while flow.poll() is None and not struck:  # a launcher that is not there yet is waited for
        struck = nodes.kill(rng) if role == "Ray node" else kill(home, role, rng)
        time.sleep(0.01)
    if struck:
        now = last_step(curve)
        stage = "before its steps" if now <= before else "in its steps"
        book.note(what="training", role=role, stage=stage, step=now, went_on_from=before)
        print(f"  {len(book.kills()):4} {role}, {stage}, step {now}", flush=True)


def check_nothing_left(home: Path, book: Book, ray: bool) -> None:
    """No process of the training lives; those of the cluster itself may."""
    if left := left_over(home, {"Ray node", "other"} if ray else set(), 30):
        book.note(wrong=f"left over: {left}")


def compare(scratch: Path, curve: Path, steps: int, book: Book) -> None:
    """The model and the curve are those of the undisturbed training."""
    models = [(scratch / name / "model.safetensors").read_bytes() for name in ("killed", "undisturbed")]
    if models[0] != models[1]:
        book.note(wrong="the model differs from the undisturbed one")
    curves = [
        {r["step"]: r["loss"] for r in records(scratch / name / "_run" / "metrics.jsonl") if "loss" in r}
        for name in ("killed", "undisturbed")
    ]
    if curves[0] != curves[1]:
        book.note(wrong="the curve differs from the undisturbed one")
    logged = [record["step"] for record in records(curve) if "loss" in record]
    if sorted(logged) != list(range(1, steps + 1)):
        book.note(wrong=f"{len(logged)} steps in the curve, {len(set(logged))} different ones, of {steps}")
    book.note(done={"trainings that ended well": 1, "steps": steps})


def last_step(curve: Path) -> int:
    return max((record.get("step", 0) for record in records(curve)), default=0)


class Nodes:
    """A cluster of a head without processors and two machines with one each, on this one."""

    def __init__(self, home: Path) -> None:
        from ray.cluster_utils import Cluster

        self.env, self.tried = environment(home), 0
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        os.environ["RAY_ADDRESS"] = str(self.cluster.address)
        self.machines = [self.add(), self.add()]

    def add(self) -> Any:
        return self.cluster.add_node(num_cpus=1, env_vars=self.env)

    def kill(self, rng: random.Random) -> bool:
        """Take the power of one machine, and put another in its place."""
        import psutil

        machine = self.machines.pop(rng.randrange(2))
        for raylet in machine.all_processes["raylet"]:
            process = psutil.Process(raylet.process.pid)
            for each in [process, *process.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
        self.cluster.remove_node(machine, allow_graceful=False)
        self.machines.append(self.add())
        return True


@contextlib.contextmanager
def cluster(home: Path) -> Iterator[Nodes]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    nodes = Nodes(home)
    try:
        yield nodes
    finally:
        nodes.cluster.shutdown()
        os.environ.pop("RAY_ADDRESS")
