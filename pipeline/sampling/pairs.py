"""Scored answers to preference pairs: the best one and the worst, if they differ."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from model.generation.judge import final_number, is_right
from pipeline.config.sample import SampleSection
from pipeline.data.documents import Tally, finish
from pipeline.evaluation.forms import script
from pipeline.formats.record import Record
from pipeline.sampling.prompt import Prompt
from storage.files import write_text


class Judged(NamedTuple):
    """An answer and its score; the higher, the better."""

    text: str
    score: float


def by_rule(judge: str, prompt: Prompt, answer: str) -> float:
    """1 when ``answer`` is right by the rule "keywords" or "exact", else 0."""
    if judge == "keywords":
        return float(is_right(answer, prompt["keywords"], prompt["reference"]))
    number = final_number(prompt["reference"]) if "####" in prompt["reference"] else None
    if number is not None:
        return float(final_number(answer) == number)
    return float(_plain(answer) == _plain(prompt["reference"]))


def _plain(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())


def pairs_of(judged: Sequence[Judged], most: int, gap: float) -> list[tuple[Judged, Judged]]:
    """Up to ``most`` pairs (better, worse) whose scores lie further apart than ``gap``: the best with the worst, the
    next best with the next worst. Of equal scores the earlier answer counts, each wording once."""
    different = list({one.text: one for one in reversed(judged)}.values())[::-1]
    best = sorted(different, key=lambda one: -one.score)
    worst = sorted(different, key=lambda one: one.score)
    return [
        (better, worse)
        for better, worse in list(zip(best, worst, strict=True))[:most]
        if better.score - worse.score > gap
    ]


@dataclass
class _Sums:
    """What is counted over prompts."""

    answers: int = 0
    empty: int = 0
    score: float = 0.0
    best: float = 0.0
    worst: float = 0.0
    prompts: int = 0
    tokens: int = 0
    cut_short: int = 0

    def see(self, judged: Sequence[Judged]) -> None:
        scores = [one.score for one in judged]
        self.prompts += 1
        self.answers += len(scores)
        self.score += sum(scores) / len(scores)
        self.best += max(scores)
        self.worst += min(scores)


def write_pairs(
    cfg: SampleSection,
    prompts: Sequence[Prompt],
    answered: Sequence[Record],
    judged: Sequence[Sequence[Judged]],
    out: Path,
) -> dict[str, float | str]:
    """Write ``records.jsonl`` (the normal form of preferences, with ``scores`` of both answers), ``stats.json`` and
    ``samples.jsonl`` into ``out``; returns flat metrics.

    Raises ValueError when no pair is left.
    """
    tally, sums, records = Tally(), _Sums(), []
    for prompt, said, own in zip(prompts, answered, judged, strict=True):
        place = {"id": _id(prompt), **{key: prompt[key] for key in ("source", "path", "line")}}
        question = prompt["messages"][-1]["content"]
        for key, name in (("by_source", prompt["source"]), ("by_lang", script(question))):
            tally.by[key].setdefault(name, Counter())["docs_in"] += 1
        tally.numbers["docs_in"] += 1
        sums.empty += sum(not text for text in said["answers"])
        sums.tokens += sum(said["lengths"])
        sums.cut_short += said["cut_short"]
        if own:
            sums.see(own)
        pairs = pairs_of(own, cfg.pairs, cfg.min_gap)
        if not pairs:
            reason = "too_long" if not said["answers"] else "no_answer" if not own else "tie"
            told = "\n".join(f"{one.score:g}  {one.text}" for one in own)
            tally.note("dropped", reason, place, lambda q=question, t=told: (q, t), _WHY[reason])
            continue
        for key, name in (("by_source", prompt["source"]), ("by_lang", script(question))):
            tally.by[key][name]["docs_out"] += 1
        tally.numbers["docs_out"] += 1
        for better, worse in pairs:
            records.append(
                {
                    "prompt": prompt["messages"],
                    "chosen": better.text,
                    "rejected": worse.text,
                    "scores": [better.score, worse.score],
                    **place,
                }
            )
    finish(out, [tally.json()])
    if not records:
        counts = ", ".join(f"{reason} {n}" for reason, n in tally.dropped.most_common())
        raise ValueError(
            f"no pair is left of {len(prompts)} prompts: {counts}; see {out / 'samples.jsonl'}. Raise"
            " sample.temperature or sample.answers, or set sample.reference=true"
        )
    write_jsonl(out / "records.jsonl", records)
    seen = max(1, sums.prompts)
    told = (
        f"{len(records):,} pairs of {len(prompts):,} prompts, scores {sums.worst / seen:.3g} to {sums.best / seen:.3g}"
    )
    return {
        "headline": told,
        "records": len(prompts),
        "pairs": len(records),
        **{f"dropped/{reason}": n for reason, n in tally.dropped.items()},
        "answers": sums.answers,
        "answers_empty": sums.empty,
        "answers_cut_short": sums.cut_short,
        "tokens": sums.tokens,
        "score_mean": sums.score / seen,
        "score_best": sums.best / seen,
        "score_worst": sums.worst / seen,
    }


_WHY = {
    "tie": "the answers' scores are not further apart than sample.min_gap",
    "too_long": "the prompt and sample.max_new_tokens do not fit the model's window",
    "no_answer": "all answers are empty",
}


def _id(prompt: Prompt) -> str:
    return f"{prompt['source']}/{prompt['path']}:{prompt['line']}"


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows))
