"""Answers judged against those of the model before, by a model behind an OpenAI-compatible endpoint.

Each question is asked twice, with the two answers in either order; a verdict that changes with the order is a tie. What
was said is kept by the request (in ``_run/judge``), so an evaluation that is made again asks only what is new.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pipeline.config.base import Progress
from pipeline.config.evaluation import EvaluateSection
from pipeline.config.sample import SampleSection
from pipeline.data.jsonl import read_jsonl
from pipeline.evaluation.forms import TRAINING
from pipeline.sampling.openai_judge import JudgeFailed, compare_all
from pipeline.sampling.prompt import Prompt


def judge_answers(cfg: EvaluateSection, out: Path, models: Sequence[str], progress: Progress) -> dict[str, float]:
    """Compare each model's answers to the held-out questions with those of the one before it; adds ``judged`` to
    ``out/scores.json``, writes ``judged.jsonl``, and gives flat numbers: ``MODEL.judged`` is the share of questions
    won, ties counted half."""
    items = [item for item in read_jsonl(out / "answers.jsonl") if item["set"] != TRAINING]
    prompts = [_prompt(item) for item in items]
    judge = SampleSection(
        judge_model=cfg.judge_model, judge_url=cfg.judge_url, judge_parallel=cfg.judge_parallel, answers=0
    )
    scores: dict[str, Any] = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    flat: dict[str, float] = {}
    rows: list[dict[str, Any]] = [{"id": item["id"], "set": item["set"]} for item in items]
    for before, name in pairwise(models):
        answers = [(item["said"][before], item["said"][name]) for item in items]
        try:
            verdicts = compare_all(judge, prompts, answers, out / "_run" / "judge", progress)
        except JudgeFailed as error:  # the options have their own names here
            raise JudgeFailed(str(error).replace("sample.judge", "evaluate.judge")) from None
        won = [0.5 + (own - other) / 4 for other, own in verdicts]
        scores[name]["judged"] = share = _share(won)
        flat |= {f"{name}.judged": share["share"], f"{name}.judged.n": share["asked"], f"{name}.judged.chance": 0.5}
        flat |= {f"{name}.judged.low": share["low"], f"{name}.judged.high": share["high"]}
        for row, value in zip(rows, won, strict=True):
            row[name] = value
    (out / "scores.json").write_text(json.dumps(scores, indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
    lines = (json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    (out / "judged.jsonl").write_text("".join(lines), "utf-8")
    return flat


def _prompt(item: Mapping[str, Any]) -> Prompt:
    question = f"{item['context']}\n\n{item['question']}" if item.get("context") else item["question"]
    return {
        "messages": [{"role": "user", "content": question}],
        "reference": str(item.get("answer", "")),
        "keywords": [],
        "source": item["source"],
        "path": item["path"],
        "line": item["line"],
    }


def _share(won: Sequence[float]) -> dict[str, float]:
    """The mean of wins with a 95 % interval (normal: ties make it narrower than a share's)."""
    n = len(won)
    mean = sum(won) / n if n else 0.5
    deviation = math.sqrt(sum((value - mean) ** 2 for value in won) / (n - 1)) if n > 1 else 0.5
    half = 1.96 * deviation / math.sqrt(n) if n else 0.5
    low, high = max(0.0, mean - half), min(1.0, mean + half)
    return {
        "right": sum(won),
        "asked": n,
        "share": mean,
        "low": low,
        "high": high,
        "chance": 0.5,
        "at_chance": low <= 0.5 <= high,
    }
