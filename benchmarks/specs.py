"""The ``spec.json`` of a training worker from a few values, with a config's usual ones for the rest. Torch-free."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from model.running.how import How

NUMBERS: dict[str, Any] = {"steps": 0, "epochs": 1.0, "seed": 0, "eval_every": 0, "eval_tokens": 0, "optim": {}}
OWN: dict[str, dict[str, Any]] = {
    "pretrain": {},
    "sft": {
        "lora": {},
        "distill": {},
        "replay": 0.0,
        "replay_weight": 1.0,
        "neftune_alpha": 0.0,
        "tag_weight": 1.0,
        "compat": "",
    },
    "dpo": {
        "lora": {},
        "loss": "sigmoid",
        "beta": 0.1,
        "label_smoothing": 0.0,
        "length_normalize": False,
        "simpo_gamma": 0.5,
        "nll_weight": 0.0,
    },
}


def spec(objective: str = "pretrain", **values: Any) -> dict[str, Any]:
    """The spec of ``objective`` as JSON values; those of :class:`How` may stand among ``values``."""
    how = {f.name: values.pop(f.name) for f in fields(How) if f.name in values}
    return {**NUMBERS, **OWN[objective], **values, "how": how}
