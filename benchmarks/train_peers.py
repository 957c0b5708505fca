"""Training beside other projects on one core: same shape, same texts, same number of threads, in one run.

    taskset -c 1 python benchmarks/train_peers.py --minimind CHECKOUT [--nanogpt CHECKOUT] [--only pretrain,sft,dpo,loss]
                                                  [--shape m4|m26] [--updates 12] [--rounds 3] [--loss-tokens 1000000]

- pretrain: our worker against MiniMind's trainer loop and nanoGPT's train.py. Slots a second count padding, real tokens do not.
- sft, dpo: our worker against TRL's trainers in samples (pairs) a second; our reference pass is part of our time.
- loss: our default recipe against AdamW with MiniMind's settings in our trainer, same model, data and tokens: held-out loss,
  and that of our recipe at 60 % of the tokens.

Every contender runs in a process of its own, as it ships: ours with the allocator settings that the launcher gives its
workers, and compiled; theirs in their defaults for a CPU. They take turns, round after round; printed are medians and ratios. Texts are
the sources of this Python's standard library, encoded with MiniMind's tokenizer.
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
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from model.tokenizer import ChatTokenizer  # noqa: E402
from pipeline.chat_tokens import encode_chats, encode_pairs  # noqa: E402
from pipeline.encode import dataset_meta, write_meta  # noqa: E402
from tasks.launch import MALLOC  # noqa: E402

SHAPES = {  # MiniMind's own: heads 8, key heads 4, feed-forward pi times the width
    "m4": {"dim": 256, "layers": 4, "heads": 8, "kv_heads": 4, "ffn": 832},
    "m26": {"dim": 512, "layers": 8, "heads": 8, "kv_heads": 4, "ffn": 1664},
}
ONE_CORE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1",
            "DS_ACCELERATOR": "cpu"}
MINIMIND = {"name": "adamw", "lr": 5e-4, "weight_decay": 0.01, "beta2": 0.999, "schedule": "cosine", "warmup": 0.0, "final": 0.1, "spike": 0.0}
"""What ``train_pretrain.py`` uses: torch's AdamW defaults, its rate, and its cosine from the full rate to a tenth."""


