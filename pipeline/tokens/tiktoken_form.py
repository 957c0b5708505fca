"""A `tokenizers` BPE as a `tiktoken` encoding, where that gives the same ids."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pipeline.tokens.patterns import byte_alphabet, split_pattern

if TYPE_CHECKING:
    import tiktoken


def to_tiktoken(tokenizer_json: str) -> tiktoken.Encoding | None:
    """The tokenizer of a ``tokenizer.json`` text in tiktoken, or None when it is of a kind that tiktoken cannot repeat
    exactly."""
    import tiktoken

    spec = json.loads(tokenizer_json)
    pattern = split_pattern(spec)
    added = spec.get("added_tokens") or []
    if pattern is None or spec["model"].get("type") != "BPE" or spec["model"].get("ignore_merges"):
        return None
    if any(token.get(flag) for token in added for flag in ("lstrip", "rstrip", "single_word")):
        return None
    special = {token["content"]: token["id"] for token in added}
    ranks = _ranks(spec["model"], special)
    if ranks is None:
        return None
    try:
        return tiktoken.Encoding("pipeline", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    except ValueError:  # a pattern that its regex engine refuses
        return None


def _ranks(model: dict[str, Any], special: dict[str, int]) -> dict[bytes, int] | None:
    """Token bytes to id, when ids are in merge order (tiktoken merges the lowest id first); None otherwise."""
    byte_of = {character: byte for byte, character in enumerate(byte_alphabet())}
    vocab = {token: i for token, i in model["vocab"].items() if token not in special}
    if not all(character in byte_of for token in vocab for character in token):
        return None
    pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"]]
    made = [i for left, right in pairs if (i := vocab.get(left + right)) is not None]
    merged = [token for token in vocab if len(token) > 1]
    singles = [token for token in vocab if len(token) == 1]
    if len(made) != len(pairs) or made != sorted(set(made)) or len(made) != len(merged) or len(singles) != 256:
        return None
    return {bytes(byte_of[character] for character in token): i for token, i in vocab.items()}
