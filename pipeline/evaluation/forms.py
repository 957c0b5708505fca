"""The forms of exam items, recognised by their fields: one parsed record becomes items of one kind each.

- ``choices``: a question, its choices and which is right. Own form: ``question``, ``choices``, ``correct`` (index from
  0, letter, or the choice itself). Read too, by their authors' field names: ARC, OpenBookQA, CommonsenseQA (labels),
  MMLU, C-Eval, CMMLU, KMMLU (columns A, B, …), RACE, HellaSwag, PIQA, WinoGrande, Social IQa, COPA, SciQ, BoolQ,
  TruthfulQA (mc1), BLiMP.
- ``answers``: ``question`` or ``prompt``, and ``keywords`` (groups, each needs one hit), a reference ``answer`` or
  ``completion``, several ``answers`` (SQuAD, TriviaQA), or a final number (GSM8K).
- ``preferences``: ``prompt``, ``chosen``, ``rejected``: strings, or conversations in any dialect.
- a teaching fact, which gives all three in each language.

Nothing is guessed: a number that could count from 0 or from 1 is resolved by the labels, else by what the form's
authors document, else refused; a field that would change what is asked is used or refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pipeline.evaluation.benchmarks import benchmark_item
from pipeline.evaluation.compared import compared
from pipeline.evaluation.gold import (
    Fields,
    Item,
    NotAnItem,
    agreeing,
    by_index,
    by_label,
    by_name,
    choices_of,
    parsed,
    text,
)

KINDS = ("choices", "answers", "preferences")
TRAINING, HELDOUT = "training", "heldout"
"""Names of the teaching set's two sets: questions the sft stage trained on, and questions it never saw. Others go by
their source's name."""

_CONTEXT = ("context", "passage", "article", "support", "paragraph", "story", "background", "fact1")
"""Fields that hold what a question is about: put before it."""
_UNUSED = (
    *(
        "system",
        "system_prompt",
        "history",
        "instruction",
        "input",
        "few_shot",
        "fewshot",
        "shots",
        "examples",
        "hint",
        "lecture",
    ),
    *("tools", "functions", "table", "image", "images", "image_1", "audio", "video", "hypothesis"),
)
"""Fields that change what is asked and that no form here uses."""
_COLUMN = re.compile(r"(?:(?:option|choice|answer|opt)[ _]?)?([a-h])")
_NUMBER = re.compile(r"[-+−]?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")


def recognise(row: Any, name: str, collection: str) -> Iterator[tuple[str, Item]]:
    """The (kind, item) pairs in one record of a source called ``collection``; ``name`` is its id if it brings none.

    Raises NotAnItem, which says what is missing.
    """
    if not isinstance(row, dict):
        raise NotAnItem("not a JSON object")
    blocks = {lang: row[lang] for lang in ("zh", "en") if isinstance(row.get(lang), dict)}
    fields = _fields(row)
    own = fields.get("id")
    name = name if own is None or own == "" else str(own)
    if blocks:
        for lang, block in blocks.items():
            yield from _fact(block, f"{name}/{lang}", lang)
        return
    kind, item = _item(fields)
    if item.get("context") is None:
        item.pop("context", None)
    shown = item.get("question") or item.get("prompt") or " ".join(item.get("choices", ()))
    lang = str(fields.get("lang") or script(shown))
    yield kind, {"id": name, "lang": lang, "set": str(fields.get("set") or collection), **item}


def guarded_text(item: Item) -> str:
    """The text of an item that must not be trained on: its question, of plain sentences the right one."""
    return item["choices"][item["correct"]] if item.get("plain") else item.get("question") or item["prompt"]


def script(text: str) -> str:
    """ "zh" where a Chinese character occurs, else "en"."""
    return "zh" if any("一" <= character <= "鿿" for character in text) else "en"


def _fields(row: dict[Any, Any]) -> Fields:
    """Fields by lower-case name; those without a value (tables pad with nulls) are not there."""
    fields: Fields = {}
    for key, value in row.items():
        name = str(key).strip().lower()
        if value is None or (isinstance(value, float) and value != value):
            continue
        if name in fields:
            raise NotAnItem(f"two fields are called {name}")
        fields[name] = value
    return fields