class Bench:
    """The data of one run below ``root``, and how contenders are started."""

    def __init__(self, root: Path, options: argparse.Namespace) -> None:
        self.root, self.options, self.shape = root, options, SHAPES[options.shape]
        self.tokenizer = root / "tokenizer"
        chat = ChatTokenizer.load(Path(options.minimind) / "model")
        self.tokenizer.mkdir()
        chat.save(self.tokenizer)
        documents = texts(options.megabytes)
        (root / "documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
        self._encode(chat, documents)
        self._conversations(documents)
        self.spec = {**self.shape, "minimind": str(Path(options.minimind).resolve()), "documents": str(root / "documents.jsonl"), "seq_len": options.seq_len,
                     "rows": options.rows, "accumulate": 8, "updates": options.updates, "tokenizer": str(self.tokenizer), "vocab_size": chat.vocab_size,
                     "chats": str(root / "chats.jsonl"), "pairs": str(root / "pairs.jsonl"), "bf16": False}

    def _encode(self, chat: ChatTokenizer, documents: list[str]) -> None:
        held = max(1, len(documents) // 50)
        meta = dataset_meta("text", self.tokenizer)
        (self.root / "text").mkdir()
        for split, part in (("train", documents[held:]), ("val", documents[:held])):
            ids = [[*chat.encode(text), meta["eos_id"]] for text in part]
            np.array([i for row in ids for i in row], np.uint16).tofile(self.root / "text" / f"{split}.bin")
            np.save(self.root / "text" / f"{split}.idx.npy", np.cumsum([0, *map(len, ids)]).astype(np.int64))
            count = sum(map(len, ids))
            meta["splits"][split] = {"sequences": len(ids), "tokens": count, "bytes": sum(len(t.encode()) for t in part), "supervised": count}
        write_meta(self.root / "text", meta)

    def _conversations(self, documents: list[str]) -> None:
        """500 questions and answers of lognormal length (about 150 tokens in the mean), and pairs with a wrong answer."""
        r, chats, pairs = random.Random(0), [], []
        for i in range(500):
            text, other = documents[i % len(documents)], documents[(i * 7 + 3) % len(documents)]
            size = [int(min(1200, r.lognormvariate(5.3, 0.7))) for _ in range(2)]
            question = {"role": "user", "content": f"Go on: {text[:60].strip() or 'x'}"}
            place = {"source": "bench", "path": "bench", "line": i}
            chats.append({"messages": [question, {"role": "assistant", "content": text[60:60 + size[0]].strip() or "nothing"}], **place})
            pairs.append({"prompt": [question], "chosen": text[60:60 + size[0]].strip() or "nothing", "rejected": other[:size[1]].strip() or "else", **place})
        for name, rows, encode in (("chats", chats, encode_chats), ("pairs", pairs, encode_pairs)):
            (self.root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            encode(rows, self.tokenizer, self.root / name, max_tokens=self.options.seq_len // (2 if name == "pairs" else 1))

    def peer(self, name: str, **fields: Any) -> dict[str, float]:
        """A loop of ``peer_loops.py`` in a process of its own."""
        out = Path(tempfile.mkdtemp(dir=self.root))
        (out / "spec.json").write_text(json.dumps(self.spec | fields | {"out": str(out)}))
        text = call([sys.executable, str(ROOT / "benchmarks" / "peer_loops.py"), name, str(out / "spec.json")], out, {"HF_HOME": str(self.root / "hf")})
        return json.loads(text.strip().splitlines()[-1])

    def nanogpt(self) -> dict[str, float]:
        """nanoGPT's train.py with its CPU settings (fp32, eager) at the same width, layers and sequence length."""
        out, checkout = Path(tempfile.mkdtemp(dir=self.root)), Path(self.options.nanogpt)
        for name in ("train.py", "model.py", "configurator.py"):
            shutil.copy(checkout / name, out)
        (out / "data" / "bench").mkdir(parents=True)
        for split in ("train", "val"):
            shutil.copy(self.root / "text" / f"{split}.bin", out / "data" / "bench")
        (out / "data" / "bench" / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": self.spec["vocab_size"]}))
        s = self.spec
        settings = {"device": "cpu", "compile": "False", "dataset": "bench", "eval_iters": 1, "eval_interval": 1 << 20, "log_interval": 1, "dropout": 0.0,
                    "bias": "False", "block_size": s["seq_len"], "batch_size": s["rows"], "gradient_accumulation_steps": s["accumulate"],
                    "n_layer": s["layers"], "n_head": s["heads"], "n_embd": s["dim"], "max_iters": s["updates"], "dtype": "float32"}
        text = call([sys.executable, "train.py", *(f"--{k}={v}" for k, v in settings.items())], out)
        times = [float(ms) for ms in re.findall(r"iter \d+: .* time ([\d.]+)ms", text)][3:]
        rate = s["seq_len"] * s["rows"] * s["accumulate"] / statistics.median(times) * 1e3
        return {"slots": rate, "real": rate}

    def ours(self, objective: str = "pretrain", **fields: Any) -> dict[str, float]:
        """Our worker as the launcher starts it; ``result.json`` with the reference pass's seconds beside it."""
        out = Path(tempfile.mkdtemp(dir=self.root))
        data = {"pretrain": "text", "sft": "chats", "dpo": "pairs"}[objective]
        spec = {"objective": objective, "data": str(self.root / data), "tokenizer": str(self.tokenizer), "out": str(out), "seq_len": self.spec["seq_len"],
                "batch_tokens": self.spec["seq_len"] * self.spec["rows"] * (self.spec["accumulate"] if objective == "pretrain" else 1),
                "model": self.shape | {"max_seq_len": 2048}, "steps": self.options.updates, "threads": 1, "checkpoint_every": 1 << 30, "eval_tokens": 1,
                "compile": "off" if self.options.no_compile else "on"} | fields
        (out / "_run").mkdir()
        (out / "_run" / "spec.json").write_text(json.dumps(spec))
        cache = {"TORCHINDUCTOR_CACHE_DIR": str(self.root / "inductor"), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        begin = time.time()
        text = call([sys.executable, "-m", "model.train", "--spec", str(out / "_run" / "spec.json")], out, MALLOC | cache)
        result = json.loads((out / "_run" / "result.json").read_text())
        lines = [json.loads(line) for line in (out / "_run" / "metrics.jsonl").open()]
        shutil.rmtree(out / "_run" / "checkpoints", ignore_errors=True)
        return {**result, "slots": result["slots_per_second"], "real": result["tokens_per_second"], "wall": lines[-1]["time"] - begin, "log": text,
                "reference": self._reference(out)}

    def _reference(self, out: Path) -> float:
        """Seconds of the reference pass: from the worker's choices, written just before it, to its last file."""
        files = [path.stat().st_mtime for path in (out / "_run").glob("reference-*.npy")]
        return max(files) - (out / "_run" / "choices.json").stat().st_mtime if files else 0.0


def call(command: list[str], folder: Path, more: dict[str, str] | None = None) -> str:
    """Run on one thread; its output. Ends the benchmark with the last lines when it fails."""
    done = subprocess.run(command, cwd=folder, env=os.environ | ONE_CORE | (more or {}), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
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
            part = text[at:at + int(r.lognormvariate(6.5, 0.8)) + 80]
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
        print(f"  {name:<34} {statistics.median(values):9.2f} {unit}  (best {max(values):.2f})  ours is {base / statistics.median(values):.2f}x")


def pretrain(bench: Bench) -> None:
    """Slots and real tokens a second of a training step with the real loader."""
    contenders = {"ours": bench.ours, "MiniMind train_pretrain.py": lambda: bench.peer("minimind")}
    if bench.options.nanogpt:
        contenders["nanoGPT train.py"] = bench.nanogpt
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for _ in range(bench.options.rounds):
        for name, run in contenders.items():
            runs[name].append(run())
    for key, what in (("slots", "slots/s"), ("real", "tokens/s")):
        show(f"pretrain {bench.options.shape}, {what}", what, {name: [r[key] for r in found] for name, found in runs.items()})
    print(f"  ours: {statistics.median(r['mfu'] for r in runs['ours']):.1%} of the core's measured matrix-multiply peak")


def tuned(bench: Bench, objective: str, peer: str) -> None:
    """SFT samples or DPO pairs a second, ours with its reference pass."""
    meta = json.loads((bench.root / ("chats" if objective == "sft" else "pairs") / "meta.json").read_text())["splits"]["train"]
    units = meta["sequences"] / (1 if objective == "sft" else 2)
    each = (meta["tokens"] - meta["sequences"]) / units  # a sequence's last token is no input
    runs: dict[str, list[float]] = {"ours": [], f"TRL {objective} fp32": [], f"TRL {objective} bf16": []}
    for _ in range(bench.options.rounds):
        found = bench.ours(objective)
        seconds = each / found["real"] + (found["reference"] / units if objective == "dpo" else 0.0)
        runs["ours"].append(1 / seconds)
        for name, bf16 in ((f"TRL {objective} fp32", False), (f"TRL {objective} bf16", True)):
            runs[name].append(bench.peer(peer, bf16=bf16, rows=16 if objective == "sft" else 4)["samples"])
    show(f"{objective} {bench.options.shape}", "samples/s" if objective == "sft" else "pairs/s", runs)


def loss(bench: Bench) -> None:
    """Held-out loss at equal tokens, and of our recipe at 60 % of them."""
    batch = bench.spec["seq_len"] * bench.spec["rows"] * 2
    steps = max(10, bench.options.loss_tokens // batch)
    common = {"batch_tokens": batch, "eval_tokens": 0}
    runs = {"AdamW, MiniMind's settings": bench.ours(steps=steps, optim=MINIMIND, **common), "our default": bench.ours(steps=steps, **common),
            "our default, 60 % of the tokens": bench.ours(steps=round(0.6 * steps), **common)}
    print(f"\nheld-out loss after {steps * batch:,} tokens ({bench.options.shape})")
    for name, found in runs.items():
        print(f"  {name:<34} {found['val_loss']:.4f} nats, {found['val_bits_per_byte']:.4f} bits/byte")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minimind", required=True, help="checkout of jingyaogong/minimind; its tokenizer is used by all")
    parser.add_argument("--nanogpt", help="checkout of karpathy/nanoGPT")
    parser.add_argument("--only", default="pretrain,sft,dpo,loss")
    parser.add_argument("--shape", choices=SHAPES, default="m4")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--rows", type=int, default=4, help="rows of a micro-batch in pretraining")
    parser.add_argument("--updates", type=int, default=12, help="optimizer steps per measurement, of which three are not counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=float, default=6.0, help="text to train on")
    parser.add_argument("--loss-tokens", type=int, default=1_000_000)
    parser.add_argument("--no-compile", action="store_true", help="ours without torch.compile")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options)
        wanted = options.only.split(",")
        if "pretrain" in wanted:
            pretrain(bench)
        if "sft" in wanted:
            tuned(bench, "sft", "trl_sft")
        if "dpo" in wanted:
            tuned(bench, "dpo", "trl_dpo")
        if "loss" in wanted:
            loss(bench)


if __name__ == "__main__":
    main()
