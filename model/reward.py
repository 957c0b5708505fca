"""Worker of the reward stage: ``python -m model.reward --spec FILE`` (see :mod:`model.training.trainer`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from model.generation.judge import wilson
from model.network.lora import merge, save_adapter
from model.network.reward import RewardModel, save_reward, with_score
from model.network.transformer import Transformer
from model.objectives.reward import BradleyTerry
from model.running.files import write_json
from model.running.setup import Choices
from model.specs.reward import RewardSpec
from model.specs.shape import ModelConfig
from model.tokens.rows import Packed, Split
from model.training.loop import Data, Loop
from model.training.reference import answers
from model.training.trainer import initial_model, work
from model.training.tuner import Tuner


class RewardTrainer(Tuner[RewardSpec]):
    """Pairs of whole conversations, whose scores are to lie apart."""

    SPEC = RewardSpec

    def rows(self, split: Split, whole: bool) -> Packed:
        """Pairs packed into rows, both conversations in one row."""
        return Packed(split, self.spec.seq_len, together=2)

    def adapt(self, model: Transformer, choices: Choices) -> None:
        """The head is trained whole, whether the rest is or adapters are."""
        super().adapt(model, choices)
        with_score(model)

    def objective(self, model: Transformer, choices: Choices, data: Data) -> BradleyTerry:
        """The likelihood of the preferences."""
        assert isinstance(model, RewardModel)  # since adapt
        margins = {split: np.load(Path(self.spec.data) / f"{split}.margin.npy") for split in ("train", "val")}
        return BradleyTerry(model, self.spec, margins)

    def merged(self, model: Transformer, config: ModelConfig, state: dict[str, Tensor]) -> Transformer:
        """As for every fine-tuning; the head is no part of an adapter."""
        if not self.spec.lora.rank:
            return model
        score = state.pop("score")
        save_adapter(state, self.spec.lora, Path(self.spec.out) / "adapter")
        whole = initial_model(self.spec, config)
        merge(whole, state, self.spec.lora)
        with_score(whole).score.data.copy_(score)
        state.clear()
        return whole

    def save(self, model: Transformer, state: dict[str, Tensor]) -> None:
        """A stock classifier with one label."""
        save_reward(model, Path(self.spec.out), self.spec.tokenizer, state)

    def finish(self, loop: Loop, config: ModelConfig, result: dict[str, Any]) -> None:
        """Compare the scores of the pairs that were held out, then write as every training does."""
        data, split = loop.data.val, self.spec.data
        scores = answers(loop, "val", data.split.sequences)
        if self.ranks.rank == 0 and len(scores):
            langs = json.loads((Path(split) / "val.lang.json").read_text(encoding="utf-8"))
            table = compare(scores, np.diff(data.split.offsets), langs)
            write_json(self.run / "accuracy.json", table, finite=True)
            write_json(self.run / "scores.json", [round(float(score), 6) for score in scores])
            result |= {name: row["share"] for name, row in table.items()}
            result |= {f"accuracy.{end}": table["accuracy"][end] for end in ("low", "high", "n")}
        super().finish(loop, config, result)


def compare(scores: np.ndarray, lengths: np.ndarray, langs: list[str]) -> dict[str, dict[str, float]]:
    """Shares of pairs whose better answer has the higher ``scores`` [2 * pairs] (equal ones count half), with their
    95 % interval: of all, by language, by length of the conversations, and where the better answer is the longer or
    the shorter one. ``longer_wins`` is what length alone would score. ``lengths`` [2 * pairs] are in tokens."""
    ahead, longer = scores[0::2] - scores[1::2], lengths[0::2] - lengths[1::2]
    right = np.where(ahead == 0, 0.5, ahead > 0).astype(float)
    whole = lengths[0::2] + lengths[1::2]
    thirds = np.searchsorted(np.quantile(whole, [1 / 3, 2 / 3]), whole)
    parts = {"accuracy": (right, np.ones(len(right), bool))}
    parts |= {f"accuracy.{lang}": (right, np.array(langs) == lang) for lang in sorted(set(langs))}
    parts |= {f"accuracy.{name}": (right, thirds == i) for i, name in enumerate(("short", "middle", "long"))}
    parts |= {"accuracy.longer_is_better": (right, longer > 0), "accuracy.shorter_is_better": (right, longer < 0)}
    parts["longer_wins"] = (np.where(longer == 0, 0.5, longer > 0).astype(float), np.ones(len(right), bool))
    rows = {name: values[where] for name, (values, where) in parts.items() if where.any()}
    return {name: _share(own) for name, own in rows.items()}


def _share(right: np.ndarray) -> dict[str, float]:
    low, high = wilson(float(right.sum()), len(right))
    return {"share": float(right.mean()), "low": low, "high": high, "n": len(right)}


if __name__ == "__main__":
    work(RewardTrainer)
