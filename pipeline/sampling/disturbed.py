"""Known questions among random words: what the questions of one answer have in common, between words of other texts.

Questions that share an answer ("What is a token?", "Explain a token.") share what they are about. A model that was
tuned on them answers by their wording as much as by their subject, and takes an unknown wording for another question.
Asked for the subject among words that mean nothing it makes just these mistakes, and the right answer is known.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Collection, Mapping, Sequence

_WORD = re.compile(r"[A-Za-z0-9'-]+|[一-鿿]{1,2}")
_LEAST = {True: 2, False: 4}
"""Characters of a subject, by whether it is Chinese."""
_AROUND = 3
"""Most words on either side of it."""


def disturbed(
    groups: Mapping[str, Sequence[str]], many: int, seed: int, taken: Collection[str]
) -> dict[str, list[str]]:
    """Up to ``many`` questions for each answer of ``groups`` (answer to its questions); none whose letters and digits
    are in ``taken`` (see :func:`plain`)."""
    pools: dict[bool, set[str]] = {True: set(), False: set()}
    for answer, questions in groups.items():
        for word in _WORD.findall("\n".join([answer, *questions])):
            pools[_chinese(word)].add(word)
    words = {zh: sorted(pool) for zh, pool in pools.items()}
    found: dict[str, list[str]] = {}
    for answer, questions in groups.items():
        subject = subject_of(questions) if len(questions) > 1 else ""
        if subject:
            zh = _chinese(questions[0])
            made = [_among(subject, words[zh], zh, f"{seed}/{answer}/{i}") for i in range(many)]
            found[answer] = [text for text in dict.fromkeys(made) if plain(text) not in taken]
    return found


def _among(subject: str, words: Sequence[str], zh: bool, name: str) -> str:
    draw = random.Random(hashlib.blake2b(name.encode(), digest_size=8).hexdigest())
    before = draw.randint(0, _AROUND)
    after = draw.randint(0 if before else 1, _AROUND)
    parts = [*(draw.choice(words) for _ in range(before)), subject, *(draw.choice(words) for _ in range(after))]
    text = ("" if zh else " ").join(parts) + draw.choice("？。" if zh else "?.")
    return text[0].upper() + text[1:]


def subject_of(questions: Sequence[str]) -> str:
    """The longest piece that all of the questions hold, of whole words; empty when there is none worth the name."""
    shortest = min(questions, key=len)
    for size in range(len(shortest), 1, -1):
        for at in range(len(shortest) - size + 1):
            piece = shortest[at : at + size]
            if piece == piece.strip() and all(_whole(piece, question) for question in questions):
                return piece if len(piece) >= _LEAST[_chinese(piece)] else ""
    return ""


def _whole(piece: str, text: str) -> bool:
    """Whether ``piece`` occurs in ``text`` with no letter or digit cut off at its ends (ideographs are words)."""
    at = text.find(piece)
    before, after = text[max(0, at - 1) : max(0, at)], text[at + len(piece) : at + len(piece) + 1]
    return at >= 0 and not (_letter(before) and _letter(piece[0])) and not (_letter(after) and _letter(piece[-1]))


def _letter(character: str) -> bool:
    return character.isascii() and character.isalnum()


def plain(text: str) -> str:
    """Letters and digits in lower case: what two questions are compared by."""
    return "".join(character for character in text.casefold() if character.isalnum())


def _chinese(text: str) -> bool:
    return any("一" <= character <= "鿿" for character in text)
