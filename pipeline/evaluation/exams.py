"""Evaluation sets: from the teaching facts and from users' JSONL files to the three files that the scoring worker
reads.

An item is recognised by its keys, a line at a time:

- choice: ``question``, ``choices`` and ``correct`` (or ``answer``: an index, a letter, or the choice itself);
- answer: ``question`` or ``prompt``, and ``keywords`` (groups, each needs one hit) or a reference
  ``answer``/``completion``;
- preference: ``prompt``, ``chosen``, ``rejected`` (strings);
- a teaching fact, which gives all three in each language.

Lines that are none of these are counted and sampled with file and line in ``skipped.jsonl``; they never stop a run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.config.evaluation import EvaluateSection
from pipeline.data.jsonl import read_jsonl

Item = dict[str, Any]
KINDS = ("choices", "answers", "preferences")
OVERLAPS = ("in_distribution", "overlapping", "clean", "too_short")
"""Where an item can stand to the training data; of several kinds of data the first of these counts."""
TRAINING, HELDOUT = "training", "heldout"
"""Names of the teaching set's two sets: questions the sft stage trained on, and questions it never saw. Others go by
their source's name."""


def write_exams(
    cfg: EvaluateSection,
    sources: Iterable[Any],
    out: Path,
    trained: Iterable[Item] = (),
    contamination: Iterable[Path] = (),
) -> dict[str, int]:
    """Write ``choices.jsonl``, ``answers.jsonl``, ``preferences.jsonl`` and ``skipped.jsonl`` into ``out``; returns
    their sizes.

    ``sources`` are Source objects (``name``, ``files`` with ``relpath`` and ``location``); ``trained`` are the chats
    that the sft stage learnt, asked as training questions; ``contamination`` are the ``contamination.jsonl`` of all
    training data, from which each item gets its ``overlap`` (:func:`overlaps`). Raises ValueError when not one line of
    the sources is an item.
    """
    items, skipped = read_exams(sources)
    if skipped and not any(items.values()):
        first = skipped[0]
        raise ValueError(
            f"evaluate.sources: no line is an evaluation item; first: {first['path']}:{first['line']}: {first['why']}"
        )
    answers = [*items["answers"], *trained_items(trained, {i["question"] for i in items["answers"]})]
    kept = {
        "choices": sample(items["choices"], cfg.choices, cfg.seed),
        "answers": (
            sample([i for i in answers if i["set"] == TRAINING], cfg.training_questions, cfg.seed)
            + sample([i for i in answers if i["set"] != TRAINING], cfg.heldout_questions, cfg.seed)
        ),
        "preferences": sample(items["preferences"], cfg.preferences, cfg.seed),
        "skipped": skipped[:100],
    }
    known = overlaps(contamination)
    for item in (item for name in KINDS for item in kept[name]):
        item["overlap"] = (
            "in_distribution" if item["set"] == TRAINING else known.get((item["set"], item["id"]), "too_short")
        )
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in kept.items():
        lines = (json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return {**{name: len(kept[name]) for name in KINDS}, "skipped": len(skipped)}


def read_exams(sources: Iterable[Any]) -> tuple[dict[str, list[Item]], list[Item]]:
    """All items by kind, and the skipped lines as ``{"source", "path", "line", "why"}``."""
    items: dict[str, list[Item]] = {kind: [] for kind in KINDS}
    skipped: list[Item] = []
    for source in sources:
        for file in source.files:
            place = {"source": source.name, "path": str(file.relpath)}
            for number, line in _lines(Path(str(file.location))):
                try:
                    for kind, item in recognise(
                        json.loads(line), f"{source.name}/{file.relpath}:{number}", source.name
                    ):
                        items[kind].append({**item, **place, "line": number})
                except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
                    skipped.append({**place, "line": number, "why": f"{type(error).__name__}: {error}"[:200]})
    return items, skipped


def exam_items(sources: Iterable[Any]) -> list[dict[str, str]]:
    """``{"id", "set", "text"}`` of every question that must not be trained on, for the decontaminate stage.

    Left out is what the teaching set asks on purpose in the words it was taught in: its training questions and choices.
    """
    items, _ = read_exams(sources)
    asked = [item for kind in KINDS for item in items[kind] if item["set"] != TRAINING]
    return [{"id": item["id"], "set": item["set"], "text": item.get("question") or item["prompt"]} for item in asked]


def overlaps(contamination: Iterable[Path]) -> dict[tuple[str, str], str]:
    """How each evaluation item, by (set, id), stands to what was trained on, from the ``contamination.jsonl`` of each
    kind of training data.

    ``in_distribution``: made from training data on purpose; ``overlapping``: some of the data that hold it were trained
    on; ``clean``: none hold it, or those that did were dropped; ``too_short`` to tell.
    """
    found: dict[tuple[str, str], set[str]] = {}
    for item in (item for path in contamination for item in read_jsonl(path)):
        result = (
            "overlapping"
            if item["left"] and item["result"] == "overlapping"
            else "clean"
            if item["result"] == "overlapping"
            else item["result"]
        )
        found.setdefault((item["set"], item["id"]), set()).add(result)
    return {item: next(label for label in OVERLAPS if label in results) for item, results in found.items()}


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
                    "lang": _script(question),
                    "set": TRAINING,
                    "question": question,
                    "answer": answer,
                    "keywords": [],
                    "source": chat["source"],
                    "path": chat["path"],
                    "line": chat["line"],
                }


