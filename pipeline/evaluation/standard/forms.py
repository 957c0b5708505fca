"""Whose exam the files of a source are, which of them are asked and which hold its few-shot examples.

A form is told by the fields of its records, never by a file's name alone; files of two forms in one source are refused.
A table beside a file of records of the same name (ARC and OpenBookQA publish both) is not read.
Two data sets whose authors use the same fields (ARC and OpenBookQA in their published files) are told apart by their
ids, else by the name of the path, else refused: ``arc:PATH`` says it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pipeline.evaluation.gold import NotAnItem, Row
from pipeline.evaluation.standard.files import ExamFile, ExamSource, first_record, first_row, is_labels
from pipeline.evaluation.titles import TITLES
from pipeline.sources.kinds import format_of

_ASKED: Mapping[str, tuple[str, ...]] = {
    "ceval": ("val",), "cmmlu": ("test",), "mmlu": ("test",), "arc": ("test", "val"), "hellaswag": ("val",),
    "piqa": ("val",), "openbookqa": ("test", "val"), "gsm8k": ("test", "val"), "blimp": (),
}  # fmt: skip
"""The split that is asked, by form: the first that is there."""
_SHOTS: Mapping[str, tuple[str, ...]] = {
    "ceval": ("dev",), "cmmlu": ("dev",), "mmlu": ("dev",), "arc": ("train", "val"), "hellaswag": ("train",),
    "piqa": ("train",), "openbookqa": ("train", "val"), "gsm8k": ("train", "val"), "blimp": (),
}  # fmt: skip
"""The split that few-shot examples come from."""
_WORDS = {
    "dev": "dev", "val": "val", "valid": "val", "validation": "val", "test": "test", "tests": "test", "train": "train",
    "auxiliary_train": "train",
}  # fmt: skip
_BY_SUBJECT = ("ceval", "cmmlu", "mmlu")
"""Forms whose dev files are examples; those of the others are another word for validation."""
_LETTERS = re.compile(r"\(?[A-H]\)?")


@dataclass
class Subject:
    """The part of an exam that has examples and a score of its own: ``asked`` and ``shots`` are its files."""

    name: str
    asked: list[ExamFile] = field(default_factory=list)
    shots: list[ExamFile] = field(default_factory=list)


@dataclass
class Layout:
    """A source as an exam: its form, its subjects by name, and files whose split is none of these (``left``)."""

    form: str
    subjects: dict[str, Subject]
    left: list[ExamFile]


def form_of(source: ExamSource) -> str | None:
    """The form of a source; None when its records are of no form here. Raises NotAnItem when its files are of several,
    or of one of two that cannot be told apart."""
    found: dict[str, str] = {}
    for file in _read(source):
        form = _form_of_file(file, f"{source.name}/{file.relpath}")
        if form is None:
            return None
        found.setdefault(form, file.relpath)
    if len(found) > 1:
        told = ", ".join(f"{path} of {TITLES[form]}" for form, path in found.items())
        raise NotAnItem(f"its files are of several exams: {told}; name each by a path of its own")
    return next(iter(found), None)


def layout(source: ExamSource, form: str) -> Layout:
    """The subjects and splits of a source of this form."""
    subjects: dict[str, Subject] = {}
    splits: dict[str, dict[str, list[ExamFile]]] = {}
    for file in _read(source):
        split, name = split_of(file.relpath)
        split = None if form == "blimp" else "val" if split == "dev" and form not in _BY_SUBJECT else split
        own = splits.setdefault(_subject(form, name, file.relpath, source.name), {})
        own.setdefault(split or "", []).append(file)
    left: list[ExamFile] = []
    for name, own in sorted(splits.items()):
        asked = next((s for s in (*_ASKED[form], "") if s in own), None)
        if asked is None and len(own) == 1 and next(iter(own)) in _lone(form):
            asked = next(iter(own))
        shots = next((s for s in _SHOTS[form] if s in own and s != asked), None)
        subject = subjects[name] = Subject(name)
        subject.asked = own.get(asked, []) if asked is not None else []
        subject.shots = own.get(shots, []) if shots is not None else []
        left += [f for split, files in own.items() if split not in (asked, shots) for f in files]
    return Layout(form, subjects, left)


def asked_splits(form: str) -> tuple[str, ...]:
    """The splits that are asked, the first that is there."""
    return _ASKED[form]


def _read(source: ExamSource) -> list[ExamFile]:
    """The files of a source that hold records: no lists of labels, no table that repeats a file of records."""
    records = {f.relpath.partition(".")[0] for f in source.files if format_of(f.location) in ("jsonl", "json")}
    return [
        file
        for file in source.files
        if not is_labels(file.relpath)
        and not (format_of(file.location) == "csv" and file.relpath.partition(".")[0] in records)
    ]


def split_of(relpath: str) -> tuple[str | None, str]:
    """The split that a path names by a folder or by the first or last word of the file's name, and what the file is
    called apart from that: ``dev/law_dev.csv`` is dev and law."""
    *folders, name = relpath.split("/")
    stem = name.partition(".")[0]
    stem = stem.removesuffix("-labels")
    words = [w for w in re.split(r"[._-]", stem) if w and not w.isdigit() and w.lower() != "of"]
    split = next((_WORDS[part.lower()] for part in reversed(folders) if part.lower() in _WORDS), None)
    for at in (len(words) - 1, 0):
        if len(words) > 0 and words[at].lower() in _WORDS:
            split = split or _WORDS[words[at].lower()]
            bare = re.sub(rf"[._-]?{words[at]}[._-]?(?:\d+(?:-of-\d+)?)?$|^{words[at]}[._-]?", "", stem)
            return split, bare
    return split, stem


def _lone(form: str) -> tuple[str, ...]:
    """Splits that are asked when there is no other: a sample of a test without answers would be none."""
    return ("dev",) if form in _BY_SUBJECT else ("val",)


def _subject(form: str, name: str, relpath: str, source: str) -> str:
    """What part of an exam a file is of; a file that is called by its split alone is of its folder."""
    folder = next((part for part in reversed(relpath.split("/")[:-1]) if part.lower() not in _WORDS), "")
    if form in (*_BY_SUBJECT, "blimp"):
        return name or folder or source
    if form == "openbookqa" and "additional" in relpath.lower().split("/"):
        return "additional"
    return (name or folder) if form == "arc" and (name or folder).lower().startswith("arc") else ""


def _form_of_file(file: ExamFile, name: str) -> str | None:
    if format_of(file.location) == "csv":
        row = first_row(file)
        return _form_of_table(row) if row else None
    record = first_record(file)
    return form_of_record(record, name) if isinstance(record, dict) else None


def _form_of_table(header: Sequence[str]) -> str | None:
    """The form of a CSV file by its first line."""
    names = [cell.strip() for cell in header]
    lower = [name.lower() for name in names]
    if {"question", "a", "b", "c", "d"} <= set(lower):
        if "Question" in names:
            return "cmmlu"
        if {"id", "explanation"} & set(lower):
            return "ceval"  # its test files have no answers
        return "mmlu" if "answer" in lower else None
    if len(header) >= 4 and _LETTERS.fullmatch(names[-1]) and "question" not in lower:
        return "mmlu"
    return form_of_record(dict.fromkeys(lower, ""), "") if "sentence_good" in lower else None


def form_of_record(row: Row, name: str) -> str | None:
    """The form of a record by its fields; ``name``: where it is from."""
    there = {key for key, value in row.items() if value is not None}
    for fields, form in (
        ({"sentence_good", "sentence_bad"}, "blimp"),
        ({"goal", "sol1", "sol2"}, "piqa"),
        ({"ctx_a", "ctx_b", "activity_label", "endings"}, "hellaswag"),
        ({"question_stem", "choices", "answerKey"}, "openbookqa"),
    ):
        if fields <= there:
            return form
    question, choices = row.get("question"), row.get("choices")
    if "answerKey" in there and isinstance(question, dict) and {"stem", "choices"} <= question.keys():
        return _stemmed(row, name)
    if "answerKey" in there and isinstance(question, str) and isinstance(choices, dict) and "label" in choices:
        return "arc"
    if isinstance(question, str) and "subject" in there and isinstance(choices, list) and len(choices) == 4:
        return "mmlu" if isinstance(row.get("answer"), int) else None
    if isinstance(question, str) and {"A", "B", "C", "D", "id"} <= there:
        return "ceval"
    if isinstance(question, str) and {"A", "B", "C", "D", "answer"} <= there:
        return "mmlu"
    if {"Question", "A", "B", "C", "D", "Answer"} <= there:
        return "cmmlu"
    if isinstance(question, str) and "####" in str(row.get("answer", "")):
        return "gsm8k"
    return None


def _stemmed(row: Row, name: str) -> Literal["arc", "openbookqa"]:
    """ARC and OpenBookQA publish files of the same fields."""
    path = name.lower().replace("-", "").replace("_", "")
    if "fact1" in row or re.fullmatch(r"\d+-\d+", str(row.get("id", ""))) or "openbook" in path or "obqa" in path:
        return "openbookqa"
    if re.search(r"[A-Za-z]", str(row.get("id", ""))) or re.search(r"(^|/)arc", path):
        return "arc"
    raise NotAnItem(f"{name} may be of ARC or of OpenBookQA: write arc:PATH or openbookqa:PATH")
