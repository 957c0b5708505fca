"""What a server answers, as its clients see it: tokens a second at 1 and 16 streams beside llama.cpp's own server and
`transformers.generate`, time to the first token, and whether many requests with clients that leave cost it anything.

    python benchmarks/serve.py speed [--tokens 128] [--rounds 3]
    python benchmarks/serve.py soak --requests 2000

`speed` serves a random model of MiniMind's small shape (26M: 512 wide, 8 layers, 8 heads on 2, vocabulary 6400), in
fp32, bf16, int8 and int4, and its GGUF files by llama.cpp's server (the package xllamacpp, where it is installed). All
answer prompts of 16 tokens greedily with exactly so many new ones, in turns, each engine with one thread; a number in
OMP_NUM_THREADS is that of all. `soak` serves the same shape with 2 layers: requests of mixed lengths, whole and
streamed, of which one in ten leaves in between. The engines without a server are compared by benchmarks/generate.py.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import httpx
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from model.llamacpp.quantize import quantize
from model.network.hf_config import to_hf
from model.network.transformer import Transformer
from model.network.weights import save_model
from model.quantized.scheme import Scheme
from model.quantized.write import write_rounded
from model.specs.shape import ModelConfig
from pipeline.config.tokens import TokenizerSection
from pipeline.release.gguf_export import write_gguf
from pipeline.tokens.tokenizer import make_tokenizer

SHAPE = ModelConfig(vocab_size=6400, dim=512, layers=8, heads=8, kv_heads=2, ffn=1408, max_seq_len=1024, qk_norm=False)
LLAMA_CPP = """
import sys, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.n_parallel, p.n_ctx = sys.argv[1], 16, 16 * 1024
p.hostnames, p.port, p.n_gpu_layers, p.verbosity = ["127.0.0.1"], 0, 0, 0
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = int(sys.argv[2])
server = xllamacpp.Server(p)
print(server.listening_address, file=sys.stderr, flush=True)
sys.stdin.read()
"""
"""llama.cpp's own HTTP server, until its stdin is closed."""


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
    with listening([sys.executable, "-m", "flows.cli", "serve", str(model), "--port", "0", *options]) as server:
        yield server


@contextmanager
def llama_cpp(model: Path) -> Iterator[tuple[str, psutil.Process]]:
    """llama.cpp's server on a GGUF file, with as many threads as we have."""
    with listening([sys.executable, "-c", LLAMA_CPP, str(model), os.environ["OMP_NUM_THREADS"]]) as server:
        yield server


@contextmanager
def listening(command: list[str]) -> Iterator[tuple[str, psutil.Process]]:
    """A server that says its address on stderr."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr and process.stdin
    try:
        url = next(line for line in process.stderr if line.startswith("http://")).split()[0]
        threading.Thread(target=process.stderr.read, daemon=True).start()  # else its buffer would fill
        yield url, psutil.Process(process.pid)
    finally:
        process.stdin.close()
        process.send_signal(signal.SIGTERM)
        process.wait(60)


async def streams(url: str, prompts: list[list[int]], tokens: int) -> tuple[float, list[float], int]:
    """Seconds until all streams have ended, of each the seconds to its first token, and tokens in all."""
    firsts: list[float] = []
    said = 0

    async def one(client: httpx.AsyncClient, prompt: list[int], model: str) -> None:
        nonlocal said
        body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
        body |= {"stream_options": {"include_usage": True}, "ignore_eos": True}
        first, own = 0.0, 0
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if not first and '"text":' in line:
                    first = time.perf_counter() - begun
                if '"completion_tokens":' in line:
                    own = int(re.findall(r'"completion_tokens":(\d+)', line)[0])
        firsts.append(first)
        said += own

    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        begun = time.perf_counter()
        await asyncio.gather(*(one(client, prompt, model) for prompt in prompts))
        return time.perf_counter() - begun, firsts, said


def speed(tokens: int, rounds: int) -> None:
    """Print tokens a second of each side, median and best of the rounds."""
    prompts = np.random.default_rng(0).integers(300, 6400, (16, 16)).tolist()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        exact = make_model(Path(folder), SHAPE)
        sides: dict[str, Callable[[int], tuple[float, list[float], int]]] = {}
        for name, form in forms(exact).items():
            url, _ = stack.enter_context(llama_cpp(form) if form.suffix == ".gguf" else served(form))
            sides[name] = lambda count, url=url: asyncio.run(streams(url, prompts[:count], tokens))
        sides["transformers.generate fp32"] = generating(exact, prompts, tokens)
        for side in sides.values():
            side(2)
        for count in (1, 16):
            seen = [{name: side(count) for name, side in sides.items()} for _ in range(rounds)]
            show(count, {name: [each[name] for each in seen] for name in sides})


def forms(exact: Path) -> dict[str, Path]:
    """What is served, by name: model folders of ours and, where llama.cpp's server is installed, GGUF files."""
    folder = exact.parent
    write_rounded(exact, folder / "int8", Scheme(8))
    write_rounded(exact, folder / "int4", Scheme(4, 32))
    half = Transformer.from_dir(exact)
    for p in half.parameters():
        p.data = p.data.bfloat16().float()
    save_model(half, folder / "bf16", folder / "tokenizer")  # the weights of an export
    found = {"pipeline serve fp32": exact, "pipeline serve bf16": folder / "bf16"}
    found |= {f"pipeline serve {name}": folder / name for name in ("int8", "int4")}
    if importlib.util.find_spec("xllamacpp"):
        state = {name: p.detach().numpy() for name, p in Transformer.from_dir(exact).named_parameters()}
        write_gguf(state, to_hf(SHAPE), folder / "tokenizer", folder / "f16.gguf", "f16")
        for name, number in (("q8_0", 7), ("q4_0", 2)):
            quantize(str(folder / "f16.gguf"), str(folder / f"{name}.gguf"), number, 1)
        found |= {f"llama.cpp server {name}": folder / f"{name}.gguf" for name in ("f16", "q8_0", "q4_0")}
    return found


def generating(model: Path, prompts: list[list[int]], tokens: int) -> Callable[[int], tuple[float, list[float], int]]:
    """Hugging Face's ``generate`` on a batch, without a server."""
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    theirs.generation_config.max_length = None

    def answer(count: int) -> tuple[float, list[float], int]:
        ids = torch.tensor(prompts[:count])
        begun = time.perf_counter()
        made = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
            pad_token_id=0, eos_token_id=None,
        )  # fmt: skip
        return time.perf_counter() - begun, [], made[:, ids.shape[1] :].numel()

    return answer


def show(count: int, seen: dict[str, list[tuple[float, list[float], int]]]) -> None:
    """A line of each side: its tokens a second, ours fp32 over it, and the time to the first token."""
    rates = {name: [said / seconds for seconds, _, said in rounds] for name, rounds in seen.items()}
    ours = statistics.median(rates["pipeline serve fp32"])
    for name, values in rates.items():
        middle, firsts = statistics.median(values), [first for _, own, _ in seen[name] for first in own]
        late = f"; first token {statistics.median(firsts):.3f} s, the last one's {max(firsts):.3f} s" if firsts else ""
        print(f"{count:2} streams  {name:26} {middle:6.0f} tokens/s (best {max(values):.0f})"
              f"  ours fp32 is {ours / middle:5.2f} times as fast{late}", flush=True)  # fmt: skip


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
                good = answer.status_code == 200 and whole and '{"error"' not in answer.text
                ends["answered" if good else "errors"] += 1
                if not good:
                    print(answer.status_code, answer.text[-300:], plan)
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