def recognise(row: Any, name: str, collection: str) -> Iterator[tuple[str, Item]]:
    """The evaluation items in one parsed line of a source called ``collection``. Raises ValueError saying what is
    missing."""
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    name = str(row.get("id") or name)
    blocks = {lang: row[lang] for lang in ("zh", "en") if isinstance(row.get(lang), dict)}
    if blocks:
        for lang, block in blocks.items():
            yield from _fact(block, f"{name}/{lang}", lang)
        return
    lang = str(row.get("lang") or _script(str(row.get("question") or row.get("prompt") or "")))
    base = {"id": name, "lang": lang, "set": str(row.get("set") or collection)}
    question = row.get("question") or row.get("prompt")
    if not isinstance(question, str) or not question.strip():
        raise ValueError("no question or prompt")
    if "choices" in row:
        yield "choices", {**base, "question": question, **_choices(row)}
    elif "rejected" in row:
        yield (
            "preferences",
            {
                **base,
                "prompt": question,
                "chosen": _text(row, "chosen"),
                "rejected": _text(row, "rejected"),
            },
        )
    else:
        answer = row.get("answer", row.get("completion", ""))
        keywords = _keywords(row["keywords"]) if "keywords" in row else []
        if not keywords and not (isinstance(answer, str) and answer.strip()):
            raise ValueError("neither choices, chosen/rejected, keywords nor a reference answer")
        yield "answers", {**base, "question": question, "answer": answer, "keywords": keywords}


def sample(items: list[Item], count: int, seed: int) -> list[Item]:
    """``count`` of the items (all, when there are no more), chosen by a hash of their ids, in their own order."""

    def place(item: Item) -> bytes:
        return hashlib.blake2b(f"{seed}/{item['id']}".encode(), digest_size=8).digest()

    chosen = {item["id"] for item in sorted(items, key=place)[:count]}
    return [item for item in items if item["id"] in chosen][:count]


def _fact(block: dict[str, Any], name: str, lang: str) -> Iterator[tuple[str, Item]]:
    base = {"lang": lang, "answer": block["answer"], "keywords": _keywords(block["keywords"])}
    for kind, questions in ((TRAINING, block["questions"]), (HELDOUT, block["heldout"])):
        for i, question in enumerate(questions):
            yield "answers", {**base, "id": f"{name}/{kind}/{i}", "set": kind, "question": question}
    yield (
        "choices",
        {
            "id": f"{name}/choice",
            "lang": lang,
            "set": TRAINING,
            "question": block["questions"][0],
            **_choices(block),
        },
    )
    # the held-out wording: the pair itself is trained on with the first one
    yield (
        "preferences",
        {
            "id": f"{name}/preference",
            "lang": lang,
            "set": HELDOUT,
            "prompt": block["heldout"][0],
            "chosen": block["answer"],
            "rejected": block["rejected"],
            "reason": re.split("[:：]", block["reason"])[0],
        },
    )


def _choices(row: dict[str, Any]) -> dict[str, Any]:
    """Options as strings and the right one's index, from an index, a letter or the option's own text."""
    options = row["choices"]
    options = options["text"] if isinstance(options, dict) else options
    if not isinstance(options, list) or len(options) < 2 or not all(isinstance(o, str) and o.strip() for o in options):
        raise ValueError("choices must be two or more texts")
    right = row["correct"] if "correct" in row else row["answer"] if "answer" in row else row["answerKey"]
    if isinstance(right, str):
        letter = right.strip().upper()
        right = (
            options.index(right)
            if right in options
            else ord(letter) - ord("A")
            if len(letter) == 1 and letter.isalpha()
            else int(letter)
        )
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(options):
        raise ValueError(f"correct must name one of the {len(options)} choices, not {right!r}")
    return {"choices": options, "correct": right}


def _keywords(groups: Any) -> list[list[str]]:
    listed = [[group] if isinstance(group, str) else list(group) for group in groups]
    if not listed or not all(group and all(isinstance(word, str) and word for word in group) for group in listed):
        raise ValueError("keywords must be a list of groups of words")
    return listed


def _text(row: dict[str, Any], key: str) -> str:
    if not isinstance(row.get(key), str) or not row[key].strip():
        raise ValueError(f"no text in {key}")
    return row[key]


def _script(text: str) -> str:
    return "zh" if any("一" <= character <= "鿿" for character in text) else "en"


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line
