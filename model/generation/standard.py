"""The standard exams put to a model: the likelihood of every choice, or a generated answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from model.generation.forest import Scored
from model.generation.measures import Said
from model.generation.plain import PlainText, continue_text
from model.generation.scorer import Scorer

Item = dict[str, Any]
AT_ONCE = 512
"""Items whose token ids are held at once."""
UNTIL = ("Question:", "</s>", "<|im_end|>")
"""What ends a generated answer, as the harness's gsm8k has it."""
NEW_TOKENS = 256


def ask(scorer: Scorer, items: Sequence[Item]) -> list[Said]:
    """What the model gives for every item, in their order; one that cannot be asked says why."""
    text = scorer.plain
    found: dict[int, Said] = {}
    order = list(enumerate(items))
    for (generated, _), group in groupby(order, key=lambda pair: (not pair[1]["choices"], pair[1]["set"])):
        rows = list(group)
        if generated:
            found |= _answers(scorer, text, rows)
            continue
        for part in _parts(rows):
            found |= _choices(scorer, text, part)
    return [found[i] for i in range(len(items))]


def _parts(rows: list[tuple[int, Item]]) -> Iterator[list[tuple[int, Item]]]:
    """Runs of a subject's items, which share their examples, of at most so many."""
    for _, group in groupby(rows, key=lambda pair: pair[1]["subject"]):
        own = list(group)
        for begin in range(0, len(own), AT_ONCE):
            yield own[begin : begin + AT_ONCE]


def _choices(scorer: Scorer, text: PlainText, rows: Sequence[tuple[int, Item]]) -> dict[int, Said]:
    found: dict[int, Said] = {}
    sequences: list[Scored] = []
    places: list[tuple[int, int]] = []
    for i, item in rows:
        try:
            pairs = [text.pair(item["context"], f" {choice}", scorer.window) for choice in item["choices"]]
        except ValueError as error:
            found[i] = {"log_likelihood": None, "answer": None, "why": str(error)}
            scorer.tick(len(item["choices"]))
            continue
        places.append((i, len(pairs)))
        sequences += pairs
    values = iter(scorer.log_probabilities(sequences))
    for i, count in places:
        sums = [float(next(values).sum()) for _ in range(count)]
        found[i] = {"log_likelihood": sums, "answer": None, "why": ""}
    return found


def _answers(scorer: Scorer, text: PlainText, rows: Sequence[tuple[int, Item]]) -> dict[int, Said]:
    said: list[str] = []
    for begin in range(0, len(rows), 4 * scorer.batch):
        part = [item["context"] for _, item in rows[begin : begin + 4 * scorer.batch]]
        said += continue_text(scorer.model, text, part, UNTIL, NEW_TOKENS, scorer.batch)
        scorer.tick(len(part))
    return {i: {"log_likelihood": None, "answer": answer, "why": ""} for (i, _), answer in zip(rows, said, strict=True)}


def asked(items: Sequence[Item]) -> int:
    """How many likelihoods and answers the items need, for progress."""
    return sum(len(item["choices"]) or 1 for item in items)
