"""A reward model that is asked: token ids of whole conversations in, scores out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch

from model.network.reward import RewardModel, load_reward
from model.tokens.chat import ChatTokenizer
from model.tokens.turns import Message

_ROWS, _SLOTS = 64, 16_384
"""Most sequences, and slots with their padding, that are read at once."""


class Rewarder:
    """The model of the reward stage, or any ``…ForSequenceClassification`` with one label of a known architecture."""

    def __init__(self, model: RewardModel, tokenizer: ChatTokenizer) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer

    @classmethod
    def from_dir(cls, path: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Self:
        """The reward model in a directory. Raises ValueError when it is none."""
        model = load_reward(path).to(device=device, dtype=dtype)
        model.compute_dtype = dtype
        return cls(model, ChatTokenizer.load(path))

    @torch.no_grad()
    def scores(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """The score of each sequence: a whole conversation as ``ChatTokenizer.chat`` writes it, read at its last token.

        One that is longer than the model's window keeps its end. A score depends on no neighbour but for rounding.
        Raises ValueError for an empty sequence or a score that is not a number.
        """
        if not all(len(sequence) for sequence in sequences):
            raise ValueError("a sequence is empty; give at least one token")
        window, device = self.model.config.max_seq_len, self.model.score.device
        cut = [list(sequence)[-window:] for sequence in sequences]
        order, found = sorted(range(len(cut)), key=lambda i: (len(cut[i]), i)), [0.0] * len(cut)
        while order:
            count = min(_ROWS, len(order))
            count = max(1, min(count, _SLOTS // len(cut[order[count - 1]])))
            now, order = order[:count], order[count:]
            longest = len(cut[now[-1]])
            # padding is at the right, where causal attention never looks
            ids = torch.tensor([cut[i] + [0] * (longest - len(cut[i])) for i in now], device=device)
            last = torch.tensor([len(cut[i]) - 1 for i in now], device=device)
            hidden = self.model.hidden(ids)[torch.arange(len(now), device=device), last]
            for i, value in zip(now, self.model.scores(hidden).tolist(), strict=True):
                found[i] = value
        if not all(map(math.isfinite, found)):
            raise ValueError("the reward model's scores are not finite: the weights are damaged or diverged")
        return found

    def of_answers(self, prompts: Sequence[Sequence[Message]], answers: Sequence[str]) -> list[float]:
        """The score of each answer after its prompt."""
        turns: list[Message] = [{"role": "assistant", "content": answer} for answer in answers]
        whole = [[*prompt, turn] for prompt, turn in zip(prompts, turns, strict=True)]
        return self.scores([self.tokenizer.chat(messages)[0] for messages in whole])
