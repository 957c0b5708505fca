"""Small rollouts with everything that is known of their tokens, made up by a seed."""

import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from spec_helpers import spec as make
from token_helpers import new_model, tokenizer_dir

from model.network.weights import save_model
from model.objectives.reinforce import Known
from model.tokens.chat import ChatTokenizer
from model.training.rollout import Answer, Rollout

PATHS = {"data": "d", "tokenizer": "t", "out": "o", "init": "m"}


def spec(**fields):
    return make("rl", **{**PATHS, "seq_len": 40, "batch_tokens": 40, **fields})


def answers(count=6, vocab=450, seed=0):
    """Answers of different lengths, two to a prompt but for the last of an odd count."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(3, vocab, 3 + i % 3).tolist() for i in range(-(-count // 2))]
    return [
        Answer(prompts[i // 2], rng.integers(3, vocab, n).tolist(), [-1.0] * n, True)
        for i in range(count)
        for n in [int(rng.integers(2, 9))]
    ]


def rollout(sampled, spec, parts=1):
    """A rollout of these answers, and what is known of each token, as if the model had been another before."""
    made = Rollout(sampled, spec.seq_len, average=spec.recipe.average, longest=spec.max_completion_length, parts=parts)
    rng, tokens = np.random.default_rng(1), int(made.begin[-1])
    known = Known(*[rng.normal(size=tokens).astype(np.float32) for _ in range(6)])
    known.advantage = made.spread(rng.normal(size=len(sampled)))
    return made, known


def padded(values, made, fill=0.0):
    """A value of each token [tokens] as [answers, longest]."""
    out = torch.full((len(made.lengths), int(made.lengths.max())), fill, dtype=torch.as_tensor(values).dtype)
    for i, n in enumerate(made.lengths):
        out[i, :n] = torch.as_tensor(values[made.begin[i] : made.begin[i] + n])
    return out


WORDS = ("alpha", "beta", "gamma", "delta")


@functools.cache
def unsure_dir():
    """A model directory that answers each of eight questions with one of four words by chance, and where the problems
    are for which one word is right: (model, data)."""
    root = Path(tempfile.mkdtemp(prefix="rl-"))
    chat, model = ChatTokenizer.load(tokenizer_dir()), new_model()
    asked = [f"{'词元' if i % 2 else 'token'} {WORDS[i % 4]} {WORDS[i // 4]}?" for i in range(8)]
    rows = [
        chat.chat([{"role": "user", "content": question}, {"role": "assistant", "content": word}])
        for question in asked
        for word in WORDS
    ]
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([i + [0] * (longest - len(i)) for i, _ in rows])
    mask = torch.tensor([m + [0] * (longest - len(m)) for _, m in rows])[:, 1:] > 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        loss = F.cross_entropy(model(ids)[:, :-1][mask], ids[:, 1:][mask])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_model(model, root / "model", tokenizer_dir())
    (root / "data").mkdir()
    problems = [
        {
            "messages": [{"role": "user", "content": question}], "answer": WORDS[i % 4], "lang": "en", "task": "words",
            "id": str(i),
        }
        for i, question in enumerate(asked)
    ]  # fmt: skip
    for split in ("train", "val"):
        lines = [json.dumps(problem) + "\n" for problem in problems]
        (root / "data" / f"{split}.jsonl").write_text("".join(lines))
    meta = {"format": "tokens/1", "kind": "problems", "vocab_size": chat.vocab_size}
    (root / "data" / "meta.json").write_text(json.dumps(meta))
    return root / "model", root / "data"


def run_spec(out, **fields):
    """The spec of a run that teaches that model which word is right."""
    model, data = unsure_dir()
    own = {
        "data": str(data), "tokenizer": str(model), "init": str(model), "out": str(out), "threads": 1, "steps": 8,
        "seq_len": 64, "batch_tokens": 64,
        "checkpoint_every": 1, "num_generations": 8,
        "optim": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.0, "schedule": "constant", "spike": 0.0},
    }  # fmt: skip
    return spec(**{**own, **fields})
