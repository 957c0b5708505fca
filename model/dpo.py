"""Worker of the dpo stage: ``python -m model.dpo --spec FILE`` (see :mod:`model.training.trainer`)."""

from __future__ import annotations

from typing import Any

from model.network.transformer import Transformer
from model.objectives.preference import Preference
from model.running.setup import Choices
from model.specs.dpo import DpoSpec
from model.tokens.rows import Packed, Split
from model.training.loop import Data, Loop
from model.training.reference import answers, find_reference, keep_reference, reference_name
from model.training.trainer import work
from model.training.tuner import Tuner


class DpoTrainer(Tuner[DpoSpec]):
    """Preference pairs, in most losses against the initial model, whose log-probabilities are computed once."""

    SPEC = DpoSpec

    def rows(self, split: Split, whole: bool) -> Packed:
        """Pairs packed into rows, both answers in one row."""
        return Packed(split, self.spec.seq_len, together=2)

    def objective(self, model: Transformer, choices: Choices, data: Data) -> Preference:
        """A loss of the margin between the answers' scores."""
        return Preference(model, self.spec, {"train": data.train.split.sequences, "val": data.val.split.sequences})

    def before_first_step(self, loop: Loop, prints: dict[str, Any]) -> None:
        """Log-probabilities of every answer under the initial model, once: kept by what decides them, and taken from a
        neighbouring run that has them."""
        if not self.spec.needs_reference:
            return
        objective = loop.objective
        assert isinstance(objective, Preference)
        name = reference_name(self.spec, loop)
        found = find_reference(self.run, name, {k: len(v) for k, v in objective.reference.items()}, self.ranks)
        if found:
            self.ranks.say("the initial model's log-probabilities are known from an earlier run")
        else:
            found = {split: answers(loop, split, len(values)) for split, values in objective.reference.items()}
            keep_reference(self.run, name, found, self.ranks)
        objective.reference = found


if __name__ == "__main__":
    work(DpoTrainer)
