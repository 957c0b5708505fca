"""The contenders of ``train_peers.py``: the texts they all train on, and one process for each of them."""

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
