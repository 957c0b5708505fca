"""Bits per byte of held-out text: how well a model predicts it, independent of the tokenizer.

Bytes are those of the text, which the dataset counts a document; what single tokens spell is not asked, since
normalizers, space marks, byte fallback and unknown tokens make that another number. Tokens are predicted as in
training: the first of a document from the end-of-text token alone, and documents do not see each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from model.generation.compare import paired
from model.generation.scorer import Scorer
from model.generation.summary import Bits, BitsPart
from model.tokens.rows import read_split


@dataclass(frozen=True)
class HeldOut:
    """Pieces of documents, each token of which but the first is predicted; of each the UTF-8 ``sizes`` of the text that
    it is and its ``documents`` number, and what is known of the documents by name (``parts``)."""

    pieces: list[list[int]]
    sizes: list[float] = field(default_factory=list)
    documents: list[int] = field(default_factory=list)
    parts: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of all pieces."""
        return round(sum(self.sizes))


def held_out(tokens: Path, limit: int, window: int, parts: Mapping[str, Sequence[str]] | None = None) -> HeldOut:
    """The validation split's documents after an end-of-text token each, cut into pieces of ``window`` + 1 tokens that
    share their edge token, up to ``limit`` tokens (0: all). ``parts``: {"lang": of each document, …}."""
    split = read_split(tokens, "val")
    text = HeldOut([], parts=parts or {})
    taken, spelled = 0, 0.0
    for number, (begin, end) in enumerate(pairwise(split.offsets.tolist())):
        document = np.concatenate([[split.meta["eos_id"]], split.tokens[begin:end]])
        for at in range(0, end - begin, window):
            if limit and taken >= limit:
                return text
            text.pieces.append(document[at : at + window + 1].tolist())
            taken += len(text.pieces[-1]) - 1
            before, spelled = spelled, split.spelled(taken)
            text.sizes.append(spelled - before)
            text.documents.append(number)
    return text


def bits_per_byte(scorer: Scorer, text: HeldOut) -> Bits | None:
    """Bits per UTF-8 byte of the text, and of its parts. None when there is none."""
    if not text.pieces or not text.bytes:
        return None
    values = scorer.log_probabilities([(piece, 1) for piece in text.pieces])
    nats = [-float(v.sum()) for v in values]
    parts: dict[str, list[int]] = {}
    for kind, names in text.parts.items():
        if len(set(names)) > 1:
            for i, number in enumerate(text.documents):
                if number < len(names):
                    parts.setdefault(f"{kind}.{names[number]}", []).append(i)
    counts = [len(v) for v in values]
    return {
        **_part(nats, text.sizes, counts, range(len(nats))),
        "tokens": sum(counts),
        "parts": {name: _part(nats, text.sizes, counts, of) for name, of in sorted(parts.items())},
        "nats": nats,
        "sizes": text.sizes,
    }


def _part(nats: Sequence[float], sizes: Sequence[float], counts: Sequence[int], of: Sequence[int]) -> BitsPart:
    """The pieces ``of`` a text: their bits per byte, with a 95 % interval by resampling them, and perplexity."""
    size = sum(sizes[i] for i in of)
    bits = [nats[i] / math.log(2) for i in of]
    spread = paired(bits, [0.0] * len(bits), 0, [sizes[i] for i in of])
    return {
        "value": sum(bits) / max(size, 1.0),
        "low": spread["low"] if spread else 0.0,
        "high": spread["high"] if spread else 0.0,
        "perplexity": math.exp(min(700.0, sum(nats[i] for i in of) / max(1, sum(counts[i] for i in of)))),
        "bytes": round(size),
    }
