"""Training speed on one CPU core, ours against transformers, side by side in one run.

    taskset -c 1 python benchmarks/train_cpu.py [--shape tiny|t3|m4|m26] [--seconds 10] [--rounds 5]

All train the same Qwen3 shape on the same random token windows with AdamW-sized work left out: one measurement is
forward, loss, backward of one micro-batch. Contenders take turns, round after round, so that noise of the machine falls
on all; printed are the median and best tokens a second, the share of the measured bf16 matmul peak, and ratios. First
the losses on one batch are compared: same weights, same data, same loss.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SHAPES = {  # model, rows, seq_len; t3: GPT_teacher's and nanoGPT's size, m4: a small minimind, m26: minimind's 26M
    "tiny": ({"vocab_size": 4096, "dim": 256, "layers": 4, "heads": 4, "kv_heads": 2, "ffn": 704}, 8, 256),
    "t3": ({"vocab_size": 2000, "dim": 256, "layers": 4, "heads": 4, "kv_heads": 2, "ffn": 704}, 16, 128),
    "m4": ({"vocab_size": 6400, "dim": 256, "layers": 4, "heads": 8, "kv_heads": 4, "ffn": 832}, 4, 512),
    "m26": ({"vocab_size": 6400, "dim": 512, "layers": 8, "heads": 8, "kv_heads": 4, "ffn": 1664}, 4, 512),
}
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}


def ours(shape: str, compiled: bool) -> tuple[Callable[[], float], object]:
    """One micro-step of this project's trainer, and the model."""
    import torch

    from model.network.transformer import Transformer, initialize
    from model.running.machine import pick_dtype
    from model.specs.shape import ModelConfig
    from model.training import loss

    values, rows, length = SHAPES[shape]
    model = Transformer(ModelConfig(**values))
    initialize(model, 0)
    model.compute_dtype, model.attention = (
        pick_dtype("auto", torch.device("cpu")),
        ("manual" if length <= 512 else "sdpa"),
    )
    gradient = loss.eager_gradient
    if compiled:
        gradient = torch.compile(loss.chunk_gradient, dynamic=False)
        for block in model.model.layers:
            block.compile(dynamic=False)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    ids = data(shape)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].reshape(-1)
    doc, weight = torch.zeros(rows, length, dtype=torch.int32), torch.full((rows * length,), 1 / (rows * length))

    def step() -> float:
        h = model.hidden(inputs, doc).reshape(rows * length, -1)
        value, _ = loss.cross_entropy(h, model.head, targets, weight, 0.0, gradient)
        value.backward()
        return float(value)

    return step, model


def theirs(shape: str, autocast: bool, compiled: bool, state: dict) -> Callable[[], float]:
    """One micro-step of transformers' Qwen3ForCausalLM with the same weights."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    values = SHAPES[shape][0]
    config = Qwen3Config(
        vocab_size=values["vocab_size"],
        hidden_size=values["dim"],
        intermediate_size=values["ffn"],
        num_hidden_layers=values["layers"],
        num_attention_heads=values["heads"],
        num_key_value_heads=values["kv_heads"],
        head_dim=values["dim"] // values["heads"],
        tie_word_embeddings=True,
        use_cache=False,
        rope_theta=10000.0,
    )
    model = Qwen3ForCausalLM(config).float()
    model.load_state_dict(state, strict=False)
    run = torch.compile(model, dynamic=False) if compiled else model
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    inputs = data(shape)[:, :-1].contiguous()
    targets = data(shape)[:, 1:].contiguous()

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = run(input_ids=inputs).logits
        value = torch.nn.functional.cross_entropy(logits.float().view(-1, logits.shape[-1]), targets.view(-1))
        value.backward()
        return float(value)

    return step


def data(shape: str) -> Tensor:
    """Random token windows [rows, seq_len + 1], the same for all."""
    import torch

    values, rows, length = SHAPES[shape]
    return torch.randint(0, values["vocab_size"], (rows, length + 1), generator=torch.Generator().manual_seed(0))


def measure(steps: dict[str, Callable[[], float]], seconds: float, rounds: int) -> dict[str, list[float]]:
    """Seconds per step of each contender, in turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            end = time.perf_counter() + seconds / rounds
            while True:
                begin = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - begin)
                if time.perf_counter() > end:
                    break
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--seconds", type=float, default=10.0, help="measuring time per contender")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled contenders")
    options = parser.parse_args()
    if "MALLOC_TOP_PAD_" not in os.environ:  # glibc reads these before Python starts; all contenders get them
        sys.exit(
            subprocess.call(
                [sys.executable, *sys.argv],
                env=os.environ | MALLOC | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
            )
        )
    import torch

    from model.running.machine import peak_flops

    torch.set_num_threads(1)
    _, rows, length = SHAPES[options.shape]
    eager, model = ours(options.shape, False)
    state = {k: v.detach().clone() for k, v in model.state_dict().items()}
    steps = {
        "ours": eager,
        "transformers fp32": theirs(options.shape, False, False, state),
        "transformers bf16": theirs(options.shape, True, False, state),
    }
    if not options.no_compile:
        steps |= {
            "ours compiled": ours(options.shape, True)[0],
            "transformers bf16 compiled": theirs(options.shape, True, True, state),
        }
    print("loss on the same batch:", {name: round(step(), 4) for name, step in steps.items()})
    for step in steps.values():
        step()
    peak, flops = peak_flops("cpu", torch.bfloat16), model.config.flops_per_token(length)
    print(
        f"{options.shape}: {model.config.parameters() / 1e6:.2f}M parameters, {rows} x {length} tokens a step, bf16"
        f" matmul peak {peak / 1e9:.0f} GFLOP/s"
    )
    found = measure(steps, options.seconds, options.rounds)
    base = rows * length / statistics.median(found["ours"])
    for name, times in found.items():
        median, best = (rows * length / t for t in (statistics.median(times), min(times)))
        share = f"{median * flops / peak:6.1%} of peak (best {best * flops / peak:.1%})"
        print(f"{name:28s} {median:8.0f} tok/s (best {best:.0f})  {share}  ours is {base / median:.2f}x")


if __name__ == "__main__":
    main()
