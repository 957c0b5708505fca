"""Answers judged by reasoning-gym's own verifiers (an optional package)."""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def _verifier(dataset: str) -> Any:
    import reasoning_gym  # pyright: ignore[reportMissingImports] - an optional package

    return reasoning_gym.get_score_answer_fn(dataset)


def score(entry: dict[str, Any], answer: str) -> float:
    """What the verifier of ``entry["dataset"]`` gives ``answer``, 0 to 1."""
    return float(_verifier(entry["dataset"])(answer, entry["entry"]))
