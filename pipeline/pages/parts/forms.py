"""What pages are made of, as data: each class is drawn by the macro of its name in ``macros.html.j2``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

_WORD = re.compile(r"[A-Za-z0-9_]+|\s+|.", re.DOTALL)


@dataclass(frozen=True)
class Badge:
    """A word on a coloured ground; ``kind``: good, bad, warn or nothing."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Tile:
    """A number in large type with a name above and a note below it."""

    value: str
    note: str
    label: str = ""
    badge: Badge | None = None


@dataclass(frozen=True)
class Key:
    """An entry of a legend; ``kind``: fill-0 … fill-5, or guess for the dashed line."""

    name: str
    kind: str


@dataclass(frozen=True)
class Part:
    """A piece of a bar, in percent of its track, in one of the colours 0 to 5."""

    percent: str
    colour: int


@dataclass(frozen=True)
class Cell:
    """A table's cell that is more than text; ``change`` is coloured by its kind (up, down, same)."""

    text: str = ""
    note: str = ""
    strong: bool = False
    code: bool = False
    href: str | None = None
    change: Badge | None = None
    badge: Badge | None = None
    bar: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Table:
    """Rows below a head; the columns in ``numbers`` are set to the right, the rows in ``parts`` are indented."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    numbers: frozenset[int] = frozenset()
    parts: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Piece:
    """A run of text; ``mark``: "del" for what only the left text has, "ins" for what only the right one has."""

    text: str
    mark: Literal["", "del", "ins"] = ""


def bar(amounts: Sequence[tuple[int, int]], whole: int) -> tuple[Part, ...]:
    """A bar of (amount, colour) on a track that stands for ``whole``."""
    return tuple(Part(f"{100 * amount / max(whole, 1):.2f}", colour) for amount, colour in amounts if amount)


def count(n: int) -> str:
    """A whole number up to a million, then millions or billions with three digits."""
    for size, unit in ((1_000_000_000, " B"), (1_000_000, " M")):
        if n >= size:
            return f"{n / size:.3g}{unit}" if n < 1000 * size else f"{n / size:,.0f}{unit}"
    return f"{n:,}"


def share(part: int, whole: int) -> str:
    """A percentage that does not round a trace to nothing, nor all but a trace to everything."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    if 0 < percent < 0.1:
        return "< 0.1 %"
    return "> 99.9 %" if 99.9 < percent < 100 else f"{percent:.1f} %"


def marked(before: str, after: str) -> tuple[list[Piece], list[Piece]]:
    """Both texts, with what is only in one of them marked; words are compared whole, other characters one by one."""
    a, b = _WORD.findall(before), _WORD.findall(after)
    left: list[Piece] = []
    right: list[Piece] = []
    for tag, i, j, k, l in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        old, new = "".join(a[i:j]), "".join(b[k:l])
        left += [Piece(old, "" if tag == "equal" else "del")] if old else []
        right += [Piece(new, "" if tag == "equal" else "ins")] if new else []
    return left, right
