"""What can be seen of answers without knowing whether they are right. No torch.

- ``loops``: the share that end in the same words again and again (a piece of up to 60 characters at least four times);
- ``distinct``: different pairs of neighbouring words (of Chinese: characters) among all of an answer's (Li et al. 2016,
  arXiv:1510.03055), the mean over answers with at least two pairs;
- ``language``: the share in the language of the question, by script;
- ``tagged``: of a model that writes reasoning or answer tags, the share that have one, and ``well_formed`` the share of
  these whose tags are whole and in order;
- ``empty``: the share that say nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from model.tokens.reply import well_formed

_LOOP = re.compile(r"(.{1,60}?)\1{3,}\W*\Z", re.DOTALL)
_WORD = re.compile(r"[一-鿿]|[^\W一-鿿]+")
_TAG = re.compile(r"</?(?:think|answer)>")
_TAIL = 600


def loops(text: str) -> bool:
    """Whether a text ends in a piece of it again and again."""
    found = _LOOP.search(text[-_TAIL:])
    return found is not None and len(found[0]) >= 8 and any(character.isalnum() for character in found[1])


def distinct(text: str) -> float | None:
    """The share of different pairs of words among all; None of fewer than two pairs."""
    pairs = list(pairwise(_WORD.findall(text.lower())))
    return len(set(pairs)) / len(pairs) if len(pairs) > 1 else None


def language(text: str) -> str | None:
    """ "zh" where more than a fifth of the letters are Chinese, else "en"; None without letters."""
    letters = [character for character in text if character.isalpha()]
    chinese = sum("一" <= character <= "鿿" for character in letters)
    return None if not letters else "zh" if chinese * 5 > len(letters) else "en"


def fluency(items: Sequence[dict[str, Any]], answers: Sequence[str | None]) -> dict[str, float]:
    """The measures above over the answers that there are, and their number ``n``; nothing without any."""
    said = [(item, answer) for item, answer in zip(items, answers, strict=True) if answer is not None]
    if not said:
        return {}
    varied = [share for _, answer in said if (share := distinct(answer)) is not None]
    spoken = [(item, tongue) for item, answer in said if (tongue := language(answer)) and item["lang"] in ("zh", "en")]
    tagged = [answer for _, answer in said if _TAG.search(answer)]
    found = {
        "n": float(len(said)),
        "empty": sum(not answer.strip() for _, answer in said) / len(said),
        "loops": sum(loops(answer) for _, answer in said) / len(said),
    }
    if varied:
        found["distinct"] = sum(varied) / len(varied)
    if spoken:
        found["language"] = sum(item["lang"] == tongue for item, tongue in spoken) / len(spoken)
    if tagged:
        found["tagged"] = len(tagged) / len(said)
        found["well_formed"] = sum(map(well_formed, tagged)) / len(tagged)
    return found
