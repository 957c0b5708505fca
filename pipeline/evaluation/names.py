"""What a model is called beside others, in scores, pages and the registry."""

from __future__ import annotations


def model_name(stage: str) -> str:
    """The name of the model that ``stage`` trained."""
    return {"pretrain": "base"}.get(stage, stage)
