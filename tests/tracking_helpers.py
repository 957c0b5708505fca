"""What a flow leaves for the tracker, written by hand: run.json, events and artifacts of a small DAG."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

from storage.champions import Champions, Decision
from storage.store import Store

ROOT = Path(__file__).resolve().parent.parent
LONG = {"rules": ["short", "markup"], "optim": {"lr": 0.001, "name": "muon"}, "note": "x" * 7000}
DAG = {  # stage: (inputs, kind, base, metrics)
    "ingest": (["@docs"], "documents", None, {"docs_out": 10, "dropped": {"empty": 2}, "name": "text is no metric"}),
    "pretrain": (["ingest"], "model", None, {"steps": 30, "val_loss": 2.5}),
    "sft": (["pretrain", "@chats"], "model", "pretrain", {"steps": 30, "val_loss": 1.5}),
    "export": (["sft"], "release", "sft", {"bytes": 100}),
}


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class FlowRun:
    """Writes what a flow writes: run.json, events, and the artifacts of the stages that run."""

    def __init__(self, home: Path, name: str) -> None:
        self.home, self.dir = home, home / "runs" / name
        self.dir.mkdir(parents=True)
        facts = {
            "preset": "tiny",
            "overrides": ["pretrain.steps=30"],
            "config": {"pretrain": LONG},
            "git": {"commit": "c" * 40, "dirty": False},
            "argv": ["pipeline", "run", "tiny"],
            "prefect": {"flow_run_id": "flow-1", "url": "http://prefect/runs/flow-run/flow-1"},
        }
        (self.dir / "run.json").write_text(json.dumps(facts))

    def emit(self, event: str, **fields) -> None:
        with open(self.dir / "events.jsonl", "a") as file:
            file.write(json.dumps({"event": event, "time": time.time(), **fields}) + "\n")

    def place(self, stage: str) -> Path:
        return self.home / "store" / stage / sha(stage)[:32]

    def inputs(self, stage: str) -> list[dict]:
        given = []
        for name in DAG[stage][0]:
            if name.startswith("@"):
                given.append(
                    {
                        "name": "sources",
                        "stage": "source",
                        "key": "",
                        "digest": sha(name),
                        "sources": [{"name": name[1:], "digest": sha(name), "files": 3, "bytes": 1000}],
                    }
                )
            else:
                given.append(
                    {
                        "name": name,
                        "stage": name,
                        "key": sha(name)[:32],
                        "digest": sha(name),
                        "path": str(self.place(name)),
                    }
                )
        return given

    def start(self, stage: str) -> Path:
        partial = self.place(stage).with_suffix(".partial")
        (partial / "_run" / "logs").mkdir(parents=True)
        self.emit(
            "stage_started",
            stage=stage,
            key=sha(stage)[:32],
            section=LONG,
            resources={"nproc": 2},
            inputs=self.inputs(stage),
            partial=str(partial),
        )
        if DAG[stage][1] == "model":
            lines = [{"step": s, "total_steps": 30, "time": time.time(), "loss": 3.0 / s} for s in range(1, 31)]
            (partial / "_run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            (partial / "config.json").write_text('{"model_type": "qwen3"}')
        (partial / "stats.json").write_text('{"docs_out": 10}')
        (partial / "_run" / "logs" / "launcher.log").write_text("step 1\n")
        return partial

    def finish(self, stage: str, state: str = "ran", error: str | None = None) -> None:
        path, (_, kind, base, metrics) = self.place(stage), DAG[stage]
        base = base and sha(base)[:32]
        if state == "ran":
            partial = path.with_suffix(".partial")
            (partial / "lineage.json").write_text(
                json.dumps(
                    {
                        "identity": {"section": LONG},
                        "inputs": self.inputs(stage),
                        "metrics": metrics,
                        "seconds": 2.0,
                        "kind": kind,
                        "base": base,
                        "digest": sha(stage),
                    }
                )
            )
            partial.rename(path)
        failed = state == "failed"
        self.emit(
            "stage_finished",
            stage=stage,
            state=state,
            key=sha(stage)[:32],
            digest=None if failed else sha(stage),
            kind=kind,
            base=base,
            error=error,
            path=str(path.with_suffix(".partial") if failed else path),
            seconds=0.0 if state == "cached" else 2.0,
            metrics={} if failed else metrics,
        )

    def decide(self, stage: str, moved: bool) -> None:
        decision: Decision = {
            "preset": "tiny",
            "action": "gate",
            "model": {"stage": stage, "key": sha(stage)[:32], "digest": sha(stage)},
            "moved": moved,
            "before": None,
            "conditions": [{"text": "heldout >= 0.8", "held": moved, "why": "heldout is 0.9, the limit 0.8"}],
            "scores": {},
            "evaluated": "",
            "run": self.dir.name,
            "created": f"2026-{self.dir.name}",
        }
        Champions(Store(self.home / "store")).add(decision)
        self.emit("decision", decision=decision)

    def all(self, state: str) -> None:
        for stage in DAG:
            if state == "ran":
                self.start(stage)
            self.finish(stage, state)
        self.decide("sft", self.dir.name == "first")
        self.emit("run_finished", state="completed", seconds=5.0, error=None)
