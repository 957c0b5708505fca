"""The conditions under which a model becomes its preset's champion: a language of one comparison a condition.

    heldout >= 0.8                        a score against a number (or 80%)
    bits_per_byte <= champion + 0.02      against the champion's, with a margin; holds while there is no champion
    cmmlu > chance                        against what guessing gives
    choices >= before - 1%                against the model that it was trained from, or ``base``
    not withdrawn                         nothing that it was made from was withdrawn

A score is named as the reports name it, without the model; ``.zh`` or ``.en`` behind it is its part in a language,
``.low`` and ``.high`` are its interval's ends, and of an exam ``.acc``, ``.acc_norm`` and the like are its measures.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass

REFERENCES = ("champion", "chance", "before", "base")
SHORT = {"heldout": "answers_heldout", "training": "answers_training"}
"""Names that scores have in conditions, and their own."""
SCORES = (
    "bits_per_byte", "perplexity", "heldout", "training", "choices", "preferences", "against_reference", "judged",
    "said.loops", "said.empty", "said.distinct", "said.language", "said.tagged",
    "said.well_formed",
)  # fmt: skip
ENDINGS = ("zh", "en", "low", "high", "n")
MEASURES = ("acc", "acc_norm", "acc_bytes", "exact_match", "flexible", "macro")
FACTS = ("withdrawn",)
_NUMBER = r"\d+(?:\.\d+)?(?:e-?\d+)?\s*%?"
_COMPARISON = re.compile(
    rf"(?P<score>[^\s<>=]+)\s*(?P<sign>>=|<=|>|<)\s*"
    rf"(?:(?P<number>[-+]?{_NUMBER})|(?P<reference>[a-z_]+)(?:\s*(?P<way>[-+])\s*(?P<margin>{_NUMBER}))?)"
)


@dataclass(frozen=True)
class Rule:
    """A condition, parsed: ``fact`` that must not be so, or ``score`` ``sign`` ``reference`` (nothing: 0) +
    ``margin``."""

    text: str
    score: str = ""
    sign: str = ""
    reference: str = ""
    margin: float = 0.0
    fact: str = ""


def parse_rule(text: str) -> Rule:
    """The condition that ``text`` states. Raises ValueError that says how one is written."""
    words = text.split()
    if words[:1] == ["not"]:
        if len(words) == 2 and words[1] in FACTS:
            return Rule(text, fact=words[1])
        raise ValueError(f"{text!r}: what may follow not is {', '.join(FACTS)}")
    parts = _COMPARISON.fullmatch(text.strip())
    if parts is None:
        raise ValueError(
            f"{text!r}: a condition is a score, one of >= <= > <, and a number or one of {', '.join(REFERENCES)} with"
            " a margin, as in heldout >= 0.8, bits_per_byte <= champion + 0.02; or: not withdrawn"
        )
    if parts["number"]:
        return Rule(text, parts["score"], parts["sign"], margin=_value(parts["number"]))
    if parts["reference"] not in REFERENCES:
        raise ValueError(f"{text!r}: {parts['reference']} is none of {', '.join(REFERENCES)}")
    margin = _value(parts["margin"] or "0") * (-1 if parts["way"] == "-" else 1)
    return Rule(text, parts["score"], parts["sign"], parts["reference"], margin)


def check_names(rule: Rule, sets: Collection[str]) -> None:
    """Raises ValueError for a score that no model will have; ``sets`` are the names of evaluation sets and exams."""
    if rule.fact:
        return
    known = [*SCORES, *sets]
    if any(_part_of(rule.score, name, (*ENDINGS, *(MEASURES if name in sets else ()))) for name in known):
        return
    close = difflib.get_close_matches(rule.score, known, n=1, cutoff=0.5)
    raise ValueError(
        f"{rule.text!r}: no score is called {rule.score};{f' did you mean {close[0]}?' if close else ''} scores are"
        f" {', '.join(known)}, each also with .{', .'.join(ENDINGS)}, exams with .{', .'.join(MEASURES)}"
    )


def _part_of(name: str, score: str, endings: Collection[str]) -> bool:
    """Whether ``name`` is ``score``, or that with endings that it can have."""
    rest = name.removeprefix(f"{score}.")
    return name == score or (rest != name and all(part in endings for part in rest.split(".")))


def _value(text: str) -> float:
    number = text.strip()
    return float(number[:-1]) / 100 if number.endswith("%") else float(number)
