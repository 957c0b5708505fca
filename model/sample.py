"""Worker of the sample stage: ``python -m model.sample --spec FILE``, alone or as a rank of a launcher.

The spec is JSON: ``model`` (directory), ``prompts`` (JSON lines of {"messages", "reference"}), ``answers`` (to each),
``sampling`` (fields of :class:`Sampling`), ``max_new_tokens``, ``batch`` (answers at once), ``rewarder`` (directory of
a reward model, or null) and ``reference`` (whether it scores that too, last), ``device`` and ``out``. Prompts are cut
into shards of a fixed size, rank by rank in turn; each finished shard is a file in ``out/_run/answers`` and is not done
again after a crash. A shard's bytes depend on no other, so they are the same for any number of ranks. Ranks share
nothing but the folder; rank 0 waits for all shards and writes ``result.json``.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch

from model.generation.generator import Completion, complete
from model.generation.rewarder import Rewarder
from model.generation.sampling import Sampling
from model.network.transformer import Transformer
from model.running.command import WorkerSpec, read_spec
from model.running.files import write_json, write_text
from model.running.machine import Orphan, pick_device
from model.tokens.chat import ChatTokenizer
from model.tokens.jinja import TemplateRefuses
from model.tokens.turns import Message

SHARD = 16
"""Prompts of a shard."""
_TELL_SECONDS = 1.0


class Answered(TypedDict):
    """What was said to one prompt; no answers where it does not fit the window. ``rewards`` are the reward model's."""

    answers: list[str]
    lengths: list[int]
    cut_short: int
    rewards: list[float]


class Sampler:
    """The model that answers."""

    def __init__(self, spec: WorkerSpec, device: torch.device) -> None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.spec, self.tokenizer = spec, ChatTokenizer.load(spec["model"])
        self.model = Transformer.from_dir(spec["model"], dtype=dtype, device=device).eval()
        self.rewarder = Rewarder.from_dir(spec["rewarder"], dtype, device) if spec["rewarder"] else None
        self.sampling = Sampling(**spec["sampling"])
        self.stop = self.tokenizer.ends

    def answer(self, prompts: Sequence[dict[str, Any]]) -> list[Answered]:
        """The answers to some prompts, in their order."""
        encoded = [self._encode(prompt["messages"]) for prompt in prompts]
        fitting = [ids for ids in encoded if ids]
        said = complete(
            self.model,
            fitting,
            stop=self.stop,
            max_new_tokens=self.spec["max_new_tokens"],
            sampling=self.sampling,
            samples=self.spec["answers"],
            slots=self.spec["batch"],
        )
        found = iter(said)
        return [
            self._answered(prompt, next(found) if ids else []) for prompt, ids in zip(prompts, encoded, strict=True)
        ]

    def _encode(self, messages: list[Message]) -> list[int]:
        """Ids of what fits of a prompt beside the longest answer; none when its last question does not, or the chat
        template refuses it."""
        room = self.model.config.max_seq_len - self.spec["max_new_tokens"]
        try:
            fitting = self.tokenizer.fit(messages, room, ask=True)
            return self.tokenizer.prompt(fitting[0]) if fitting else []
        except TemplateRefuses:
            return []

    def _answered(self, prompt: dict[str, Any], said: list[Completion]) -> Answered:
        texts = [self.tokenizer.decode(one.tokens).strip() for one in said]
        rewards: list[float] = []
        if self.rewarder and texts:
            scored = [*texts, prompt["reference"]] if self.spec["reference"] else texts
            rewards = [
                round(score, 6) for score in self.rewarder.of_answers([prompt["messages"]] * len(scored), scored)
            ]
        return {
            "answers": texts,
            "lengths": [len(one.tokens) for one in said],
            "cut_short": sum(one.finish == "length" for one in said),
            "rewards": rewards,
        }


def run(spec: WorkerSpec, rank: int, world: int, device: torch.device) -> None:
    """Answer this rank's shards; rank 0 then waits for those of the others and writes the result."""
    out, orphan = Path(spec["out"]) / "_run", Orphan()
    with open(spec["prompts"], encoding="utf-8", newline="\n") as lines:
        prompts = [json.loads(line) for line in lines]
    files = [out / "answers" / f"shard-{i:06d}.jsonl" for i in range(-(-len(prompts) // SHARD))]
    sampler, progress = None, _Progress(out / "metrics.jsonl", files, len(prompts)) if rank == 0 else None
    for i, path in enumerate(files):
        if i % world != rank or path.is_file():
            continue
        sampler = sampler or Sampler(spec, device)
        rows = sampler.answer(prompts[i * SHARD : (i + 1) * SHARD])
        write_text(path, "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows))
        if progress:
            progress.tell()
        if orphan:
            raise SystemExit(143)
    if progress:
        while not progress.tell():
            time.sleep(0.1)
            if orphan:
                raise SystemExit(143)
        write_json(out / "result.json", {"prompts": len(prompts), "shards": len(files)})


class _Progress:
    """Lines for whoever watches: prompts done of all, about once a second."""

    def __init__(self, path: Path, files: list[Path], prompts: int) -> None:
        self.path, self.left, self.shards, self.prompts, self.last = path, files, len(files), prompts, 0.0

    def tell(self) -> bool:
        """Look which shards are done; whether all are."""
        self.left = [file for file in self.left if not file.is_file()]
        if not self.left or time.monotonic() - self.last > _TELL_SECONDS:
            self.last = time.monotonic()
            done = min(self.prompts, (self.shards - len(self.left)) * SHARD)
            line = {"step": done, "total_steps": self.prompts, "time": time.time()}
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return not self.left


def main() -> None:
    """The worker's command line."""
    spec = read_spec(__doc__)
    rank, world, local = (
        int(os.environ.get(n, d)) for n, d in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
    )
    run(spec, rank, world, pick_device(spec["device"], local))


if __name__ == "__main__":
    main()
