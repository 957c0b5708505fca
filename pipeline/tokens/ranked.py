"""Preference pairs to a token dataset for the reward stage: whole conversations, of which one is better.

Sequence 2i is the conversation with the chosen answer and 2i + 1 that with the rejected one. A token stands behind the
end of each, so that the last real token is a slot with a target: where the score is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from model.tokens.rows import read_split
from model.tokens.turns import Message
from pipeline.config.base import Progress, quiet
from pipeline.formats.record import Record
from pipeline.tokens.encoder import Encoder
from pipeline.tokens.sequences import Made, Unusable, fit, write_dataset


class _Facts(NamedTuple):
    margin: float
    lang: str


def encode_ranked(
    records: Iterable[Record],
    tokenizer: Path,
    out: Path,
    *,
    max_tokens: int,
    val_share: float = 0.1,
    seed: int = 0,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Preferences ``{"prompt", "chosen", "rejected", "margin"?}`` to a dataset of kind "ranked"; returns counts.

    Beside each split lie ``<split>.margin.npy`` [pairs] (how much better the chosen answer is at least; 0 where nothing
    says) and ``<split>.lang.json`` [pairs]. ``max_tokens`` bounds a pair. Raises ValueError when nothing is left.
    """
    facts: dict[bytes, _Facts] = {}

    def make(record: Record, chat: Encoder, limit: int) -> Made:
        made = _sequences(record, chat, limit)
        asked = [m["content"] for m in record["prompt"] if m["role"] == "user"]
        facts[_name(made.sequences[0][0], made.sequences[1][0])] = _Facts(
            float(record.get("margin", 0.0)), _language(asked[-1])
        )
        return made

    counts = write_dataset(records, make, "ranked", tokenizer, out, max_tokens, val_share, seed, progress)
    for split in ("train", "val"):
        data = read_split(out, split)
        pieces = np.split(data.tokens, data.offsets[1:-1]) if data.sequences else []
        own = [facts[_name(*pieces[i : i + 2])] for i in range(0, len(pieces), 2)]
        np.save(out / f"{split}.margin.npy", np.array([one.margin for one in own], np.float32))
        (out / f"{split}.lang.json").write_text(json.dumps([one.lang for one in own]) + "\n", encoding="utf-8")
    counts.pop("bytes_per_token")  # the text is no target
    return counts


def _sequences(record: Record, chat: Encoder, limit: int) -> Made:
    answers = [record["chosen"].strip(), record["rejected"].strip()]
    if answers[0] == answers[1]:
        raise Unusable("equal_answers")
    if not all(answers):
        raise Unusable("no_answer")
    turns: list[Message] = [{"role": "assistant", "content": answer} for answer in answers]
    room = limit - sum(map(chat.answer_size, answers))
    kept, left_out = fit(chat, record["prompt"], room // 2)
    whole = [chat.chat([*kept, turn])[0] for turn in turns]
    if sum(map(len, whole)) > limit:  # a template may write more around an answer than it did before
        raise Unusable("too_long")
    return Made([([*ids, chat.pad_id], [0] * len(ids) + [1]) for ids in whole], 0, left_out)


def _language(text: str) -> str:
    return "zh" if any("一" <= character <= "鿿" for character in text) else "en"


def _name(chosen: Iterable[int], rejected: Iterable[int]) -> bytes:
    return hashlib.blake2b(repr([list(map(int, chosen)), list(map(int, rejected))]).encode(), digest_size=16).digest()
