"""Generation on one core beside `transformers.generate` and llama.cpp (by cyllama, where it is installed), all in one
process and in turns, on a random model of MiniMind's small shape (26M: 512 wide, 8 layers, 8 heads on 2, vocabulary
6400).

    OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/generate.py [--tokens 128] [--rounds 3] [--only WORD]
    python benchmarks/generate.py --device cuda

Each side answers the same prompts of 16 tokens with exactly so many new ones. Tokens a second of processor time, the
best of the rounds; so work of others on the machine counts for little. (On a GPU of wall time, without llama.cpp.)
Packing our weights is part of our time, loading is of no one's. Our rounded forms stand beside fp32, and beside
llama.cpp's of as many bits. Draws are at temperature 1, and at 0.8 with top-p 0.9 and top-k 50. Greedy fp32 answers of
transformers and ours are compared token for token.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers

from model.generation.generator import Generator, complete
from model.generation.sampling import Sampling
from model.llamacpp.library import installed
from model.llamacpp.quantize import quantize
from model.network.hf_config import to_hf
from model.network.transformer import Transformer
from model.network.weights import save_model
from model.quantized.load import open_model
from model.quantized.scheme import Scheme
from model.quantized.write import write_rounded
from model.specs.shape import ModelConfig
from pipeline.config.tokens import TokenizerSection
from pipeline.release.gguf_export import write_gguf
from pipeline.tokens.tokenizer import make_tokenizer

SHAPE = ModelConfig(
    vocab_size=6400, dim=512, layers=8, heads=8, kv_heads=2, ffn=1408, max_seq_len=2048, qk_norm=False, norm_eps=1e-5
)
DRAWS = {
    "greedy": Sampling(),
    "temperature 1": Sampling(temperature=1.0),
    "top-p, top-k": Sampling(temperature=0.8, top_p=0.9, top_k=50),
}
Side = Callable[[list[list[int]], int, Sampling], list[list[int]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of each sequence")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="sides whose name has these words, and ours")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 16, 32])
    parser.add_argument("--draw", choices=DRAWS, help="this way of choosing alone")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sides = {n: s for n, s in all_sides(Path(folder), args.device).items() if "ours" in n or args.only in n}
        for kind, sampling in DRAWS.items():
            for count in args.sequences if args.draw in (None, kind) else ():
                clock = time.process_time if args.device == "cpu" else time.perf_counter
                measure(sides, kind, sampling, count, args.tokens, args.rounds, clock)


def measure(
    sides: dict[str, Side], kind: str, sampling: Sampling, count: int, tokens: int, rounds: int,
    clock: Callable[[], float],
) -> None:  # fmt: skip
    """Print a line of each side that can do this."""
    rng = np.random.default_rng(count)
    prompts = rng.integers(300, 6400, (count, 16)).tolist()
    able = {n: s for n, s in sides.items() if kind == "greedy" or not n.startswith("llama.cpp")}
    said, best = {}, dict.fromkeys(able, float("inf"))
    for side in able.values():
        side(prompts, 2, sampling)
    for _ in range(rounds):
        for name, side in able.items():
            begun = clock()
            said[name] = side(prompts, tokens, sampling)
            best[name] = min(best[name], clock() - begun)
    for name, seconds in best.items():
        bits = {"bf16": "bf16", "q8": "int8", "q4": "int4"}
        own = best["ours " + next((ours for theirs, ours in bits.items() if theirs in name), "fp32")]
        line = f"{kind:14} {count:3} sequences  {name:18} {count * tokens / seconds:8.0f} tokens/s"
        print(f"{line}  ours is {seconds / own:5.2f} times as fast", flush=True)
    if kind == "greedy" and "transformers fp32" in said:
        equal = sum(a == b for a, b in zip(said["ours fp32"], said["transformers fp32"], strict=True))
        print(f"{kind:14} {count:3} sequences  {equal} of {count} answers are the same token for token", flush=True)


def all_sides(folder: Path, device: str) -> dict[str, Side]:
    """What is compared, by name."""
    tokenizer(folder)
    torch.manual_seed(0)
    model = Transformer(SHAPE).eval()
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.04)
    save_model(model, folder / "model", folder / "tokenizer")
    sides: dict[str, Side] = {}
    for name, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        sides[f"ours {name}"] = ours(Transformer.from_dir(folder / "model", dtype=kind, device=device).eval())
        sides[f"transformers {name}"] = theirs(folder / "model", kind, device)
    for name, scheme in (("int8", Scheme(8)), ("int4", Scheme(4, 32))):
        write_rounded(folder / "model", folder / name, scheme)
        sides[f"ours {name}"] = ours(open_model(folder / name, device=device).eval())
    if device == "cpu" and installed():
        state = {n: p.detach().numpy() for n, p in model.named_parameters()}
        for kind in ("f32", "f16"):
            write_gguf(state, to_hf(SHAPE), folder / "tokenizer", folder / f"{kind}.gguf", kind)
        for kind, number in (("q8_0", 7), ("q4_0", 2)):
            quantize(str(folder / "f16.gguf"), str(folder / f"{kind}.gguf"), number, 1)
        sides |= {f"llama.cpp {kind}": llama_cpp(folder / f"{kind}.gguf") for kind in ("f32", "f16", "q8_0", "q4_0")}
    return sides


def tokenizer(folder: Path) -> None:
    """A small one of ours in ``folder / "tokenizer"``, which GGUF needs."""
    texts = [path.read_text("utf-8") for path in sorted(Path(os.__file__).parent.glob("*.py"))[:40]]
    columns = {"id": [str(i) for i in range(len(texts))], "text": texts, "lang": ["en"] * len(texts)}
    (folder / "shards" / "train").mkdir(parents=True)
    table = pa.table({**columns, "kind": ["text"] * len(texts)})
    pq.write_table(table, folder / "shards" / "train" / "part-00000.parquet")
    make_tokenizer(TokenizerSection(vocab_size=6400), folder / "shards", folder / "tokenizer")


def ours(model: Transformer) -> Side:
    """This project's engine; weights packed anew at each call."""

    def answer(prompts: list[list[int]], tokens: int, sampling: Sampling) -> list[list[int]]:
        generator = Generator(model, slots=len(prompts))
        answers = complete(generator, prompts, stop=(), max_new_tokens=tokens, sampling=sampling)
        return [own[0].tokens for own in answers]

    return answer


