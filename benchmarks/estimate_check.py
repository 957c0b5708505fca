"""``pipeline estimate`` against real training on this machine's CPU: step time and peak memory, predicted over
measured.

    taskset -c 0 python benchmarks/estimate_check.py [--only 3.5M,26M,60M] [--steps 6] [--out FILE]

Every row is the real worker under the real launcher, on random tokens. Its step is rank 0's processor time between the
records of the second and the last step but one, so that a busy machine matters less; its memory is the peak resident
size of rank 0, less that of the same worker with a model of 0.1M parameters (imports, allocator, compiler). Predicted
from the shape alone, except for one number, the utilisation: it is taken from a shape's first row, marked *, and held
for its others.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import psutil  # noqa: E402
import train_gpu  # noqa: E402
from specs import spec as make_spec  # noqa: E402

from model.running.estimate.engines import estimate  # noqa: E402
from model.running.estimate.memory import Plan  # noqa: E402
from model.running.machine import cpu_device  # noqa: E402
from model.specs.shape import ModelConfig  # noqa: E402
from model.specs.train import OptimConfig  # noqa: E402
from pipeline.config.resources import Resources  # noqa: E402
from tasks.running import processes  # noqa: E402
from tasks.running.launch import launch  # noqa: E402

SHAPES = {  # model, seq_len, rows of a global batch
    "base": (ModelConfig(vocab_size=512, dim=64, layers=2, heads=4, kv_heads=2, ffn=96), 64, 2),
    "3.5M": (ModelConfig(vocab_size=2000, dim=256, layers=4, heads=4, kv_heads=2, ffn=704), 256, 16),
    "26M": (ModelConfig(vocab_size=6400, dim=512, layers=8, heads=8, kv_heads=4, ffn=1664), 512, 8),
    "60M": (ModelConfig(vocab_size=16000, dim=640, layers=10, heads=10, kv_heads=5, ffn=1792, tied=False), 512, 4),
}
ROWS = (  # shape, engine, ranks, micro-batch, what is different
    ("3.5M", "ddp", 1, 4, {}),
    ("3.5M", "ddp", 1, 1, {}),
    ("3.5M", "ddp", 1, 8, {}),
    ("3.5M", "ddp", 1, 8, {"compile": "on"}),
    ("3.5M", "ddp", 2, 4, {}),
    ("3.5M", "fsdp2", 2, 4, {}),
    ("3.5M", "zero1", 2, 4, {}),
    ("26M", "ddp", 1, 4, {}),
    ("26M", "ddp", 1, 1, {}),
    ("26M", "ddp", 1, 8, {}),
    ("26M", "ddp", 1, 8, {"checkpointing": True}),
    ("26M", "ddp", 1, 4, {"optim": "adamw"}),
    ("26M", "ddp", 2, 2, {}),
    ("26M", "fsdp2", 2, 2, {}),
    ("60M", "ddp", 1, 4, {}),
    ("60M", "ddp", 1, 1, {}),
)


def measure(row: tuple, folder: Path, steps: int) -> dict[str, float]:
    """Seconds of a step, peak resident bytes of rank 0, and the model FLOPs utilisation of the compute alone."""
    size, engine, ranks, micro, other = row
    model, seq_len, rows = SHAPES[size]
    data, out = folder / size, folder / "-".join(map(str, (size, engine, ranks, micro, *other.values())))
    if not data.exists():
        train_gpu.write_tokens(data, "text", model.vocab_size, seq_len * rows * steps, seq_len)
    zero = {"engine": "deepspeed", "zero_stage": int(engine[4:])} if engine.startswith("zero") else {"engine": engine}
    values = {
        "data": str(data),
        "tokenizer": str(folder / "tokenizer"),
        "out": str(out),
        "model": vars(model),
        "seq_len": seq_len,
        "batch_tokens": seq_len * rows,
        "steps": steps,
        "checkpoint_every": 3,
        "eval_tokens": 1,
        "micro_batch": micro,
        "device": "cpu",
        "threads": 1,
        "optim": {"name": other.get("optim", "muon")},
        "compile": other.get("compile", "off"),
        "checkpointing": other.get("checkpointing", False),
        **zero,
    }
    spec = make_spec(**values)
    records: list[dict[str, Any]] = []
    spent: list[float] = []

    def report(record: dict[str, Any]) -> None:
        records.append(record)
        with contextlib.suppress(psutil.Error):
            spent.append(
                next(
                    sum(p.cpu_times()[:2])
                    for p in psutil.Process().children(recursive=True)
                    if p.environ().get("RANK") == "0" and "model.pretrain" in p.cmdline()
                )
            )

    launch("model.pretrain", spec, out, Resources(nproc=ranks, device="cpu", threads=1), report)
    return {
        "seconds": (spent[steps - 2] - spent[1]) / (steps - 3),
        "memory": max(r["memory_bytes"] for r in records if "memory_bytes" in r),
    }


def matmul_rate() -> float:
    """Most FLOPs of an fp32 product of 1024 x 1024 in a second of processor time."""
    import torch

    a, best = torch.randn(1024, 1024), float("inf")
    for _ in range(20):
        start = time.process_time()
        a @ a
        best = min(best, time.process_time() - start)
    return 2 * 1024**3 / best


def predict(row: tuple, device: Any, utilisation: float) -> dict[str, Any]:
    """The calculator's row for the same run."""
    size, engine, ranks, micro, other = row
    model, seq_len, rows = SHAPES[size]
    plan = Plan(
        model,
        OptimConfig(name=other.get("optim", "muon")),
        seq_len,
        seq_len * rows,
        0,
        ranks,
        device,
        micro,
        other.get("checkpointing", False),
        compiled=other.get("compile") == "on",
        utilisation=utilisation,
    )
    return estimate(plan, engine)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", default=",".join(name for name in SHAPES if name != "base"), help="shapes, parted by commas"
    )
    parser.add_argument("--steps", type=int, default=6, help="at least 4")
    parser.add_argument("--out", type=Path, help="write all numbers as JSON")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    processes.POLL_SECONDS = 0.05
    rows = [row for row in ROWS if row[0] in options.only.split(",")]
    utilisation: dict[str, float] = {}
    found = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ.setdefault("PIPELINE_HOME", str(folder / "home"))
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "tokenizer.json").write_text('{"added_tokens": []}')
        (folder / "tokenizer" / "tokenizer_config.json").write_text("{}")
        base: dict[tuple, float] = {}
        for row in rows:
            kind = (row[1], row[2], row[4].get("compile", "off"))
            if kind not in base:
                base[kind] = measure(("base", row[1], row[2], 1, {"compile": kind[2]}), folder, 4)["memory"]
            device = replace(cpu_device(1, "fp32"), flops=matmul_rate())
            real = measure(row, folder, options.steps)
            mark = "" if row[0] in utilisation else "*"
            if mark:
                first = predict(row, device, 0.5)["step"]
                utilisation[row[0]] = (
                    first["compute"] * 0.5 / (real["seconds"] - first["optimizer"] - first["communication"])
                )
                print(
                    f"utilisation measured: {utilisation[row[0]]:.1%} of {device.flops / 1e9:.0f} GFLOP/s", flush=True
                )
            said, real["memory"] = predict(row, device, utilisation[row[0]]), real["memory"] - base[kind]
            found.append({"row": row, "real": real, "said": said, "base": base[kind]})
            need = said["memory"]["total"]
            print(
                f"{row[0] + mark:<6} {row[1]:<6} x{row[2]} micro {row[3]} {' '.join(map(str, row[4].values())):<9} "
                f" step {said['step']['total']:7.2f} s of {real['seconds']:7.2f} s ="
                f" {said['step']['total'] / real['seconds']:.2f}   memory {need / 1e6:7.0f} MB of"
                f" {real['memory'] / 1e6:7.0f} MB = {need / real['memory']:.2f}",
                flush=True,
            )
            if options.out:
                options.out.write_text(json.dumps(found, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
