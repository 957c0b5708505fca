"""Records of the standard exams as documents: the prompt, the choices and the right one, or the answer to be
generated.

The words of each prompt are those of lm-evaluation-harness 0.4.13 (its task files ceval-valid, cmmlu, mmlu, arc_easy,
hellaswag, piqa, openbookqa, gsm8k and blimp), so that what is compared with others' numbers is the same question.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.evaluation.gold import NotAnItem, Row, by_label, choices_of, parsed, text
from pipeline.evaluation.standard.files import LABELS, ExamFile, records, rows, text_of
from pipeline.readers import Fault
from pipeline.readers.streams import Numbered
from pipeline.sources.kinds import format_of

LETTERS = ("A", "B", "C", "D")
_NUMBER = re.compile(r"-?[0-9]+")


@dataclass(frozen=True)
class Document:
    """A question as it is put: ``prompt``, ``choices`` and the index of the right one (none: an answer is generated,
    and ``target`` is what it is held against). ``target`` follows the prompt where it is an example. ``question`` is
    what must not be trained on; ``row`` the record, by which documents are the same."""

    prompt: str
    question: str
    target: str
    choices: tuple[str, ...] = ()
    correct: int = 0
    path: str = ""
    line: int = 0
    row: Row = field(default_factory=dict)


@dataclass(frozen=True)
class Unread:
    """A record that is no document, and why."""

    path: str
    line: int
    why: str


def documents(form: str, file: ExamFile, labels: ExamFile | None = None) -> Iterator[Document | Unread]:
    """The documents of a file; ``labels``: the list of its right answers, where the form has one."""
    for line, row in _rows(form, file, labels):
        try:
            if isinstance(row, Fault):
                raise NotAnItem(f"{row.reason}: {row.detail}")
            if not isinstance(row, dict):
                raise NotAnItem("not a JSON object")
            prompt, question, choices, correct, target = _FORMS[form](row)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            why = str(error) if isinstance(error, NotAnItem) else f"{type(error).__name__}: {error}"
            yield Unread(file.relpath, line, why[:200])
            continue
        yield Document(prompt, question, target, choices, correct, file.relpath, line, row)


def _rows(form: str, file: ExamFile, labels: ExamFile | None) -> Iterator[Numbered]:
    if format_of(file.location) == "csv":
        yield from _table(file)
        return
    known = None if labels is None else text_of(labels).split()
    for count, (line, row) in enumerate(records(file)):
        if known is not None and isinstance(row, dict):
            if count >= len(known):
                row = Fault("no_label", f"{labels.relpath if labels else ''} has {len(known)} labels")
            else:
                row = {**row, "label": known[count]}
        elif form == "piqa" and isinstance(row, dict) and "label" not in row:
            row = Fault("no_label", f"its labels are no field and not in {file.relpath.partition('.')[0]}{LABELS}")
        yield line, row


def _table(file: ExamFile) -> Iterator[Numbered]:
    """The rows of a table by its heading; MMLU's have none."""
    header: list[str] | None = None
    for line, row in rows(file):
        if header is None and ("question" in [c.strip().lower() for c in row] or "sentence_good" in row):
            header = [cell.strip().lstrip("\ufeff") for cell in row]
            continue
        names = header or ["question", *LETTERS[: max(0, len(row) - 2)], "answer"]
        if len(row) != len(names):
            yield line, Fault("wrong_columns", f"{len(row)} values under {len(names)} headings")
        else:
            yield line, dict(zip(names, row, strict=True))


Parts = tuple[str, str, tuple[str, ...], int, str]
"""Prompt, question, choices, the right one's index, and the answer as an example states it."""


