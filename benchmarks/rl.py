"""A step of GRPO beside TRL's GRPOTrainer: the same model, prompts, group size and new tokens, on one core.

    taskset -c 0 python benchmarks/rl.py [--dim 512 --layers 8 --new-tokens 64 --steps 3 --dtype bf16]
    python benchmarks/rl.py --device cuda [--prompts 32]

Both sample with their own engine (TRL with transformers' generate, no vLLM), score the answers with the same made-up
reward, and make one update of all weights with AdamW. The two sides take turns as processes; printed are a line as each
ends, the median time of a step (the first is left out) with that of its rollout, and the ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
ANSWERS = 8
QUESTIONS = [f"What is {i} + {i * 7 % 13}? Tell the number and nothing else." for i in range(64)]


def worth(text: str) -> float:
    """A reward that half of all answers earn, whatever they say."""
    return float(zlib.crc32(text.encode()) % 2)


def model_dir(root: Path, options: argparse.Namespace) -> Path:
    """A model with fresh weights and a small trained tokenizer."""
    from token_helpers import new_model, tokenizer_dir

    from model.network.weights import save_model

    heads = max(1, options.dim // 64)
    shape = {"dim": options.dim, "layers": options.layers, "heads": heads, "kv_heads": max(1, heads // 2)}
    save_model(
        new_model(**shape, vocab_size=6400, ffn=options.dim * 11 // 4 // 16 * 16, max_seq_len=512),
        root / "model",
        tokenizer_dir(),
    )
    return root / "model"


def ours(root: Path, options: argparse.Namespace) -> list[tuple[float, float]]:
    """Seconds of each step of the rl worker, and of its rollout."""
    from spec_helpers import spec, train

    from model.rewards import functions
    from model.running.setup import Ranks
    from pipeline.config.rl import RlSection

    functions.REWARDS["exact"] = lambda problem, said: worth(said.text)
    data = root / "data"
    data.mkdir(exist_ok=True)
    rows = [
        {"messages": [{"role": "user", "content": q}], "answer": "1", "lang": "en", "task": "sum", "id": str(i)}
        for i, q in enumerate(QUESTIONS)
    ]
    for name, count in (("train", None), ("val", 1)):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:count]))
    meta = {"format": "tokens/1", "kind": "problems", "vocab_size": 6400}
    (data / "meta.json").write_text(json.dumps(meta))
    section = RlSection(
        prompts=options.prompts,
        num_generations=ANSWERS,
        max_prompt_length=128,
        max_completion_length=options.new_tokens,
    )
    made = spec(
        "rl", data=str(data), tokenizer=str(root / "model"), init=str(root / "model"), out=tempfile.mkdtemp(dir=root),
        seq_len=section.seq_len, batch_tokens=section.batch_tokens, algorithm="grpo",
        prompts=options.prompts, num_generations=ANSWERS, max_prompt_length=128, steps=options.steps,
        max_completion_length=options.new_tokens, dtype=options.dtype, device=options.device, threads=1,
        checkpoint_every=10_000, eval_samples=1, optim={"name": "adamw", "lr": 1e-6, "spike": 0.0},
    )  # fmt: skip
    train(made, Ranks(made.how))
    lines = (Path(made.out) / "_run" / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "loss" in row]
    return [(after["time"] - before["time"], after["rollout_seconds"]) for before, after in pairwise(rows)]


def trl(root: Path, options: argparse.Namespace) -> list[tuple[float, float]]:
    """Seconds of each step of TRL's trainer, and of its rollout."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(1)
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            ends.append(time.perf_counter())

    config = GRPOConfig(
        output_dir=str(root / "trl"), use_cpu=options.device == "cpu", report_to=[], loss_type="grpo",
        bf16=options.dtype == "bf16", num_generations=ANSWERS, per_device_train_batch_size=options.prompts * ANSWERS,
        gradient_checkpointing=False, max_completion_length=options.new_tokens, max_steps=options.steps,
        save_strategy="no", logging_steps=1000, learning_rate=1e-6, model_init_kwargs={"dtype": "float32"},
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": q}]} for q in QUESTIONS])

    def reward(completions, **_):
        return [worth(completion[0]["content"]) for completion in completions]

    trainer = GRPOTrainer(str(root / "model"), reward, config, rows, callbacks=[Clock()])
    rollouts, generate = [], trainer._generate_and_score_completions

    def timed(inputs):
        began = time.perf_counter()
        try:
            return generate(inputs)
        finally:
            rollouts.append(time.perf_counter() - began)

    trainer._generate_and_score_completions = timed
    trainer.train()
    return [(after - before, own) for (before, after), own in zip(pairwise(ends), rollouts[1:], strict=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--prompts", type=int, default=8, help="a step, with 8 answers each")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--side", choices=("ours", "trl"))
    parser.add_argument("--root", type=Path)
    options = parser.parse_args()
    if options.side:
        print(json.dumps({"ours": ours, "trl": trl}[options.side](options.root, options)))
        return
    root = Path(tempfile.mkdtemp(prefix="rl-bench-"))
    model_dir(root, options)
    found: dict[str, list[list[float]]] = {"ours": [], "trl": []}
    for _ in range(options.rounds):
        for side, times in found.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--root", str(root)]
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, capture_output=True, text=True, env=env)
            if done.returncode:
                sys.exit(done.stderr[-3000:])
            own = json.loads(done.stdout.strip().splitlines()[-1])
            times += own
            print(f"{side:5} {', '.join(f'{step:.2f} ({rollout:.2f})' for step, rollout in own)}", flush=True)
    shutil.rmtree(root)
    median = {side: statistics.median(step for step, _ in times) for side, times in found.items()}
    for side, times in found.items():
        rollout = statistics.median(rollout for _, rollout in times)
        print(f"{side:5} {median[side]:8.2f} s a step, {rollout:.2f} s of it the rollout")
    print(f"ratio {median['trl'] / median['ours']:.2f}")


if __name__ == "__main__":
    main()