def _item(fields: Fields) -> tuple[str, Item]:
    talks = any(isinstance(parsed(fields.get(name)), list) for name in ("messages", "conversations", "conversation"))
    if {"chosen", "rejected"} <= fields.keys() and (talks or not isinstance(parsed(fields["chosen"]), str)):
        return "preferences", compared(fields)
    if talks:
        raise NotAnItem("conversations are fine-tuning data: give them in sft.sources; an exam has question and answer")
    if "instruction" in fields and not {"question", "prompt", "query", "problem"} & fields.keys():
        raise NotAnItem(
            "instruction and output are fine-tuning data: give them in sft.sources, or call them question and answer"
        )
    if known := benchmark_item(fields):
        return "choices", known | _context(fields)
    columns = _columns(fields)
    if (
        "question_stem" in fields
        or "choices" in fields
        or "options" in fields
        or isinstance(fields.get("question"), dict)
    ):
        return "choices", _listed(fields) | _context(fields)
    if len(columns) > 1:
        return "choices", _lettered(fields, columns) | _context(fields)
    if "rejected" in fields or "chosen" in fields:
        sides = {side: text(fields, side) for side in ("chosen", "rejected")}
        return "preferences", {"prompt": _question(fields), **sides} | _context(fields)
    return "answers", _answer(fields) | _context(fields)


def _context(fields: Fields) -> Item:
    """The passage that a question is about. Refuses fields that change what is asked and are not used."""
    asked = next((name for name in _asking(fields) if name in fields), None)
    there = [name for name in _UNUSED if name != asked and fields.get(name) not in (None, "", [], {})]
    if there:
        raise NotAnItem(f"{there[0]} would change what is asked and is not used; leave it out, or put it into question")
    contexts = [name for name in _CONTEXT if fields.get(name)]
    if len(contexts) > 1:
        raise NotAnItem(f"{' and '.join(contexts)}: which one is the question about? leave one")
    return {"context": text(fields, contexts[0])} if contexts else {}


def _asking(fields: Fields) -> tuple[str, ...]:
    return ("question", "prompt", "query", "problem", *(("input",) if "target" in fields else ()))


def _question(fields: Fields) -> str:
    name = next((name for name in _asking(fields) if name in fields), None)
    if name is None and len(fields) > 1 and str(list(fields)[-1]).upper() in tuple("ABCD"):
        raise NotAnItem("the first line is an item and no heading: put question,A,B,C,D,answer in front")
    if name is None:
        raise NotAnItem("no question or prompt; fields " + ", ".join(sorted(fields)[:8]))
    return text(fields, name)


def _listed(fields: Fields) -> Item:
    """``choices`` or ``options`` in a list, with labels or without."""
    stem = parsed(fields.get("question"))
    if isinstance(stem, dict):  # ARC's and CommonsenseQA's own files
        fields = {**fields, **_fields(stem), "question": stem.get("stem")}
    if "question_stem" in fields:
        fields = {**fields, "question": fields["question_stem"]}
    name = "choices" if "choices" in fields else "options"
    options, labels = choices_of(parsed(fields.get(name)))
    item: Item = {"form": "labels" if labels else name, "question": _question(fields), "choices": options}
    golds = [gold for gold in ("correct", "answerkey", "answer") if gold in fields]
    golds = ["answer_idx"] if "answer_idx" in fields else golds or [g for g in ("label", "gold") if g in fields]
    if not golds:
        raise NotAnItem("no answer: which of the choices is right? (correct, answerKey or answer)")
    if labels:
        found = {by_label(fields[gold], labels, options, gold) for gold in golds}
    else:
        from_zero = (name == "choices" and golds[0] == "answer") or golds[0] == "correct"
        found = {by_name(fields[g], options, g, from_zero=from_zero, digits="subject" in fields) for g in golds}
    if len(found) != 1:
        raise NotAnItem(f"{' and '.join(golds)} name different choices")
    correct = found.pop()
    agreeing(fields, golds[0], correct, options, labels)
    return item | {"correct": correct} | ({"labels": labels} if labels else {})


def _columns(fields: Fields) -> dict[str, str]:
    """The columns that hold choices, by letter: A, B, … or option_a, option_b, …"""
    found = {match[1].upper(): name for name in fields if (match := _COLUMN.fullmatch(name))}
    return dict(sorted(found.items()))


