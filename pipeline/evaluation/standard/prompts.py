"""From documents to what is computed: the text that a model reads before each continuation, with few-shot examples
drawn as lm-evaluation-harness 0.4 draws them.

C-Eval, CMMLU and MMLU take the first examples of the dev file. The others draw theirs for every question from one
stream of random numbers (seed 1234, the harness's), in the order of the questions; HellaSwag and PIQA never show a
question its own answer. GSM8K shows five where nothing else is asked for, BLiMP none ever.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NotRequired, TypedDict

from pipeline.evaluation.forms import script
from pipeline.evaluation.gold import NotAnItem
from pipeline.evaluation.standard.files import ExamFile, ExamSource
from pipeline.evaluation.standard.forms import asked_splits, layout
from pipeline.evaluation.standard.questions import id_of, labels_of, read_all
from pipeline.evaluation.standard.records import Document, Unread
from pipeline.evaluation.titles import TITLES

SHOT_SEED = 1234
DEFAULT_SHOTS = {"gsm8k": 5}
_FIRST = ("ceval", "cmmlu", "mmlu")
_NOT_ITSELF = ("hellaswag", "piqa")


class StandardItem(TypedDict):
    """A question of a standard exam, ready to be computed: ``choices`` are what is compared (each follows ``context``
    and a space), or nothing where an answer is generated and held against ``target``. ``group`` is a part of the exam
    by its authors."""

    id: str
    set: str
    form: str
    subject: str
    group: str
    lang: str
    question: str
    context: str
    choices: list[str]
    correct: int
    target: str
    shots: int
    source: str
    path: str
    line: int
    overlap: NotRequired[str]


class StandardExam(TypedDict):
    """What is read of a source: its items, records that are none, and in words what was recognised."""

    items: list[StandardItem]
    unread: list[dict[str, Any]]
    told: str
    records: int


def read_standard(source: ExamSource, form: str, shots: int | None, limit: int = 0) -> StandardExam:
    """The items of a source of this form: the first ``limit`` of each subject (0: all), each after ``shots`` examples
    (None: as many as the form shows by itself, if there are examples).

    Raises NotAnItem when nothing can be asked, or when there are not as many examples as asked for.
    """
    found, labels = layout(source, form), labels_of(source)
    exam: StandardExam = {"items": [], "unread": [], "told": "", "records": 0}
    used = set[int]()
    for subject in found.subjects.values():
        asked = list(read_all(form, subject.asked, labels))
        exam["records"] += len(asked)
        exam["unread"] += [
            {"source": source.name, "path": d.path, "line": d.line, "why": d.why}
            for d in asked
            if isinstance(d, Unread)
        ]
        pools = _by_subject(subject.name, read_all(form, subject.shots, labels))
        for name, good in _by_subject(subject.name, asked).items():
            pool = pools.get(name, [])
            count = _count(form, shots, pool, source.name, name)
            used.add(count)
            exam["items"] += _items(source.name, form, name, good[: limit or None], pool, count)
    if not exam["items"]:
        files = ", ".join(file.relpath for file in list(source.files)[:4])
        why = f"files: {files}; its {' or '.join(asked_splits(form))} file is what is asked"
        why += " (its test file is published without answers)" if form == "ceval" else ""
        if exam["unread"]:
            why = f"first: {exam['unread'][0]['path']} line {exam['unread'][0]['line']}: {exam['unread'][0]['why']}"
        raise NotAnItem(
            f"recognised as {TITLES[form]}, and none of its {exam['records']:,} records can be asked; {why}"
        )
    exam["told"] = _told(source, form, exam, used, found.left)
    return exam


def _by_subject(name: str, documents: Iterable[Document | Unread]) -> dict[str, list[Document]]:
    """Documents by the subject that their records state (MMLU in one file), else by that of their file."""
    found: dict[str, list[Document]] = {}
    for document in documents:
        if isinstance(document, Document):
            own = document.row.get("subject")
            found.setdefault(own if isinstance(own, str) and own else name, []).append(document)
    return dict(sorted(found.items()))


def _told(source: ExamSource, form: str, exam: StandardExam, used: set[int], left: Sequence[ExamFile]) -> str:
    """What was recognised, in words."""
    subjects = {item["subject"] for item in exam["items"]}
    parts = [f"{len(exam['items']):,} questions"]
    parts += [f"{len(subjects)} subjects"] if len(subjects) > 1 else []
    parts.append(" or ".join(f"{n} examples each" for n in sorted(used)) if any(used) else "no examples")
    parts += [f"{len(exam['unread']):,} records left out"] if exam["unread"] else []
    parts += [f"{len(left)} files of other splits not asked"] if left else []
    wanted = DEFAULT_SHOTS.get(form, 0)
    if 0 in used and wanted and not any(used):
        parts.append(f"others report it after {wanted}: give the train file too")
    return f"{source.name} is {TITLES[form]}: {', '.join(parts)}"


def _count(form: str, shots: int | None, pool: Sequence[Document], source: str, subject: str) -> int:
    """How many examples stand before each question. Raises NotAnItem when there are too few."""
    if form == "blimp":
        return 0
    if shots is None:
        return min(DEFAULT_SHOTS.get(form, 0), len(pool) and DEFAULT_SHOTS.get(form, 0))
    if shots and len(pool) < shots + (form in _NOT_ITSELF):
        where = "dev" if form in _FIRST else "train"
        raise NotAnItem(
            f"{subject or source}: {len(pool)} examples in its {where} file, and evaluate.shots = {shots}; give the"
            f" folder or glob that holds {where} beside the questions, or lower evaluate.shots"
        )
    return shots


def _items(
    source: str, form: str, subject: str, asked: Sequence[Document], pool: Sequence[Document], count: int
) -> Iterator[StandardItem]:
    draw = Random(SHOT_SEED)
    head, group = description(form, subject), group_of(form, subject)
    for document in asked:
        shots = "".join(
            f"{shot.prompt}{'' if not shot.prompt else ' '}{shot.target}\n\n"
            for shot in _shots(form, document, pool, count, draw)
        )
        yield {
            "id": id_of(document),
            "set": source,
            "form": form,
            "subject": subject,
            "group": group,
            "lang": script(document.question),
            "question": document.question,
            "context": head + shots + document.prompt,
            "choices": list(document.choices),
            "correct": document.correct,
            "target": document.target,
            "shots": count,
            "source": source,
            "path": document.path,
            "line": document.line,
        }


def _shots(form: str, document: Document, pool: Sequence[Document], count: int, draw: Random) -> Sequence[Document]:
    if not count:
        return ()
    if form in _FIRST:
        return pool[:count]
    if form not in _NOT_ITSELF:
        return draw.sample(list(pool), count)
    chosen = [shot for shot in draw.sample(list(pool), count + 1) if shot.row != document.row][:count]
    if len(chosen) < count:  # the pool holds the question several times
        others = [shot for shot in pool if shot.row != document.row]
        if len(others) < count:
            raise NotAnItem(f"{id_of(document)}: {len(others)} examples that differ from it, and {count} are wanted")
        chosen = draw.sample(others, count)
    return chosen


def description(form: str, subject: str) -> str:
    """What stands before everything else."""
    if form == "mmlu":
        return f"The following are multiple choice questions (with answers) about {' '.join(subject.split('_'))}.\n\n"
    if form in ("ceval", "cmmlu"):
        name = next((names[subject] for names in _subjects()[form].values() if subject in names), subject)
        if form == "ceval":
            return f"以下是中国关于{name}的单项选择题，请选出其中的正确答案。\n\n"
        return f"以下是关于{name}的单项选择题，请直接给出正确答案的选项。\n\n"
    return ""


def group_of(form: str, subject: str) -> str:
    """The part of an exam that its authors count a subject to; nothing where there are none."""
    return next((group for group, names in _subjects().get(form, {}).items() if subject in names), "")


@cache
def _subjects() -> dict[str, dict[str, Any]]:
    return tomllib.loads((Path(__file__).parent / "subjects.toml").read_text(encoding="utf-8"))
