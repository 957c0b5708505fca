"""Byte-level BPE: learning the merges, and the tokenizer they make.

Merges are those that the trainer of `tokenizers` finds, ties included, learnt by compiled kernels at about ten times
its speed. Users and transformers want ``tokenizer.json``, and encoding wants tiktoken, which gives the same ids at five
times the speed. Byte-level BPE: Radford et al. 2019 (GPT-2), after Sennrich et al. 2016.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pipeline.tokens.patterns import PRETOKEN_PATTERN, byte_alphabet, split_pattern
from pipeline.tokens.tiktoken_form import to_tiktoken

if TYPE_CHECKING:
    from tokenizers import Tokenizer


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
    pattern = split_pattern(spec)
    if encoding is None or pattern is None:
        raise ValueError("only a byte-level BPE whose ids are in the order of its merges can be extended")
    words, counts = _pretokens(pattern, texts)
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
