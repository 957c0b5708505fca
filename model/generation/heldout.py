"""Bits per byte of held-out text: how well a model predicts it, independent of the tokenizer.

Bytes are those of the text, which the dataset counts a document; what single tokens spell is not asked, since
normalizers, space marks, byte fallback and unknown tokens make that another number. Tokens are predicted as in
training: the first of a document from the end-of-text token alone, and documents do not see each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypedDict

import numpy as np

from model.generation.scorer import Scorer
from model.tokens.rows import read_split


@dataclass(frozen=True)
class HeldOut:
    """Pieces of documents, each token of which but the first is predicted, and the UTF-8 bytes of the text they are."""

    pieces: list[list[int]]
    bytes: int


class Bits(TypedDict):
    """Bits per byte, over how many bytes and tokens."""

    value: float
    bytes: int
    tokens: int


def held_out(tokens: Path, limit: int, window: int) -> HeldOut:
    """The validation split's documents after an end-of-text token each, cut into pieces of ``window`` + 1 tokens that
    share their edge token, up to ``limit`` tokens (0: all)."""
    split = read_split(tokens, "val")
    pieces: list[list[int]] = []
    taken = 0
    for begin, end in pairwise(split.offsets.tolist()):
        document = np.concatenate([[split.meta["eos_id"]], split.tokens[begin:end]])
        for at in range(0, end - begin, window):
            if limit and taken >= limit:
                return HeldOut(pieces, round(split.spelled(taken)))
            pieces.append(document[at : at + window + 1].tolist())
            taken += len(pieces[-1]) - 1
    return HeldOut(pieces, round(split.spelled(taken)))


def bits_per_byte(scorer: Scorer, text: HeldOut) -> Bits | None:
    """Bits per UTF-8 byte of the text. None when there is none."""
    if not text.pieces or not text.bytes:
        return None
    values = scorer.log_probabilities([(piece, 1) for piece in text.pieces])
    nats = -sum(float(v.sum()) for v in values)
    return {"value": nats / math.log(2) / text.bytes, "bytes": text.bytes, "tokens": sum(len(v) for v in values)}
