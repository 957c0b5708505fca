"""How a byte-level BPE splits a text before it merges: the two patterns that we know by name, and the byte alphabet."""

from __future__ import annotations

from typing import Any

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
