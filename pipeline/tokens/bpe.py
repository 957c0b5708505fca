"""Byte-level BPE: learning the merges, and the same merges as a `tokenizers` tokenizer and as a `tiktoken` encoding.

Merges are those that the trainer of `tokenizers` finds, ties included, learnt by compiled kernels at about ten times
its speed. Users and transformers want ``tokenizer.json``, and encoding wants tiktoken, which gives the same ids at five
times the speed. Byte-level BPE: Radford et al. 2019 (GPT-2), after Sennrich et al. 2016.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
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


def learn_merges(texts: Iterable[str], limit: int) -> list[tuple[int, int]]:
    """Up to `limit` merges of the most frequent pairs, in order; fewer when none is left.

    Ids 0 to 255 are the bytes in the order of their printable characters, as `tokenizers` numbers them, so that it
    breaks ties alike; merge i makes id 256 + i. Texts are streamed: memory grows with the distinct pre-tokens.
    """
    import numpy as np

    from pipeline.kernels.bpe import learn
    from pipeline.kernels.pretokens import count

    words, offsets, counts = count(texts)
    ids = np.argsort(np.argsort(byte_alphabet())).astype(np.uint8)
    return [(a, b) for a, b in learn(ids[words], offsets, counts, limit).tolist()]


def extend_merges(tokenizer_json: str, texts: Iterable[str], limit: int) -> str:
    """A ``tokenizer.json`` text with up to `limit` more merges, learnt from `texts` after its own; every id it had
    stays.

    Raises ValueError when it is not a byte-level BPE whose ids are in the order of its merges.
    """
    import numpy as np

    from pipeline.kernels.bpe import learn

    spec, encoding = json.loads(tokenizer_json), to_tiktoken(tokenizer_json)
    if encoding is None:
        raise ValueError("only a byte-level BPE whose ids are in the order of its merges can be extended")
    words, counts = _pretokens(split_pattern(spec), texts)
    ids = [encoding.encode_ordinary(word) for word in words]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum([len(word) for word in ids], dtype=np.int64)])
    known = encoding.max_token_value + 1
    merges = learn(
        np.array([i for word in ids for i in word], np.int32), offsets, np.array(counts, np.int64), limit, known
    )
    vocab, listed = spec["model"]["vocab"], spec["model"]["merges"]
    token = {i: text for text, i in vocab.items()}
    for i, (a, b) in enumerate(merges.tolist(), known):
        token[i] = token[a] + token[b]
        vocab[token[i]] = i
        listed.append([token[a], token[b]] if not listed or isinstance(listed[0], list) else f"{token[a]} {token[b]}")
    return json.dumps(spec, ensure_ascii=False)


def _pretokens(pattern: str, texts: Iterable[str]) -> tuple[list[str], list[int]]:
    """Distinct pre-tokens of a pattern and their counts, in order of first appearance."""
    if pattern == PRETOKEN_PATTERN:
        from itertools import pairwise

        from pipeline.kernels.pretokens import count

        data, offsets, counts = count(texts)
        whole = data.tobytes()
        return [whole[i:j].decode() for i, j in pairwise(offsets.tolist())], counts.tolist()
    from collections import Counter

    import regex

    split = regex.compile(pattern)
    found = Counter(piece for text in texts for piece in split.findall(text))
    return list(found), list(found.values())


def to_tokenizers(merges: list[tuple[int, int]], specials: list[str]) -> Tokenizer:
    """A `tokenizers` tokenizer with the specials at ids 0.., then the bytes, then the tokens of the merges."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    tokens = sorted(byte_alphabet())
    for a, b in merges:
        tokens.append(tokens[a] + tokens[b])
    vocab = {token: i for i, token in enumerate([*specials, *tokens])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[(tokens[a], tokens[b]) for a, b in merges], fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKEN_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in specials])
    return tokenizer


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
