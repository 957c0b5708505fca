"""One set of byte-level BPE merges in three forms: ranks, a `tokenizers` tokenizer, a `tiktoken` encoding.

Training wants rustbpe's ranks, users and transformers want ``tokenizer.json``, and encoding wants tiktoken, which gives
the same ids at 3-4 times the speed. Byte-level BPE: Radford et al. 2019 (GPT-2), after Sennrich et al. 2016.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tiktoken
    from tokenizers import Tokenizer

PRETOKEN_PATTERN = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's split, because llama.cpp knows it by name ("qwen2"): a GGUF export then tokenises exactly as we do."""

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What a bare ``ByteLevel`` pre-tokenizer splits by."""


def byte_alphabet() -> list[str]:
    """The printable character that stands for each of the 256 bytes in ``tokenizer.json`` (GPT-2's mapping)."""
    kept = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in kept else chr(next(others)) for byte in range(256)]


def split_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The pair whose merge made this token: what BPE leaves of it when only earlier merges are allowed."""
    parts = [token[i : i + 1] for i in range(len(token))]
    limit = ranks[token]
    while len(parts) > 2:
        pairs = [(ranks.get(left + right, limit), i) for i, (left, right) in enumerate(pairwise(parts))]
        rank, i = min(pairs)
        if rank >= limit:
            raise ValueError(f"token {token!r} is not the merge of two earlier tokens")
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts[0], parts[1]


def to_tokenizers(ranks: dict[bytes, int], specials: list[str]) -> Tokenizer:
    """A `tokenizers` tokenizer with the specials at ids 0.. and the ranked tokens (single bytes first) after them."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    alphabet = byte_alphabet()

    def spell(token: bytes) -> str:
        return "".join(alphabet[byte] for byte in token)

    ordered = sorted(ranks, key=ranks.__getitem__)
    vocab = {token: i for i, token in enumerate([*specials, *map(spell, ordered)])}
    merges = [split_merge(token, ranks) for token in ordered if len(token) > 1]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[(spell(a), spell(b)) for a, b in merges], fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PRETOKEN_PATTERN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in specials])
    return tokenizer


def to_tiktoken(tokenizer_json: str) -> tiktoken.Encoding | None:
    """The tokenizer of a ``tokenizer.json`` text in tiktoken, or None when it is of a kind that tiktoken cannot repeat exactly."""
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
    made = [vocab.get(left + right) for left, right in pairs]
    merged = [token for token in vocab if len(token) > 1]
    singles = [token for token in vocab if len(token) == 1]
    if None in made or made != sorted(set(made)) or len(made) != len(merged) or len(singles) != 256:
        return None
    return {bytes(byte_of[character] for character in token): i for token, i in vocab.items()}


def split_pattern(spec: dict[str, Any]) -> str | None:
    """The regular expression a tokenizer splits by, when that and the byte mapping is all it does to a text."""
    if spec.get("normalizer") or spec.get("truncation") or spec.get("padding"):
        return None
    pre = spec.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    if any(step.get("add_prefix_space") for step in steps):
        return None
    if len(steps) == 1 and steps[0].get("type") == "ByteLevel" and steps[0].get("use_regex", True):
        return GPT2_PATTERN
    if [step.get("type") for step in steps] != ["Split", "ByteLevel"] or steps[1].get("use_regex", True):
        return None
    split = steps[0]
    plain = split.get("behavior") == "Isolated" and not split.get("invert") and "Regex" in split.get("pattern", {})
    return split["pattern"]["Regex"] if plain else None
