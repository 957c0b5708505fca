"""Does DPO on a model's own answers raise held-out questions? Samples, makes pairs, trains, and asks before and after.

    python benchmarks/own_answers.py .pipeline/store/sft/KEY --disturbed 2 --answers 2 --set beta=0.3 nll_weight=0.5

Prompts are those of the teaching set; the held-out paraphrases of it are asked greedily. One process.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from specs import spec

from model.dpo import DpoTrainer
from model.generation.generator import generate
from model.generation.judge import is_right, wilson
from model.network.transformer import Transformer
from model.running.setup import Ranks
from model.sample import Sampler
from model.specs.base import parse
from model.specs.dpo import DpoSpec
from model.tokens.chat import ChatTokenizer
from pipeline.sampling.disturbed import plain
from pipeline.sampling.pairs import Judged, by_rule, pairs_of
from pipeline.sampling.prompts import choose_prompts
from pipeline.sources.teaching import teaching_chats, teaching_heldout, teaching_preferences
from pipeline.tokens.pairs import encode_pairs


def held_out(directory: Path, every: int) -> list[bool]:
    """Which of the held-out questions (each ``every``-th) the model answers right, greedily."""
    chat, model = ChatTokenizer.load(directory), Transformer.from_dir(directory).eval()
    items = teaching_heldout()[::every]
    prompts = [chat.prompt([{"role": "user", "content": item["question"]}]) for item in items]
    said = generate(model, prompts, stop={chat.eos_id, chat.end_of_text_id}, max_new_tokens=64)
    rows = zip(said, items, strict=True)
    return [is_right(chat.decode(ids), item["keywords"], item["answer"]) for ids, item in rows]


def own_pairs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Pairs of the model's own answers, with the references among them."""
    taken = {plain(item["question"]) for item in teaching_heldout()}
    prompts = choose_prompts(teaching_chats(), options.prompts, 0, options.disturbed, taken)
    spec = {
        "model": str(options.model),
        "rewarder": None,
        "reference": False,
        "sampling": {"temperature": options.temperature, "seed": 0},
        "answers": options.answers,
        "max_new_tokens": 48,
        "batch": 64,
    }
    began = time.monotonic()
    said = Sampler(spec, torch.device("cpu")).answer(prompts)
    seconds, tokens = time.monotonic() - began, sum(sum(one["lengths"]) for one in said)
    pairs, right = [], 0.0
    for prompt, one in zip(prompts, said, strict=True):
        judged = [Judged(text, by_rule("keywords", prompt, text)) for text in one["answers"] if text]
        right += sum(each.score for each in judged)
        for better, worse in pairs_of([*judged, Judged(prompt["reference"], 1.0)], 1, 0.0):
            place = {key: prompt[key] for key in ("source", "path", "line")}
            pairs.append({"prompt": prompt["messages"], "chosen": better.text, "rejected": worse.text, **place})
    count = len(prompts) * options.answers
    print(f"{len(prompts)} prompts, {right / count:.1%} of {count} answers right, {len(pairs)} pairs;", end=" ")
    print(f"{tokens} tokens in {seconds:.0f} s", flush=True)
    return pairs


def aligned(options: argparse.Namespace, pairs: list[dict[str, Any]], work: Path) -> Path:
    """The model after DPO on the pairs."""
    encode_pairs(pairs, options.model, work / "data", max_tokens=256)
    own = dict(pair.split("=", 1) for pair in options.set)
    optim = {"name": "adamw", "lr": 1e-4, "weight_decay": 0.0, "schedule": "linear", "warmup": 0.1}
    optim |= {name.removeprefix("optim."): _value(own.pop(name)) for name in list(own) if name.startswith("optim.")}
    fields = {"epochs": 1.0, **{name: _value(value) for name, value in own.items()}}
    where = {"data": str(work / "data"), "tokenizer": str(options.model), "init": str(options.model)}
    values = spec(
        "dpo", **where, out=str(work / "model"), seq_len=256, batch_tokens=4096, steps=0, optim=optim, **fields
    )
    made = parse(DpoSpec, values)
    result = DpoTrainer(made, Ranks(made.how)).train()
    print({name: round(result[name], 3) for name in ("steps", "val_loss", "val_accuracy", "val_margin")}, flush=True)
    return work / "model"


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="directory of an SFT model")
    parser.add_argument("--prompts", type=int, default=0, help="prompts of the chats themselves")
    parser.add_argument("--disturbed", type=int, default=2, help="disturbed prompts for each answer")
    parser.add_argument("--answers", type=int, default=2)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--anchors", type=int, default=0, help="pairs of the teaching set among them")
    parser.add_argument("--every", type=int, default=2, help="ask each N-th of the held-out questions")
    parser.add_argument("--set", nargs="*", default=[], help="fields of the dpo spec, optim.lr=1e-4 and so on")
    options = parser.parse_args()
    before = held_out(options.model, options.every)
    pairs = own_pairs(options) + random.Random(0).sample(teaching_preferences(), options.anchors)
    work = Path(tempfile.mkdtemp(prefix="own-answers-"))
    try:
        after = held_out(aligned(options, pairs, work), options.every)
    finally:
        shutil.rmtree(work)
    for name, right in (("before", before), ("after", after)):
        low, high = wilson(sum(right), len(right))
        print(f"{name}: {sum(right)} of {len(right)} right, {sum(right) / len(right):.1%} ({low:.1%} to {high:.1%})")
    won, lost = (sum(a != b and a == way for a, b in zip(after, before, strict=True)) for way in (True, False))
    print(f"{won} questions won, {lost} lost")


if __name__ == "__main__":
    main()
