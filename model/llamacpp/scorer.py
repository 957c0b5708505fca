"""A GGUF file asked and weighed by llama.cpp as :class:`Scorer` does a model directory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from model.generation.forest import Scored
from model.generation.plain import PlainText
from model.generation.scorer import Scorer
from model.llamacpp.run import LlamaCpp
from model.tokens.chat import ChatTokenizer


class GgufScorer(Scorer):
    """``file`` computed by llama.cpp; texts become tokens by the tokenizer of ``directory``."""

    def __init__(
        self, file: str | Path, directory: str, threads: int, tick: Callable[[int], None] = lambda _: None
    ) -> None:
        self.llama = LlamaCpp(file, threads=threads)
        self.tokenizer, self.directory = ChatTokenizer.load(directory), str(file)
        self.plain = PlainText(directory)
        self.window, self.tick, self.cut_short = self.llama.window, tick, 0

    def answers(self, questions: Sequence[str], max_new_tokens: int) -> list[str | None]:
        """Greedy answers; None to a question that leaves no room in the model's window."""
        answers: list[str | None] = []
        stop = self.tokenizer.ends
        for question in questions:
            prompt = self.tokenizer.prompt([{"role": "user", "content": question}])
            self.tick(1)
            if len(prompt) >= self.window:
                answers.append(None)
                continue
            ids = self.llama.greedy(prompt, stop=stop, max_new_tokens=max_new_tokens)
            answers.append(self.tokenizer.decode(ids).strip())
            self.cut_short += len(prompt) + len(ids) == self.window and len(ids) < max_new_tokens
        return answers

    def log_probabilities(self, sequences: Sequence[Scored]) -> list[np.ndarray]:
        """Natural log-probabilities (float64) of each sequence's tokens from its start index on. Neighbours in
        lexicographic order share what they begin with, and choices of one token each the logits."""
        found: list[np.ndarray] = [np.zeros(0)] * len(sequences)
        read: tuple[list[int], int] | None = None
        logits = torch.zeros(0)
        for i in sorted(range(len(sequences)), key=lambda i: sequences[i]):
            ids, start = sequences[i]
            if (ids[:-1], start) != read:
                read = ids[:-1], start
                logits = torch.from_numpy(self.llama.logits(ids[:-1], first=start - 1)).double().log_softmax(-1)
            target = torch.tensor(ids[start:])
            found[i] = logits.gather(1, target[:, None])[:, 0].numpy()  # logits: [targets, vocab]
            self.tick(1)
        return found
