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
import os
import pickle
import random
import re
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer_loops import WARM_UP

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from specs import spec as make_spec  # noqa: E402

from model.running.machine import pick_dtype  # noqa: E402
from model.tokens.chat import ChatTokenizer  # noqa: E402
from pipeline.tokens.chats import encode_chats  # noqa: E402
from pipeline.tokens.encoder import dataset_meta, write_meta  # noqa: E402
from pipeline.tokens.pairs import encode_pairs  # noqa: E402
from tasks.running.environment import MALLOC  # noqa: E402

SHAPES = {  # 26m and 256x4 as MiniMind has them (feed-forward pi times the width), teacher as GPT_teacher has it
    "26m": {"dim": 512, "layers": 8, "heads": 8, "kv_heads": 4, "ffn": 1664},
    "256x4": {"dim": 256, "layers": 4, "heads": 8, "kv_heads": 4, "ffn": 832},
    "teacher": {"dim": 256, "layers": 4, "heads": 4, "kv_heads": 2, "ffn": 704},
}
ONE_CORE = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "DS_ACCELERATOR": "cpu",
}
ADAMW = {"name": "adamw", "lr": 5e-4}


class Bench:
    """The data of one run below ``root``, and how contenders are started."""

    def __init__(self, root: Path, options: argparse.Namespace) -> None:
        self.root, self.options = root, options
        self.native_bf16 = pick_dtype("auto", torch.device("cpu")) == torch.bfloat16
        self.tokenizer = root / "tokenizer"
        chat = ChatTokenizer.load(Path(options.minimind) / "model")
        self.tokenizer.mkdir()
        chat.save(self.tokenizer)
        documents = texts(options.megabytes)
        (root / "documents.jsonl").write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8"
        )
        self._encode(chat, documents)
        self._conversations(documents)
        self.spec = {
            "minimind": str(Path(options.minimind).resolve()),
            "documents": str(root / "documents.jsonl"),
            "seq_len": options.seq_len,
            "rows": options.rows,
            "accumulate": options.accumulate,
            "updates": options.updates,
            "tokenizer": str(self.tokenizer),
            "vocab_size": chat.vocab_size,
            "text": str(root / "text" / "train.bin"),
            "chats": str(root / "chats.jsonl"),
            "pairs": str(root / "pairs.jsonl"),
            "bf16": False,
            "compile": False,
        }
        if options.teacher:
            self.spec["teacher"] = str(Path(options.teacher).resolve())
            lines = (Path(options.teacher) / "train" / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()
            asked = [json.loads(line) for line in lines if line.strip()]
            rows = [
                {
                    "messages": [
                        {"role": "user", "content": a["prompt"]},
                        {"role": "assistant", "content": a["completion"]},
                    ],
                    "source": "bench",
                    "path": "bench",
                    "line": i,
                }
                for i, a in enumerate(asked)
            ]
            encode_chats(rows, self.tokenizer, root / "teacher", max_tokens=128)

    def _encode(self, chat: ChatTokenizer, documents: list[str]) -> None:
        held = max(1, len(documents) // 50)
        meta = dataset_meta("text", self.tokenizer)
        (self.root / "text").mkdir()
        for split, part in (("train", documents[held:]), ("val", documents[:held])):
            ids = [[*chat.encode(text), meta["eos_id"]] for text in part]
            np.array([i for row in ids for i in row], np.uint16).tofile(self.root / "text" / f"{split}.bin")
            np.save(self.root / "text" / f"{split}.idx.npy", np.cumsum([0, *map(len, ids)]).astype(np.int64))
            count = sum(map(len, ids))
            meta["splits"][split] = {
                "sequences": len(ids),
                "tokens": count,
                "bytes": sum(len(t.encode()) for t in part),
                "supervised": count,
            }
        write_meta(self.root / "text", meta)

    def _conversations(self, documents: list[str]) -> None:
        """500 questions and answers of lognormal length (about 150 tokens in the mean), and pairs with a wrong
        answer."""
        r, chats, pairs = random.Random(0), [], []
        for i in range(500):
            text, other = documents[i % len(documents)], documents[(i * 7 + 3) % len(documents)]
            size = [int(min(1200, r.lognormvariate(5.3, 0.7))) for _ in range(2)]
            question = {"role": "user", "content": f"Go on: {text[:60].strip() or 'x'}"}
            place = {"source": "bench", "path": "bench", "line": i}
            chats.append(
                {
                    "messages": [
                        question,
                        {"role": "assistant", "content": text[60 : 60 + size[0]].strip() or "nothing"},
                    ],
                    **place,
                }
            )
            pairs.append(
                {
                    "prompt": [question],
                    "chosen": text[60 : 60 + size[0]].strip() or "nothing",
                    "rejected": other[: size[1]].strip() or "else",
                    **place,
                }
            )
        for name, rows, encode in (("chats", chats, encode_chats), ("pairs", pairs, encode_pairs)):
            (self.root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            paired = name == "pairs"  # half of them for validation: what the reference pass costs is measured there
            encode(
                rows,
                self.tokenizer,
                self.root / name,
                max_tokens=self.options.seq_len // (1 + paired),
                val_share=0.5 if paired else 0.02,
            )

    def peer(self, name: str, shape: str, **fields: Any) -> dict[str, float]:
        """A loop of ``peer_loops.py`` in a process of its own."""
        out = Path(tempfile.mkdtemp(dir=self.root))
        (out / "spec.json").write_text(json.dumps(self.spec | SHAPES[shape] | fields | {"out": str(out)}))
        text = call(
            [sys.executable, str(ROOT / "benchmarks" / "peer_loops.py"), name, str(out / "spec.json")],
            out,
            {"HF_HOME": str(self.root / "hf")},
        )
        return json.loads(text.strip().splitlines()[-1])

    def nanogpt(self, shape: str) -> dict[str, float]:
        """nanoGPT's train.py with its CPU settings (fp32, eager) at the same width, layers and sequence length."""
        out, checkout = Path(tempfile.mkdtemp(dir=self.root)), Path(self.options.nanogpt)
        for name in ("train.py", "model.py", "configurator.py"):
            shutil.copy(checkout / name, out)
        (out / "data" / "bench").mkdir(parents=True)
        for split in ("train", "val"):
            shutil.copy(self.root / "text" / f"{split}.bin", out / "data" / "bench")
        (out / "data" / "bench" / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": self.spec["vocab_size"]}))
        s = self.spec | SHAPES[shape]
        settings = {
            "device": "cpu",
            "compile": "False",
            "dataset": "bench",
            "eval_iters": 1,
            "eval_interval": 1 << 20,
            "log_interval": 1,
            "dropout": 0.0,
            "bias": "False",
            "block_size": s["seq_len"],
            "batch_size": s["rows"],
            "gradient_accumulation_steps": s["accumulate"],
            "n_layer": s["layers"],
            "n_head": s["heads"],
            "n_embd": s["dim"],
            "max_iters": s["updates"],
            "dtype": "float32",
        }
        text = call([sys.executable, "train.py", *(f"--{k}={v}" for k, v in settings.items())], out)
        times = [float(ms) for ms in re.findall(r"iter \d+: .* time ([\d.]+)ms", text)][1:]
        rate = s["seq_len"] * s["rows"] * s["accumulate"] / statistics.median(times) * 1e3
        return {"slots": rate, "real": rate}

    def ours(self, shape: str, objective: str = "pretrain", data: str = "text", **fields: Any) -> dict[str, float]:
        """Our worker as the launcher starts it; medians over its steps after the first ones."""
        out = Path(tempfile.mkdtemp(dir=self.root))
        values = {
            "data": str(self.root / data),
            "tokenizer": str(self.tokenizer),
            "out": str(out),
            "seq_len": self.spec["seq_len"],
            "batch_tokens": self.spec["seq_len"] * self.spec["rows"] * self.spec["accumulate"],
            "model": SHAPES[shape] | {"max_seq_len": 2048},
            "steps": self.options.updates,
            "threads": 1,
            "checkpoint_every": 1 << 30,
            "eval_tokens": 1,
            "compile": "on",
        } | fields
        spec = make_spec(objective, **values)
        (out / "_run").mkdir()
        (out / "_run" / "spec.json").write_text(json.dumps(spec))
        more = {
            "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(self.root / "inductor")),
            "PYTHONPATH": str(ROOT),
        }
        call(
            [sys.executable, "-m", f"model.{objective}", "--spec", str(out / "_run" / "spec.json")],
            out,
            MALLOC | more,
        )
        lines = [json.loads(line) for line in (out / "_run" / "metrics.jsonl").open()]
        steps = [
            line
            for line in lines
            if "slots_per_second" in line and line["step"] > (1 if objective == "pretrain" else WARM_UP)
        ]
        found = {
            key: statistics.median(line[key] for line in steps)
            for key in ("slots_per_second", "tokens_per_second", "mfu")
        }
        shutil.rmtree(out / "_run" / "checkpoints", ignore_errors=True)
        return {
            "slots": found["slots_per_second"],
            "real": found["tokens_per_second"],
            "mfu": found["mfu"],
            "reference": self._reference(out),
        }

    def _reference(self, out: Path) -> float:
        """Seconds of the reference pass over the validation split: it follows that over the training split, so
        everything is compiled."""
        files = sorted((out / "_run").glob("reference-*.npy"))  # train, val
        return files[1].stat().st_mtime - files[0].stat().st_mtime if files else 0.0


def call(command: list[str], folder: Path, more: dict[str, str] | None = None) -> str:
    """Run on one thread; its output. Ends the benchmark with the last lines when it fails."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | ONE_CORE | (more or {}),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        sys.exit(f"{' '.join(command[:4])} failed:\n{done.stdout[-3000:]}")
    return done.stdout


def texts(megabytes: float) -> list[str]:
    """Standard library sources cut into documents of lognormal length (mean about 900 characters), in a fixed order."""
    r, found, size = random.Random(0), [], 0
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" in path.parts:
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        at = 0
        while at < len(text):
            part = text[at : at + int(r.lognormvariate(6.5, 0.8)) + 80]
            at += len(part)
            found.append(part)
            size += len(part)
        if size > megabytes * 1e6:
            break
    r.shuffle(found)
    return found


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
