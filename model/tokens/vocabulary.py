"""Which id a token has, read from ``tokenizer.json`` alone."""

from __future__ import annotations

import json
from pathlib import Path


def check_tokens(known: Path, used: Path, whose: str = "the initial model") -> None:
    """Raises ValueError when a token has another id in ``used`` than in the tokenizer that a model ``known`` brings (if
    it does)."""
    if not known.is_file() or not used.is_file():
        return
    before, now = (token_ids(path) for path in (known, used))
    moved = [token for token, number in before.items() if now.get(token) != number]
    if moved:
        raise ValueError(
            f"{used}: {len(moved)} of {whose}'s {len(before)} tokens have other ids or none, first {moved[0]!r}; "
            f"set tokenizer.existing={known.parent}"
        )


def token_ids(path: Path) -> dict[str, int]:
    """Every token of a ``tokenizer.json`` with its id."""
    values = json.loads(path.read_text(encoding="utf-8"))
    return values.get("model", {}).get("vocab", {}) | {
        token["content"]: token["id"] for token in values.get("added_tokens", [])
    }
