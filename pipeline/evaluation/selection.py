"""What the evaluate stage asks: a sample of the exams' items and of the questions that sft learnt, each with how it
stands to the training data, as the files that the scoring worker reads."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypedDict

from pipeline.config.evaluation import EvaluateSection
from pipeline.data.jsonl import read_jsonl
from pipeline.evaluation.exams import ExamSource, complaints, read_exams
from pipeline.evaluation.forms import KINDS, TRAINING, script
from pipeline.evaluation.gold import Item
from pipeline.evaluation.standard.prompts import read_standard

OVERLAPS = ("in_distribution", "overlapping", "clean", "too_short")
"""Where an item can stand to the training data; of several kinds of data the first of these counts."""


class StandardSource(ExamSource, Protocol):
    """A source that is a standard exam."""

    @property
    def form(self) -> str: ...


class Taken(TypedDict):
    """Training data that exams took away: how many of how many records, and by which set of items how many."""

    taken: int
    of: int
    sets: dict[str, int]


def write_exams(
    cfg: EvaluateSection,
    sources: Sequence[ExamSource],
    out: Path,
    trained: Iterable[Item] = (),
    contamination: Iterable[Path] = (),
    standard: Sequence[StandardSource] = (),
    contaminated: bool = True,
) -> dict[str, int]:
    """Write ``choices.jsonl``, ``answers.jsonl``, ``preferences.jsonl``, ``standard.jsonl`` and ``skipped.jsonl`` into
    ``out``; returns their sizes, and how many files of few-shot or training examples were not asked (``left``).

    ``standard`` are exams that are asked as their authors' harness does. ``trained`` are the chats that the sft stage
    learnt, asked as training questions; ``contamination`` are the ``contamination.jsonl`` of all training data, from
    which each item gets its ``overlap`` (:func:`overlaps`; not ``contaminated``: nothing is said). Raises ValueError
    for a source of which too many records are no items.
    """
    exams = read_exams(sources)
    if problems := complaints(exams, [source.name for source in sources], cfg.max_bad_records):
        raise ValueError("\n".join(f"evaluate.sources: {line}" for line in problems))
    items = exams.items
    answers = [*items["answers"], *trained_items(trained, {i["question"] for i in items["answers"]})]
    kept: dict[str, list[Any]] = {
        "choices": sample(items["choices"], cfg.choices, cfg.seed),
        "answers": (
            sample([i for i in answers if i["set"] == TRAINING], cfg.training_questions, cfg.seed)
            + sample([i for i in answers if i["set"] != TRAINING], cfg.heldout_questions, cfg.seed)
        ),
        "preferences": sample(items["preferences"], cfg.preferences, cfg.seed),
        "standard": [],
        "skipped": exams.skipped,
    }
    shots = None if cfg.shots < 0 else cfg.shots
    for source in standard:
        exam = read_standard(source, source.form, shots, cfg.limit)
        kept["standard"] += exam["items"]
        kept["skipped"] += exam["unread"]
    known = overlaps(contamination)
    for item in (item for name in (*KINDS, "standard") for item in kept[name] if contaminated):
        item["overlap"] = (
            "in_distribution" if item["set"] == TRAINING else known.get((item["set"], item["id"]), "too_short")
        )
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in kept.items():
        lines = (json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return {
        **{name: len(kept[name]) for name in KINDS},
        **({"standard": len(kept["standard"])} if standard else {}),
        "skipped": exams.bad.total(),
        "left": len(exams.left),
    }


def overlaps(contamination: Iterable[Path]) -> dict[tuple[str, str], str]:
    """How each evaluation item, by (set, id), stands to what was trained on, from the ``contamination.jsonl`` of each
    kind of training data.

    ``in_distribution``: made from training data on purpose; ``overlapping``: some of the data that hold it were trained
    on; ``clean``: none hold it, or those that did were dropped; ``too_short`` to tell.
    """
    found: dict[tuple[str, str], set[str]] = {}
    for item in (item for path in contamination for item in read_jsonl(path)):
        result = "clean" if item["result"] == "overlapping" and not item["left"] else item["result"]
        found.setdefault((item["set"], item["id"]), set()).add(result)
    return {item: next(label for label in OVERLAPS if label in results) for item, results in found.items()}


def taken(learnt: Mapping[str, Path]) -> dict[str, Taken]:
    """What exams took from each kind of training data (name to artifact, which holds ``stats.json`` and
    ``contamination.jsonl``); kinds of which they took nothing are left out."""
    rows: dict[str, Taken] = {}
    for name, path in learnt.items():
        stats = json.loads((path / "stats.json").read_text(encoding="utf-8"))
        count = int(stats["dropped"].get("contaminated", 0))
        sets: Counter[str] = Counter()
        for item in read_jsonl(path / "contamination.jsonl"):
            sets[item["set"]] += item["documents"] - item["left"]
        if count:
            rows[name] = {"taken": count, "of": int(stats["docs_in"]), "sets": dict((+sets).most_common())}
    return rows


def trained_items(chats: Iterable[Item], known: set[str]) -> Iterator[Item]:
    """Single-turn chats in normal form as training questions with their answer as reference; each question once, none
    that is ``known``."""
    for chat in chats:
        if [message["role"] for message in chat["messages"]] == ["user", "assistant"]:
            question, answer = (message["content"] for message in chat["messages"])
            if question not in known and answer.strip():
                known.add(question)
                name = hashlib.blake2b(question.encode(), digest_size=8).hexdigest()
                yield {
                    "id": f"{chat['source']}/{name}",
                    "lang": script(question),
                    "set": TRAINING,
                    "question": question,
                    "answer": answer,
                    "keywords": [],
                    "source": chat["source"],
                    "path": chat["path"],
                    "line": chat["line"],
                }


def sample(items: list[Item], count: int, seed: int) -> list[Item]:
    """``count`` of the items (all, when there are no more), chosen by a hash of their ids, in their own order.

    Every set gets the same share, or is asked whole where it is smaller: a short exam is not lost beside a long one.
    """

    def place(item: Item) -> bytes:
        return hashlib.blake2b(f"{seed}/{item['id']}".encode(), digest_size=8).digest()

    sets: dict[str, list[Item]] = {}
    for item in items:
        sets.setdefault(item["set"], []).append(item)
    chosen: set[int] = set()
    for left, own in enumerate(sorted(sets.values(), key=len)):
        share = (count - len(chosen)) // (len(sets) - left)
        chosen |= {id(item) for item in sorted(own, key=place)[:share]}
    return [item for item in items if id(item) in chosen]
