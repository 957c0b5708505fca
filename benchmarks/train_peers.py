"""Training beside other projects on one core: same shape, same texts, same number of threads, in one run.

    taskset -c 1 python benchmarks/train_peers.py --minimind CHECKOUT --nanogpt CHECKOUT --teacher CHECKOUT
                                                  [--only 26m,256x4,sft,dpo,teacher] [--rounds 1] [--accumulate 8]
                                                  [--updates 4]

- 26m: our worker against MiniMind's trainer loop at its 26M shape. Slots a second count padding, real tokens do not.
- 256x4: our worker alone and under DeepSpeed, nanoGPT's train.py, and plain loops over transformers' Qwen3, eager and
  compiled.
- sft, dpo: our worker against TRL's trainers in samples (pairs) a second; our reference pass is part of our time.
- teacher: our SFT against GPT_teacher's trainer on that project's own questions, in real tokens.

Every contender runs in a process of its own, as it ships: ours with the allocator settings that the launcher gives its
workers, and compiled; theirs in their defaults for a CPU (where it multiplies bf16 natively, transformers with autocast
and TRL with ``bf16=True`` too). Pretraining is with our default optimizer, Muon; SFT and DPO use AdamW on both sides,
with equally large batches. Contenders take turns, round after round; printed are medians and ratios. Texts are the
sources of this Python's standard library, encoded with MiniMind's tokenizer. What ours compiles is kept in
``TORCHINDUCTOR_CACHE_DIR`` where that is set.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from peer_bench import ADAMW, Bench


def show(title: str, unit: str, found: dict[str, list[float]]) -> None:
    """Medians and how many times faster the first is."""
    base = statistics.median(next(iter(found.values())))
    print(f"\n{title}")
    for name, values in found.items():
        print(
            f"  {name:<34} {statistics.median(values):9.2f} {unit}  (best {max(values):.2f})  ours is"
            f" {base / statistics.median(values):.2f}x"
        )


def rounds(bench: Bench, contenders: dict[str, Callable[[], dict[str, float]]]) -> dict[str, list[dict[str, float]]]:
    """What every contender gives, round after round."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for _ in range(bench.options.rounds):
        for name, run in contenders.items():
            found[name].append(run())
            print(f"  ({name}: { {key: round(value, 3) for key, value in found[name][-1].items()} })", flush=True)
    return found


def pretrain(bench: Bench, shape: str) -> None:
    """Slots and real tokens a second of a training step with the real loader."""
    contenders: dict[str, Callable[[], dict[str, float]]] = {"ours": lambda: bench.ours(shape)}
    if shape == "26m":
        contenders["MiniMind train_pretrain.py"] = lambda: bench.peer("minimind", shape)
    else:
        contenders["ours, DeepSpeed ZeRO-1, 1 process"] = lambda: bench.ours(shape, engine="deepspeed", zero_stage=1)
        if bench.options.nanogpt:
            contenders["nanoGPT train.py"] = lambda: bench.nanogpt(shape)
        contenders["transformers eager"] = lambda: bench.peer("qwen3", shape)
        name = "transformers autocast and compile" if bench.native_bf16 else "transformers compile, fp32"
        contenders[name] = lambda: bench.peer("qwen3", shape, compile=True, bf16=bench.native_bf16)
    runs = rounds(bench, contenders)
    for key, what in (("slots", "slots/s"), ("real", "tokens/s")):
        show(f"pretrain {shape}, {what}", what, {name: [r[key] for r in found] for name, found in runs.items()})
    print(
        f"  ours: {statistics.median(r['mfu'] for r in runs['ours']):.1%} of the core's measured matrix-multiply peak"
    )


def tuned(bench: Bench, objective: str) -> None:
    """SFT samples or DPO pairs a second at 256x4, ours with its reference pass; batches hold about as many samples as
    TRL's."""
    data, rows = ("chats", 16) if objective == "sft" else ("pairs", 4)
    meta, held = (
        json.loads((bench.root / data / "meta.json").read_text())["splits"][split] for split in ("train", "val")
    )
    units = meta["sequences"] / (1 if objective == "sft" else 2)
    each = (meta["tokens"] - meta["sequences"]) / units  # a sequence's last token is no input
    batch = max(1, round(rows * each / bench.spec["seq_len"])) * bench.spec["seq_len"]

    def ours() -> dict[str, float]:
        found = bench.ours("256x4", objective, data, optim=ADAMW, batch_tokens=batch, steps=10)
        return {
            "samples": 1 / (each / found["real"] + found["reference"] / (held["sequences"] / 2)),
            "real": found["real"],
        }

    contenders: dict[str, Callable[[], dict[str, float]]] = {"ours": ours}
    for bf16 in (False, True)[: 2 if bench.native_bf16 else 1]:
        theirs = {"bf16": bf16, "rows": rows, "updates": 10}
        contenders[f"TRL {objective} {'bf16' if bf16 else 'fp32'}"] = lambda theirs=theirs: bench.peer(
            f"trl_{objective}", "256x4", **theirs
        )
    unit = "samples/s" if objective == "sft" else "pairs/s"
    show(
        f"{objective} 256x4",
        unit,
        {name: [r["samples"] for r in found] for name, found in rounds(bench, contenders).items()},
    )


def teacher(bench: Bench) -> None:
    """Real tokens a second on GPT_teacher's questions: theirs pads each to 128, ours packs them; 2,048 slots an update
    on both sides."""
    runs = rounds(
        bench,
        {
            "ours": lambda: bench.ours(
                "teacher", "sft", "teacher", optim=ADAMW, seq_len=128, batch_tokens=2048, steps=20
            ),
            "GPT_teacher train.py": lambda: bench.peer("teacher", "teacher", updates=20),
        },
    )
    show(
        "teacher's questions, real tokens/s",
        "tokens/s",
        {name: [r["real"] for r in found] for name, found in runs.items()},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--minimind", required=True, help="checkout of jingyaogong/minimind; its tokenizer is used by all"
    )
    parser.add_argument("--nanogpt", help="checkout of karpathy/nanoGPT")
    parser.add_argument("--teacher", help="checkout of helloworldtang/GPT_teacher-3.37M-cn")
    parser.add_argument("--only", default="26m,256x4,sft,dpo,teacher")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--rows", type=int, default=4, help="rows of a micro-batch in pretraining")
    parser.add_argument("--accumulate", type=int, default=8, help="micro-batches of an update in pretraining")
    parser.add_argument(
        "--updates",
        type=int,
        default=4,
        help="updates per measurement in pretraining, of which the first is not counted",
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--megabytes", type=float, default=6.0, help="text to train on")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options)
        for wanted in options.only.split(","):
            if wanted in ("26m", "256x4"):
                pretrain(bench, wanted)
            elif wanted in ("sft", "dpo"):
                tuned(bench, wanted)
            elif options.teacher:
                teacher(bench)


if __name__ == "__main__":
    main()
