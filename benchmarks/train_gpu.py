"""Training speed on one GPU, with the real worker and loader: model FLOPs utilisation over at least 100 steps.

    python benchmarks/train_gpu.py [--only 26M,124M,350M,124M-zero1,124M-sft,124M-dpo,1B-fp8] [--steps 120] [--out F]

Needs torch, numpy, safetensors and tokenizers, and DeepSpeed for the ZeRO rows (they are left out without it). Tokens
are random: speed does not depend on what they say. Every row is a worker process; its rate is slots between the records
of step 20 and the last over the wall time between them, so compiling and start are not in it and data waits are.
Printed are MFU, tokens a second, memory, data wait, and ratios: ZeRO-1 to DDP, SFT and DPO to pretraining.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from specs import spec as make_spec

ROOT = Path(__file__).resolve().parent.parent

SHAPES = {  # model, vocabulary, seq_len, batch_tokens
    "smoke": ({"dim": 64, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 176}, 512, 64, 512),
    "26M": ({"dim": 512, "layers": 8, "heads": 8, "kv_heads": 2, "ffn": 1408}, 6400, 512, 262144),
    "124M": ({"dim": 768, "layers": 12, "heads": 12, "kv_heads": 12, "ffn": 2048}, 50304, 1024, 262144),
    "350M": ({"dim": 1024, "layers": 24, "heads": 16, "kv_heads": 16, "ffn": 2816}, 50304, 1024, 131072),
    "1B": ({"dim": 2048, "layers": 16, "heads": 32, "kv_heads": 8, "ffn": 8192}, 50304, 2048, 65536),
}
ROWS = ("26M", "124M", "350M", "124M-zero1", "124M-sft", "124M-dpo")
FIRST = 20
"""Record from which is measured: everything is compiled and allocated by then."""


def write_tokens(folder: Path, kind: str, vocabulary: int, tokens: int, seq_len: int) -> None:
    """A token dataset of random ids: documents, conversations or pairs of lognormal length, the answer being the second
    half."""
    r = np.random.default_rng(0)
    longest = seq_len // (2 if kind == "pairs" else 1)
    lengths = np.clip(r.lognormal(np.log(longest / 3), 0.7, max(8, 4 * tokens // longest)).astype(np.int64), 8, longest)
    lengths = lengths[: max(4, int(np.searchsorted(np.cumsum(lengths), tokens)) // 2 * 2)]
    folder.mkdir(parents=True)
    splits = {}
    for split, part in (("train", lengths), ("val", lengths[:4])):
        ids = r.integers(3, vocabulary, int(part.sum())).astype(np.uint16)
        ends = np.cumsum(part)
        ids[ends - 1] = 0 if kind == "text" else 2
        ids.tofile(folder / f"{split}.bin")
        np.save(folder / f"{split}.idx.npy", np.concatenate([[0], ends]).astype(np.int64))
        mask = np.ones(len(ids), np.uint8)
        if kind != "text":
            for begin, end in zip(ends - part, ends, strict=True):
                mask[begin : begin + (end - begin) // 2] = 0
            mask.tofile(folder / f"{split}.mask.bin")
        splits[split] = {
            "sequences": len(part),
            "tokens": len(ids),
            "bytes": 4 * len(ids),
            "supervised": int(mask.sum()),
        }
    meta = {
        "format": "tokens/1",
        "kind": kind,
        "dtype": "uint16",
        "vocab_size": vocabulary,
        "eos_id": 0,
        "bos_id": 1,
        "pad_id": 0,
        "tokenizer": "random",
        "splits": splits,
    }
    (folder / "meta.json").write_text(json.dumps(meta))


def run(name: str, root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One row: a shape, with what is different after the dash."""
    size, _, variant = name.partition("-")
    model, vocabulary, seq_len, batch = SHAPES[size]
    objective = variant if variant in ("sft", "dpo") else "pretrain"
    kind = {"pretrain": "text", "sft": "chat", "dpo": "pairs"}[objective]
    data, out = root / f"{size}-{kind}", root / name
    if not data.exists():
        write_tokens(
            data, kind, vocabulary, min(batch * options.steps, 16_000_000 if size != "smoke" else 20_000), seq_len
        )
    (root / "tokenizer").mkdir(exist_ok=True)
    (root / "tokenizer" / "tokenizer.json").write_text('{"added_tokens": []}')
    (root / "tokenizer" / "tokenizer_config.json").write_text("{}")
    values = {
        "data": str(data),
        "tokenizer": str(root / "tokenizer"),
        "out": str(out),
        "model": model | {"max_seq_len": seq_len},
        "seq_len": seq_len,
        "batch_tokens": batch,
        "steps": options.steps,
        "checkpoint_every": 1 << 30,
        "eval_tokens": 1,
        "device": options.device,
        "compile": options.compile,
        "engine": "deepspeed" if variant.startswith("zero") else "fsdp2" if variant == "fsdp2" else "ddp",
        "fp8": variant == "fp8",
        "log_every": 10,
    }
    if variant.startswith("zero"):
        values["zero_stage"] = int(variant.removeprefix("zero"))
    spec = make_spec(objective, **values)
    (out / "_run").mkdir(parents=True)
    (out / "_run" / "spec.json").write_text(json.dumps(spec))
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "TORCHINDUCTOR_CACHE_DIR": str(options.cache),
    }
    if options.device == "cpu":
        env |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", f"model.{objective}", "--spec", str(out / "_run" / "spec.json")],
        env=env,
        text=True,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        return {"row": name, "failed": done.stdout[-2000:]}
    return {
        "row": name,
        "wall_seconds": time.monotonic() - begin,
        **measure(out / "_run", batch),
        "log": done.stdout[-600:],
    }