def _lettered(fields: Fields, columns: dict[str, str]) -> Item:
    """C-Eval, CMMLU, MMLU and KMMLU: a column a choice."""
    while len(columns) > 2 and not str(fields[list(columns.values())[-1]]).strip():
        columns = dict(list(columns.items())[:-1])  # questions of fewer choices than the table has columns
    if list(columns) != list("ABCDEFGH"[: len(columns)]):
        raise NotAnItem(f"choices {', '.join(columns)}: a letter between them is missing")
    options = [str(fields[name]) for name in columns.values()]
    if not all(option.strip() for option in options):
        raise NotAnItem("a choice is blank")
    item: Item = {"form": "columns", "question": _question(fields), "choices": options, "labels": list(columns)}
    name = next((name for name in ("answer", "answerkey", "target", "correct", "label") if name in fields), None)
    if name is None or fields[name] == "":
        raise NotAnItem("no answer; C-Eval keeps those of its test files to itself: take val")
    gold = fields[name]
    if str(gold).strip().lstrip("-").isdigit():
        if {"category", "human accuracy"} <= fields.keys():  # KMMLU: 1 to 4
            return item | {"form": "kmmlu", "correct": by_index(gold, options, name, first=1)}
        if "subject" in fields and str(gold).strip() not in options:  # MMLU: 0 to 3
            return item | {"correct": by_index(gold, options, name)}
    correct = by_label(gold, list(columns), options, name)
    agreeing(fields, name, correct, options, list(columns))
    return item | {"correct": correct}


def _answer(fields: Fields) -> Item:
    """Keywords, one or several reference answers, or a number."""
    item: Item = {"question": _question(fields), "answer": "", "keywords": []}
    answer = next((fields[n] for n in ("answer", "completion", "reference", "target", "answers") if n in fields), "")
    several = parsed(answer)
    if isinstance(several, dict) and {"text", "value"} & several.keys():  # SQuAD's texts, TriviaQA's value and aliases
        several = several.get("text") or [several.get("value"), *(several.get("aliases") or ())]
    if isinstance(several, list) and all(isinstance(one, str) and one.strip() for one in several):
        answer = several
    if isinstance(answer, list):
        if not answer or not all(isinstance(one, str) and one.strip() for one in answer):
            raise NotAnItem("the answers must be texts, at least one")
        item |= {"answer": answer[0], "keywords": [sorted(set(answer))]}
    elif isinstance(answer, (int, float)) and not isinstance(answer, bool):
        item |= {"answer": f"{answer}", "number": f"{answer}"}
    elif isinstance(answer, str):
        item |= {"answer": answer} | _number(answer)
    if "keywords" in fields:
        item["keywords"] = keywords(parsed(fields["keywords"]))
        item.pop("number", None)
    if not item["keywords"] and not item["answer"].strip():
        raise NotAnItem(
            "neither choices, chosen/rejected, keywords nor a reference answer; fields " + ", ".join(sorted(fields)[:8])
        )
    if not item["keywords"] and item["answer"].strip().strip("().") in tuple("ABCDEFGH"):
        raise NotAnItem("the answer is a letter and there are no choices (columns A, B, … or choices)")
    return item


def _number(answer: str) -> Item:
    """The number of an answer that ends in GSM8K's ``#### 42`` or is a number and nothing else."""
    last = answer.rpartition("####")[2].strip()
    return {"number": last} if _NUMBER.fullmatch(last) else {}


def keywords(groups: Any) -> list[list[str]]:
    """Groups of words, of each of which one must occur; a word alone is a group."""
    if not isinstance(groups, list):
        raise NotAnItem("keywords must be a list of groups of words")
    listed = [[group] if isinstance(group, str) else list(group) for group in groups]
    if not listed or not all(group and all(isinstance(word, str) and word for word in group) for group in listed):
        raise NotAnItem("keywords must be a list of groups of words")
    return listed


def _fact(block: Fields, name: str, lang: str) -> Iterator[tuple[str, Item]]:
    base = {"lang": lang, "answer": block["answer"], "keywords": keywords(block["keywords"])}
    for kind, questions in ((TRAINING, block["questions"]), (HELDOUT, block["heldout"])):
        for i, question in enumerate(questions):
            yield "answers", {**base, "id": f"{name}/{kind}/{i}", "set": kind, "question": question}
    options, _ = choices_of(block["choices"])
    correct = by_index(block["correct"], options, "correct")
    first = {"id": f"{name}/choice", "lang": lang, "set": TRAINING, "question": block["questions"][0]}
    yield "choices", {**first, "choices": options, "correct": correct}
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
