"""Preference pairs to a token dataset with loss masks, for the dpo stage.

A pair is trained on whole or not at all: when both answers with their prompt do not fit into one row, the prompt loses
its oldest exchanges, and a pair that is still too long is dropped and counted. An answer without its end would teach
that it has none.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from model.tokens.turns import Message
from pipeline.config.base import Progress, quiet
from pipeline.formats.record import Record
from pipeline.tokens.encoder import Encoder
from pipeline.tokens.sequences import Made, Unusable, context_only, fit, write_dataset


def encode_pairs(
    records: Iterable[Record],
    tokenizer: Path,
    out: Path,
    *,
    max_tokens: int,
    val_share: float = 0.05,
    seed: int = 0,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Preferences ``{"prompt", "chosen", "rejected", "source", "path", "line"}`` to a dataset of kind "pairs".

    Sequence 2i is the chosen answer after the prompt and 2i + 1 the rejected one; only the answers are targets.
    ``max_tokens`` bounds a pair: the slots of both sequences in their row. Otherwise as
    :func:`pipeline.tokens.chats.encode_chats`.
    """
    return write_dataset(records, _pair_sequences, "pairs", tokenizer, out, max_tokens, val_share, seed, progress)


def _pair_sequences(record: Record, chat: Encoder, limit: int) -> Made:
    answers = [record["chosen"].strip(), record["rejected"].strip()]
    if answers[0] == answers[1]:
        raise Unusable("equal_answers")
    if not answers[0]:
        raise Unusable("no_answer")
    turns: list[Message] = [{"role": "assistant", "content": answer} for answer in answers]
    # both answers lie in one row, each after the whole prompt; the last token of a sequence is only a target
    room = limit + 2 - sum(map(chat.answer_size, answers))
    kept, left_out = fit(chat, record["prompt"], room // 2)
    pair = [chat.chat([*map(context_only, kept), turn]) for turn in turns]
    if sum(len(ids) - 1 for ids, _ in pair) > limit:  # a template may write more around an answer than it did before
        raise Unusable("too_long")
    return Made(pair, sum(len(answer.encode()) for answer in answers), left_out)
