"""A problem as a worker reads it: what is asked, and what tells a right answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from model.tokens.turns import Message


class Problem(TypedDict):
    """``messages`` up to the answer that is wanted; ``answer`` the right one ("" where it is not known), ``keywords``
    groups of words of which an answer needs one each, ``lang`` the prompt's language, ``task`` what it is counted
    under; ``gym`` what reasoning-gym needs to judge (its dataset's name and the entry as JSON)."""

    messages: list[Message]
    answer: str
    lang: str
    task: str
    id: str
    keywords: NotRequired[list[list[str]]]
    gym: NotRequired[dict[str, Any]]


def read_problems(path: Path) -> Iterator[Problem]:
    """The problems of a JSON lines file, in its order."""
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)
