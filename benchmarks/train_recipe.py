"""What the recipe is worth: held-out loss of our default optimizer and schedule beside AdamW as MiniMind sets it, at
equal tokens.

    python benchmarks/train_recipe.py [--corpus FILE.jsonl[.gz]] [--tokens 1000000] [--shares 1,0.6,0.4] [--adamw-lr
    2e-3]

Model (GPT_teacher's 3.5M shape), initial weights, text, order of the rows and batch are the same for all; only
``optim`` differs. Ours is run anew for every share of the tokens, each time with its whole schedule, so that a share is
what a user would really have had to pay. ``--adamw-lr`` adds AdamW at a rate tuned for this size. A corpus line is a
JSON object with a ``text``; without one, the sources of Python's standard library are read. Losses do not depend on how
busy the machine is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from specs import spec as make_spec
from tokens import ROOT, corpus, train_ours

from model.tokens.chat import ChatTokenizer
from pipeline.tokens.encoder import Encoder, dataset_meta, write_meta
from tasks.running.environment import MALLOC

SHAPE = {"dim": 256, "layers": 4, "heads": 4, "kv_heads": 2, "ffn": 704}
MINIMIND = {
    "name": "adamw",
    "lr": 5e-4,
    "weight_decay": 0.01,
    "beta2": 0.999,
    "schedule": "cosine",
    "warmup": 0.0,
    "final": 0.1,
    "spike": 0.0,
}
"""What its ``train_pretrain.py`` uses: torch's AdamW defaults, its rate, and its cosine from the full rate to a
tenth."""
OURS = {"name": "muon", "lr": 6e-3, "schedule": "wsd", "warmup": 0.02, "decay": 0.4}
"""The preset ``tiny``."""
HELD_OUT = 300_000
"""Characters that no run trains on."""


def prepare(texts: list[str], root: Path, vocab: int) -> None:
    """A tokenizer and a dataset below ``root``; the first texts are held out."""
    (root / "tokenizer").mkdir()
    ChatTokenizer(train_ours(texts, vocab)).save(root / "tokenizer")
    chat, meta = Encoder.load(root / "tokenizer"), dataset_meta("text", root / "tokenizer")
    held = int(np.searchsorted(np.cumsum([len(text) for text in texts]), HELD_OUT))
    (root / "text").mkdir()
    for split, part in (("val", texts[:held]), ("train", texts[held:])):
        ids = [[*chat.encode(text), meta["eos_id"]] for text in part]
        count = sum(map(len, ids))
        np.array([i for row in ids for i in row], np.uint16).tofile(root / "text" / f"{split}.bin")
        np.save(root / "text" / f"{split}.idx.npy", np.cumsum([0, *map(len, ids)]).astype(np.int64))
        meta["splits"][split] = {
            "sequences": len(ids),
            "tokens": count,
            "bytes": sum(len(text.encode()) for text in part),
            "supervised": count,
        }
    write_meta(root / "text", meta)


def train(root: Path, options: argparse.Namespace, optim: dict[str, Any], share: float) -> dict[str, float]:
    """The worker's ``result.json`` after ``share`` of the tokens."""
    out = Path(tempfile.mkdtemp(dir=root))
    values = {
        "data": str(root / "text"),
        "tokenizer": str(root / "tokenizer"),
        "out": str(out),
        "seq_len": options.seq_len,
        "batch_tokens": options.batch_tokens,
        "model": SHAPE,
        "steps": round(share * options.tokens / options.batch_tokens),
        "optim": optim,
        "seed": options.seed,
        "checkpoint_every": 1 << 30,
    }
    spec = make_spec(**values)
    (out / "spec.json").write_text(json.dumps(spec))
    environment = {"TORCHINDUCTOR_CACHE_DIR": str(root / "inductor"), **os.environ, **MALLOC, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-m", "model.pretrain", "--spec", str(out / "spec.json")],
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return json.loads((out / "_run" / "result.json").read_text())


def reached(points: list[tuple[float, float]], loss: float) -> str:
    """At which share of the tokens the recipe has ``loss``; ``points`` are (share, loss), interpolated in the logarithm
    of the share."""
    points = sorted(points)
    if points[0][1] <= loss:
        return f"at most {points[0][0]:.0%}"
    for (a, high), (b, low) in pairwise(points):
        if low <= loss <= high:
            return f"{a * (b / a) ** ((high - loss) / (high - low)):.0%}"
    return "not reached"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", help="JSON lines with a text each; default: sources of Python's standard library")
    parser.add_argument("--megabytes", type=float, default=8.0, help="text to read")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="tokens of a whole run")
    parser.add_argument("--shares", default="1,0.6,0.4", help="shares of the tokens at which ours is run")
    parser.add_argument(
        "--adamw-lr", type=float, default=0.0, help="also AdamW with MiniMind's other settings at this rate"
    )
    parser.add_argument("--optim", type=json.loads, default={}, help="JSON of fields to change in our recipe")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        prepare(corpus(options.corpus, int(options.megabytes * 1e6)), root, options.vocab)
        runs = [("AdamW, MiniMind's settings", MINIMIND, 1.0)]
        runs += (
            [(f"AdamW at {options.adamw_lr:g}", MINIMIND | {"lr": options.adamw_lr}, 1.0)] if options.adamw_lr else []
        )
        runs += [("ours", OURS | options.optim, float(share)) for share in options.shares.split(",")]
        found = []
        for name, optim, share in runs:
            result = train(root, options, optim, share)
            found.append((name, share, result["val_loss"]))
            held_out = f"{result['val_loss']:.4f} nats, {result['val_bits_per_byte']:.4f} bits/byte"
            print(f"{name:<28} {share:5.0%} of {options.tokens:,} tokens: {held_out}", flush=True)
    for name, _, loss in found:
        if name != "ours":
            print(
                f"ours reaches the loss of {name} at {reached([(s, v) for n, s, v in found if n == 'ours'], loss)} of"
                " the tokens"
            )


if __name__ == "__main__":
    main()
