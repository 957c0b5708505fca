"""Worker of the dpo stage: ``python -m model.dpo --spec FILE`` (see :mod:`model.training.trainer`)."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.network.transformer import Transformer
from model.objectives.preference import PairBatch, Preference
from model.running.files import replacing
from model.running.setup import Choices
from model.specs.dpo import DpoSpec
from model.tokens.rows import Packed, Split, share
from model.training.loop import Data, Loop
from model.training.trainer import work
from model.training.tuner import Tuner


class DpoTrainer(Tuner[DpoSpec]):
    """Preference pairs against the initial model, whose log-probabilities are computed once."""

    SPEC = DpoSpec

    def rows(self, split: Split, whole: bool) -> Packed:
        """Pairs packed into rows, both answers in one row."""
        return Packed(split, self.spec.seq_len, together=2)

    def objective(self, model: Transformer, choices: Choices, data: Data) -> Preference:
        """The margin between the answers' log-ratios."""
        return Preference(model, self.spec, {"train": data.train.split.sequences, "val": data.val.split.sequences})

    def before_first_step(self, loop: Loop, prints: dict[str, Any]) -> None:
        """Log-probabilities of every answer under the initial model, once, kept by weights and data."""
        key = f"{prints['init']} {prints['data']} {self.spec.seq_len} {loop.choices.dtype}"
        name = hashlib.sha256(key.encode()).hexdigest()[:16]
        objective = loop.objective
        assert isinstance(objective, Preference)
        reference: dict[str, NDArray] = {}
        for split, values in objective.reference.items():
            path = self.run / f"reference-{split}-{name}.npy"
            reference[split] = np.load(path) if path.is_file() else answers(loop, split, len(values))
            if self.ranks.rank == 0 and not path.is_file():
                with replacing(path) as temporary, open(temporary, "wb") as handle:
                    np.save(handle, reference[split])
        objective.reference = reference


def answers(loop: Loop, split: str, count: int) -> NDArray:
    """Log-probability of each sequence's answer [count] under the current weights, each rank a share. Collective."""
    ranks, values = loop.ranks, torch.zeros(count, dtype=torch.float64)
    rows = np.arange(getattr(loop.data, split).rows)
    for part in share(rows, ranks.rank, ranks.world, loop.choices.micro_batch):
        loop.meter.beat()
        batch = loop.batch(split, part, 1.0)
        assert isinstance(batch, PairBatch)
        with torch.no_grad():
            logp, _ = loop.engine(batch, answers=True)
        values[batch.sequences.cpu()] = logp.double().cpu()
    return ranks.total(values).numpy()


if __name__ == "__main__":
    work(DpoTrainer)
