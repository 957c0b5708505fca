"""A decoder with a scalar head in place of the vocabulary: the score of a sequence is read at its last token.

On disk it is the stock ``Qwen3ForSequenceClassification`` (or Llama's, Qwen3-MoE's) of ``transformers`` with one label.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.network.transformer import Transformer
from model.network.weights import load_state, read_config, save_model
from model.running.files import replacing, write_json
from model.specs.shape import ModelConfig

HEAD = "score.weight"


class RewardModel(Transformer):
    """A transformer whose ``score`` [dim] is the head; it has no vocabulary's."""

    score: nn.Parameter

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(replace(config, tied=True))
        self.score = nn.Parameter(torch.zeros(config.dim))

    def scores(self, hidden: Tensor) -> Tensor:
        """Scores [n] fp32 of hidden states [n, dim]."""
        return (hidden @ self.score.to(hidden.dtype)).float()


def with_score(model: Transformer) -> RewardModel:
    """``model`` itself with a scalar head of zeros in place of the vocabulary's."""
    model.lm_head, model.config = None, replace(model.config, tied=True)
    model.__class__ = RewardModel
    made = cast(RewardModel, model)
    made.score = nn.Parameter(torch.zeros(model.config.dim))
    return made


def save_reward(
    model: Transformer, path: Path, tokenizer: str | Path | None = None, state: dict[str, Tensor] | None = None
) -> None:
    """Write the model directory; ``state`` as in :func:`model.network.weights.save_model`."""
    own: dict[str, Tensor] = dict(state or model.named_parameters())
    score = own.pop("score")
    save_model(model, path, tokenizer, own)
    weights = load_file(path / "model.safetensors") | {HEAD: score.detach().cpu()[None].contiguous()}
    with replacing(path / "model.safetensors") as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    config: dict[str, Any] = json.loads((path / "config.json").read_text(encoding="utf-8"))
    kind = config["architectures"][0].replace("ForCausalLM", "ForSequenceClassification")
    config |= {"architectures": [kind], "id2label": {"0": "reward"}, "label2id": {"reward": 0}, "num_labels": 1}
    write_json(path / "config.json", config, indent=2)
    (path / "generation_config.json").unlink()  # it says nothing


def load_reward(path: str | Path) -> RewardModel:
    """The reward model in a directory, weights fp32 on the CPU. Raises ValueError when it is none."""
    path = Path(path)
    shards = sorted(path.glob("model*.safetensors"))
    if not shards:
        raise ValueError(f"{path}: no model*.safetensors")
    state = {name: value.float() for shard in shards for name, value in load_file(shard).items()}
    score = state.pop(HEAD, None)
    config = read_config(path)
    if score is None or score.shape != (1, config.dim):
        raise ValueError(f"{path}: not a reward model: it has no {HEAD} of one label")
    model = RewardModel(config)
    load_state(model, state | {"score": score[0]}, str(path))
    return model