def theirs(directory: Path, kind: torch.dtype, device: str) -> Side:
    """Hugging Face's ``generate``."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=kind).to(device).eval()

    def answer(prompts: list[list[int]], tokens: int, sampling: Sampling) -> list[list[int]]:
        ids = torch.tensor(prompts, device=device)
        drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        how = {"do_sample": True, **drawn} if sampling.temperature else {"do_sample": False}
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0,
            eos_token_id=None, **how,
        )  # fmt: skip
        return made[:, ids.shape[1] :].tolist()

    return answer


def llama_cpp(path: Path) -> Side:
    """llama.cpp's decoder with one batch a step, and its greedy sampler."""
    from cyllama.llama import llama_cpp as api

    api.disable_logging()
    parameters = api.LlamaModelParams()
    parameters.n_gpu_layers = 0
    model = api.LlamaModel(path_model=str(path), params=parameters, verbose=False)

    def answer(prompts: list[list[int]], tokens: int, sampling: Sampling) -> list[list[int]]:
        own = api.LlamaContextParams()
        own.n_ctx, own.n_seq_max = 256 * len(prompts), len(prompts)
        own.n_batch = own.n_ubatch = 512
        own.n_threads = own.n_threads_batch = 1
        context = api.LlamaContext(model=model, params=own, verbose=False)
        chooser = api.LlamaSampler(api.LlamaSamplerChainParams())
        chooser.add_greedy()
        batch = api.LlamaBatch(n_tokens=512, embd=0, n_seq_max=len(prompts))
        said: list[list[int]] = [[] for _ in prompts]
        for row, prompt in enumerate(prompts):
            for at, token in enumerate(prompt):
                batch.add(token, at, [row], at == len(prompt) - 1)
        last = np.cumsum([len(prompt) for prompt in prompts]) - 1
        for step in range(tokens):
            context.decode(batch)
            for row, place in enumerate(last):
                said[row].append(chooser.sample(context, int(place)))
            batch.clear()
            for row, prompt in enumerate(prompts):
                batch.add(said[row][-1], len(prompt) + step, [row], True)
            last = np.arange(len(prompts))
        return said

    return answer


if __name__ == "__main__":
    main()