def measure(folder: Path, batch: int) -> dict[str, Any]:
    """Rates between the record of step FIRST and the last step's, and the worker's own result."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    steps = [line for line in lines if "mfu" in line and line["step"] >= FIRST]
    first, last = steps[0], steps[-1]
    seconds, counted = last["time"] - first["time"], last["step"] - first["step"]
    slots = counted * (batch / seconds)
    scale = last["mfu"] / last["slots_per_second"]  # FLOPs a slot over the peak
    result = json.loads((folder / "result.json").read_text())
    fill = sum(s["tokens_per_second"] / s["slots_per_second"] for s in steps) / len(steps)
    return {
        "parameters": result["parameters"],
        "choices": result["choices"],
        "steps": counted,
        "mfu": slots * scale,
        "slots_per_second": slots,
        "tokens_per_second": slots * fill,
        "ms_per_step": 1e3 * seconds / counted,
        "gigabytes": last["memory_bytes"] / 1e9,
        "data_wait": sum(s["data_wait"] for s in steps[1:]) / max(1, len(steps) - 1),
        "train_loss": result["train_loss"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only",
        default=",".join(ROWS),
        help="rows, parted by commas: SHAPE, SHAPE-zeroN, SHAPE-fsdp2, SHAPE-fp8, SHAPE-sft or SHAPE-dpo",
    )
    parser.add_argument("--steps", type=int, default=120, help="steps of a row; the first 20 are not counted")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--compile", choices=("on", "off", "auto"), default="on")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(tempfile.gettempdir()) / "train-gpu-inductor",
        help="compiled kernels, kept between runs",
    )
    parser.add_argument("--out", type=Path, help="write all numbers as JSON")
    options = parser.parse_args()
    if options.steps <= FIRST + 10:
        parser.error(f"--steps must be above {FIRST + 10}")
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only.split(","):
            if "-zero" in name and importlib.util.find_spec("deepspeed") is None:
                print(f"{name:<12} left out: the package deepspeed is not installed", flush=True)
                continue
            row = rows[name] = run(name, Path(folder), options)
            if "failed" in row:
                print(f"{name:<12} failed:\n{row['failed']}", flush=True)
                continue
            base = rows.get(name.partition("-")[0], {}).get("mfu")
            ratio = f"  {row['mfu'] / base:.2f}x the MFU of {name.partition('-')[0]}" if base and "-" in name else ""
            print(
                f"{name:<12} {row['parameters'] / 1e6:7.1f}M  MFU {row['mfu']:6.1%}  {row['slots_per_second']:10,.0f}"
                f" slots/s {row['tokens_per_second']:10,.0f} tokens/s  {row['ms_per_step']:8.1f} ms/step over"
                f" {row['steps']}  {row['gigabytes']:5.1f} GB  data wait {row['data_wait']:.1%}{ratio}",
                flush=True,
            )
            if options.out:
                options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
