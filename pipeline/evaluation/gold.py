"""Fields of an exam item: texts, lists of choices, and which choice is right, without guessing."""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from storage.errors import Refused

Item = dict[str, Any]
Fields = dict[str, Any]
Row = Mapping[str, Any]
"""A record of an exam as its file gives it."""
_GOLDS = ("correct", "answerkey", "answer", "answer_idx", "answer_index", "target", "gold")
"""Names under which a record may say which choice is right."""


class NotAnItem(Refused):
    """Why a record is no exam item. ``whole``: the others of its file cannot be trusted either."""

    def __init__(self, why: str, *, whole: bool = False) -> None:
        super().__init__(why)
        self.whole = whole


def text(fields: Fields, name: str) -> str:
    """A field's text, which must not be blank."""
    value = fields.get(name)
    if not isinstance(value, str) or not value.strip():
        raise NotAnItem(f"no text in {name}")
    return value


def parsed(value: Any) -> Any:
    """Tables carry lists as text, in JSON's or Python's spelling: the list or object, else the value itself."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        for parse in (json.loads, ast.literal_eval):
            try:
                with warnings.catch_warnings(action="ignore"):  # of backslashes, which texts may hold
                    return parse(value)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
    return value


def choices_of(value: Any) -> tuple[list[str], list[str]]:
    """The choices' texts and their labels (none: no labels): from a list of texts, ``{"text": […], "label": […]}``,
    ``[{"text", "label"}, …]`` or ``{"A": text, …}``."""
    labels: Any = []
    if isinstance(value, dict) and "text" in value:
        value, labels = value["text"], value.get("label") or []
    elif isinstance(value, dict):
        value, labels = list(value.values()), list(value)
    elif isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        value, labels = [one.get("text") for one in value], [one.get("label") for one in value]
    if not isinstance(value, list) or len(value) < 2:
        raise NotAnItem("choices must be two or more texts")
    if not all(isinstance(one, (str, int, float)) and not isinstance(one, bool) and str(one).strip() for one in value):
        raise NotAnItem("choices must be two or more texts")
    labels = [str(label).strip() for label in labels]
    if labels and (len(labels) != len(value) or len(set(labels)) < len(labels)):
        raise NotAnItem(f"{len(value)} choices have the labels {', '.join(labels)}")
    return [str(one) for one in value], labels


def by_label(gold: Any, labels: Sequence[str], options: Sequence[str], field: str) -> int:
    """The index of the choice that ``gold`` names by its label (case and brackets do not count) or its own text."""
    said = str(gold).strip()
    plain = said.strip("().").upper()
    upper = [label.upper() for label in labels]
    if not isinstance(gold, bool) and plain in upper:
        return upper.index(plain)
    if said.isdigit():
        raise NotAnItem(f"{field} {said} is none of the labels {', '.join(labels)}: from 0 or from 1? give a label")
    if list(options).count(said) == 1:
        return list(options).index(said)
    raise NotAnItem(f"{field} {said[:40]!r} is none of the labels {', '.join(labels)}")


def by_index(gold: Any, options: Sequence[str], field: str, first: int = 0) -> int:
    """The index of a choice that is counted from ``first``, as its form documents.

    A number just outside says that the file counts otherwise, and then the numbers inside are wrong too.
    """
    number = gold if isinstance(gold, int) else int(gold) if str(gold).strip().lstrip("-").isdigit() else None
    if number is None or isinstance(gold, bool):
        raise NotAnItem(f"{field} must name one of the {len(options)} choices, not {gold!r}")
    if not 0 <= number - first < len(options):
        counts = number in (len(options), 1 - first) and number >= 0
        raise NotAnItem(
            f"{field} must be {first} to {len(options) - 1 + first}, not {number}"
            + (f": does the file count from {1 - first}? give letters or labels" if counts else ""),
            whole=counts,
        )
    return number - first


def by_name(gold: Any, options: Sequence[str], field: str, *, from_zero: bool, digits: bool) -> int:
    """The index of the right one of choices without labels: a letter, the choice's own text, or, ``from_zero``, an
    index (as text, too, where ``digits``)."""
    if isinstance(gold, int) and not isinstance(gold, bool):
        if not from_zero:
            raise NotAnItem(f"{field} {gold}: from 0 or from 1? call it correct (from 0), give letters, or labels")
        return by_index(gold, options, field)
    if not isinstance(gold, str):
        raise NotAnItem(f"{field} must name one of the {len(options)} choices, not {gold!r}")
    said = gold.strip()
    letter = ord(said.upper()) - ord("A") if len(said) == 1 and said.isascii() and said.isalpha() else None
    found = {i for i, option in enumerate(options) if option.strip() == said}
    if letter is not None and letter < len(options):
        found.add(letter)
    elif said.isdigit() and from_zero and digits:
        found.add(by_index(said, options, field))
    elif said.isdigit() and not found:
        raise NotAnItem(f"{field} {said!r}: from 0 or from 1? call it correct (a number from 0), or give letters")
    if len(found) != 1:
        raise NotAnItem(f"{field} {said[:40]!r} names {'several' if found else 'none'} of the {len(options)} choices")
    return found.pop()


def agreeing(fields: Fields, name: str, correct: int, options: Sequence[str], labels: Sequence[str]) -> None:
    """Raises NotAnItem when another field of the record clearly names another choice than ``name`` does: by a label, by
    the choice's text, or by MMLU-Pro's index from 0."""
    for other in _GOLDS:
        if other == name or other not in fields:
            continue
        try:
            if other == "answer_index":
                said = by_index(fields[other], options, other)
            else:
                said = by_label(fields[other], labels or "ABCDEFGHIJ"[: len(options)], options, other)
        except NotAnItem:
            continue
        if said != correct:
            raise NotAnItem(f"{name} and {other} name different choices")