def _lettered(row: Row, question: str, gold: str, ending: str) -> Parts:
    """Four options under their letters; the letters are what is compared."""
    asked = text(dict(row), question)
    options = [str(row[letter]) for letter in LETTERS]
    if any(row[letter] is None for letter in LETTERS):
        raise NotAnItem("an option is missing")
    said = str(row.get(gold) or "").strip()
    if said not in LETTERS:
        raise NotAnItem(f"{gold} must be A, B, C or D, not {said[:20]!r}" if said else f"no {gold}")
    listed = "".join(f"{letter}. {option}\n" for letter, option in zip(LETTERS, options, strict=True))
    correct = LETTERS.index(said)
    return f"{asked.strip()}\n{listed}{ending}", asked, LETTERS, correct, said


def _ceval(row: Row) -> Parts:
    return _lettered(row, "question", "answer", "答案：")


def _cmmlu(row: Row) -> Parts:
    return _lettered(row, "Question", "Answer", "答案：")


def _mmlu(row: Row) -> Parts:
    if isinstance(choices := parsed(row.get("choices")), list):
        at = int(row["answer"])
        if len(choices) != len(LETTERS) or not 0 <= at < len(LETTERS):
            raise NotAnItem("choices must be four, and answer 0 to 3")
        row = {"question": row["question"], **dict(zip(LETTERS, choices, strict=True)), "answer": LETTERS[at]}
    return _lettered(row, "question", "answer", "Answer:")


def _listed(question: str, choices: Any, gold: Any, prompt: str) -> Parts:
    texts, labels = choices_of(parsed(choices))
    correct = by_label(gold, labels or [chr(65 + i) for i in range(len(texts))], texts, "answerKey")
    return prompt, question, tuple(texts), correct, texts[correct]


def _arc(row: Row) -> Parts:
    inner = row["question"]
    question, choices = (inner["stem"], inner["choices"]) if isinstance(inner, dict) else (inner, row["choices"])
    return _listed(question, choices, row["answerKey"], f"Question: {question}\nAnswer:")


def _openbookqa(row: Row) -> Parts:
    inner = row.get("question")
    question, choices = (
        (inner["stem"], inner["choices"]) if isinstance(inner, dict) else (row["question_stem"], row["choices"])
    )
    return _listed(question, choices, row["answerKey"], question)


def _hellaswag(row: Row) -> Parts:
    endings = parsed(row["endings"])
    if not isinstance(endings, list) or len(endings) < 2:
        raise NotAnItem("endings must be two or more texts")
    if not _NUMBER.fullmatch(str(row.get("label", ""))):
        raise NotAnItem("no label; test files of this form have none: take the validation file")
    correct = int(row["label"])
    if not 0 <= correct < len(endings):
        raise NotAnItem(f"label must be 0 to {len(endings) - 1}, not {correct}")
    begun = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    choices = tuple(_plain(ending) for ending in endings)
    return _plain(begun), str(row.get("ctx") or begun), choices, correct, choices[correct]


def _plain(words: str) -> str:
    """WikiHow's marks taken out, as the harness does."""
    words = re.sub(r"\[.*?\]", "", words.strip().replace(" [title]", ". "))
    return words.replace("  ", " ")


def _piqa(row: Row) -> Parts:
    choices = (text(dict(row), "sol1"), text(dict(row), "sol2"))
    if str(row["label"]) not in ("0", "1"):
        raise NotAnItem(f"label must be 0 or 1, not {row['label']!r}")
    correct = int(row["label"])
    goal = text(dict(row), "goal")
    return f"Question: {goal}\nAnswer:", goal, choices, correct, choices[correct]


def _gsm8k(row: Row) -> Parts:
    question, answer = text(dict(row), "question"), text(dict(row), "answer")
    return f"Question: {question}\nAnswer:", question, (), 0, answer


def _blimp(row: Row) -> Parts:
    choices = (text(dict(row), "sentence_good"), text(dict(row), "sentence_bad"))
    return "", choices[0], choices, 0, choices[0]


_FORMS: dict[str, Callable[[Row], Parts]] = {
    "ceval": _ceval, "cmmlu": _cmmlu, "mmlu": _mmlu, "arc": _arc, "hellaswag": _hellaswag, "piqa": _piqa,
    "openbookqa": _openbookqa, "gsm8k": _gsm8k, "blimp": _blimp,
}  # fmt: skip
