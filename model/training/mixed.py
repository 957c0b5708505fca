"""The training loop of SFT: conversations and replayed text in one batch, their losses apart, noise on embeddings."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.objectives.answers import AnswerBatch, embedding_noise
from model.specs.sft import SftSpec
from model.tokens.mixture import MixedOrder, Mixture
from model.tokens.rows import Windows
from model.training.loop import Data, Loop

TEXT_SLOTS = 1 << 20
"""Most slots of pretraining text that a validation reads when ``eval_tokens`` is 0."""


@dataclass
class MixedData(Data):
    """Conversations to train on (with text among them) and to validate on, and the validation split of that text (null:
    no replay)."""

    text: Windows | None = None


class MixedLoop(Loop):
    """As the loop it is; what has two kinds of rows is read, measured and validated by kind."""

    spec: SftSpec
    data: MixedData

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        if isinstance(self.data.train, Mixture):
            self.order = MixedOrder(self.data.train, self.spec.seed)

    def batch(self, split: str, numbers: NDArray, norm_by: float) -> Any:
        """The rows ``numbers`` as a micro-batch on the device; in training with NEFTune's noise, when the spec asks for
        it. The noise follows from seed, step and row."""
        made = super().batch(split, numbers, norm_by)
        if self.spec.neftune_alpha and split == "train":
            assert isinstance(made, AnswerBatch)
            train = self.data.train
            of_text = train.of_text(numbers) if isinstance(train, Mixture) else np.zeros(len(numbers), bool)
            seeds = [row_seed(self.spec.seed, self.step, int(number)) for number in numbers]
            dim = self.objective.lm.config.dim
            made.noise = embedding_noise(made.doc, of_text, dim, self.spec.neftune_alpha, seeds)
        return made

    def _means(self, prefix: str, sums: Tensor) -> dict[str, float]:
        values = dict(zip(self.objective.names, sums.tolist(), strict=True))
        answers, text = values.pop("targets"), values.pop("replay_targets")
        means = {name: total / max(answers, 1.0) for name, total in values.items() if not name.startswith("replay_")}
        if text:
            means |= {name: total / text for name, total in values.items() if name.startswith("replay_")}
        return {prefix + name: value for name, value in means.items()}

    def validate(self) -> dict[str, float]:
        """As without replay (answers alone); with it also what the model knows of the pretraining text:
        ``val_replay_loss`` and ``val_replay_bits_per_byte``."""
        means = super().validate()
        if self.data.text is not None and self.data.text.rows:
            sums, rows = self.observed("text", self.spec.eval_tokens or TEXT_SLOTS)
            known = self._means("val_", sums)
            means |= {name: value for name, value in known.items() if name.startswith("val_replay_")}
            means |= self.bits_per_byte("val_replay_", sums, ("replay_loss", "replay_targets"), rows, "text")
        return means


def row_seed(seed: int, step: int, row: int) -> int:
    """A seed for the noise of one row in one step, below 2^63."""
    digest = hashlib.blake2b(f"{seed} {step} {row}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
