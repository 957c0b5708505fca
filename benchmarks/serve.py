"""What a server answers, as its clients see it: tokens a second at 1 and 16 streams beside `transformers.generate`,
time to the first token, and whether many requests with clients that leave cost it anything.

    python benchmarks/serve.py speed [--tokens 128] [--rounds 3]
    python benchmarks/serve.py soak --requests 2000

`speed` serves a random model of MiniMind's small shape (26M: 512 wide, 8 layers, 8 heads on 2, vocabulary 6400); both
sides answer prompts of 16 tokens greedily with exactly so many new ones, in turns, on the same cores. `soak` serves the
same shape with 2 layers: requests of mixed lengths, whole and streamed, of which one in ten leaves in between. Beside
llama.cpp the engine itself is measured by benchmarks/generate.py.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import httpx
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from model.network.transformer import Transformer
from model.network.weights import save_model
from model.specs.shape import ModelConfig
from pipeline.config.tokens import TokenizerSection
from pipeline.tokens.tokenizer import make_tokenizer

SHAPE = ModelConfig(vocab_size=6400, dim=512, layers=8, heads=8, kv_heads=2, ffn=1408, max_seq_len=1024, qk_norm=False)


def make_model(folder: Path, shape: ModelConfig) -> Path:
    """A random model that never ends by itself, with a tokenizer made of Python's own library."""
    texts = [path.read_text("utf-8") for path in sorted(Path(os.__file__).parent.glob("*.py"))[:40]]
    columns = {"id": [str(i) for i in range(len(texts))], "text": texts, "lang": ["en"] * len(texts)}
    (folder / "shards" / "train").mkdir(parents=True)
    pq.write_table(
        pa.table({**columns, "kind": ["text"] * len(texts)}), folder / "shards" / "train" / "part-00000.parquet"
    )
    make_tokenizer(TokenizerSection(vocab_size=6400), folder / "shards", folder / "tokenizer")
    torch.manual_seed(0)
    model = Transformer(shape).eval()
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.04)
    save_model(model, folder / "model", folder / "tokenizer")
    return folder / "model"


@contextmanager
def served(model: Path, *options: str) -> Iterator[tuple[str, psutil.Process]]:
    """``pipeline serve`` in a process of its own: its address, and the process."""
    command = [sys.executable, "-m", "flows.cli", "serve", str(model), "--port", "0", *options]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        yield (
            next(line for line in process.stderr if line.startswith("http://")).split()[0],
            psutil.Process(process.pid),
        )
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


async def streams(url: str, prompts: list[list[int]], tokens: int) -> tuple[float, list[float], int]:
    """Seconds until all streams have ended, of each the seconds to its first token, and tokens in all."""
    firsts: list[float] = []
    said = 0

    async def one(client: httpx.AsyncClient, prompt: list[int]) -> None:
        nonlocal said
        body = {"model": "model", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
        body["stream_options"] = {"include_usage": True}
        first = 0.0
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if not first and '"text":' in line:
                    first = time.perf_counter() - begun
                if '"choices":[]' in line:
                    said += int(line.rpartition('"completion_tokens":')[2].split(",")[0].rstrip("}"))
        firsts.append(first)

    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        begun = time.perf_counter()
        await asyncio.gather(*(one(client, prompt) for prompt in prompts))
        return time.perf_counter() - begun, firsts, said


def speed(tokens: int, rounds: int) -> None:
    """Print tokens a second of each side, best and median of the rounds."""
    import transformers

    prompts = np.random.default_rng(0).integers(300, 6400, (16, 16)).tolist()
    with tempfile.TemporaryDirectory() as folder:
        directory = make_model(Path(folder), SHAPE)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

        def generate(rows: list[list[int]]) -> tuple[float, int]:
            ids = torch.tensor(rows)
            begun = time.perf_counter()
            made = theirs.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
                pad_token_id=0, eos_token_id=None,
            )  # fmt: skip
            return time.perf_counter() - begun, made[:, ids.shape[1] :].numel()

        with served(directory) as (url, _):
            asyncio.run(streams(url, prompts, 4))
            generate(prompts[:1])
            rates: dict[str, list[float]] = {}
            firsts: list[float] = []
            for _ in range(rounds):
                for count in (1, 16):
                    seconds, first, said = asyncio.run(streams(url, prompts[:count], tokens))
                    rates.setdefault(f"pipeline serve, {count} streams", []).append(said / seconds)
                    firsts += first if count == 16 else []
                    seconds, said = generate(prompts[:count])
                    rates.setdefault(f"transformers.generate, batch of {count}", []).append(said / seconds)
    one = statistics.median(rates["transformers.generate, batch of 1"])
    for name, values in rates.items():
        middle = statistics.median(values)
        print(f"{name:40} {middle:8.0f} tokens/s (best {max(values):.0f})  {middle / one:5.1f} x transformers' one")
    print(f"time to first token at 16 streams: median {statistics.median(firsts):.3f} s, worst {max(firsts):.3f} s")


async def storm(url: str, requests: int, at_once: int, seed: int) -> dict[str, int]:
    """Requests of mixed lengths, ``at_once`` at a time; one in ten leaves in between. How they ended."""
    random = np.random.default_rng(seed)
    plans = [
        {
            "prompt": random.integers(300, 6400, int(random.integers(1, 200))).tolist(),
            "max_tokens": int(random.integers(1, 64)), "temperature": float(random.choice([0, 1])),
            "stream": bool(random.integers(2)), "n": int(random.choice([1, 1, 1, 3])),
        }
        for _ in range(requests)
    ]  # fmt: skip
    leaves = random.random(requests) < 0.1
    ends = dict.fromkeys(("answered", "left", "errors"), 0)
    gate = asyncio.Semaphore(at_once)

    async def one(client: httpx.AsyncClient, plan: dict, leave: bool) -> None:
        async with gate:
            try:
                async with asyncio.timeout(0.15 if leave else 600):
                    answer = await client.post("/v1/completions", json={"model": "model", **plan})
                whole = "[DONE]" in answer.text or '"finish_reason":"' in answer.text
                ends[
                    "answered" if answer.status_code == 200 and whole and '"error"' not in answer.text else "errors"
                ] += 1
            except TimeoutError:
                ends["left"] += 1

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        await asyncio.gather(*(one(client, plan, bool(leave)) for plan, leave in zip(plans, leaves, strict=True)))
    return ends


def soak(requests: int) -> None:
    """Print how many requests ended how, what is left in the server, and how its memory grew."""
    with tempfile.TemporaryDirectory() as folder:
        directory = make_model(Path(folder), replace(SHAPE, layers=2))
        with served(directory, "--max-queue", "200") as (url, process):
            asyncio.run(storm(url, max(100, requests // 10), 32, 0))
            before, begun = process.memory_info().rss, time.perf_counter()
            ends = asyncio.run(storm(url, requests, 32, 1))
            seconds, after = time.perf_counter() - begun, process.memory_info().rss
            time.sleep(1)
            left = httpx.get(f"{url}/health").json()["models"]
    print(f"{requests} requests in {seconds:.0f} s: {ends}; then {left}")
    print(f"resident memory after warm-up {before / 2**20:.0f} MiB, at the end {after / 2**20:.0f} MiB"
          f" ({100 * (after / before - 1):+.1f} %)")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "soak"))
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=2000)
    args = parser.parse_args()
    if args.what == "speed":
        speed(args.tokens, args.rounds)
    else:
        soak(args.requests)


if __name__ == "__main__":
    main()
