"""Problems that are made and not collected: sums, reversing, spelling, sorting and comparing, in Chinese and English.

A problem follows from its task, language, level, seed and number alone. One in eight, by the hash of what is asked
apart from the wording, is held out: no training problem, chat or text made here has it, whatever the seed, the wording
and the language.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pipeline.problems.words import EN, SYLLABLES, ZH

LANGS = ("zh", "en")
LEVELS = (1, 2, 3)
_HELD_OUT = 8
_TRIES = 50


class Made(NamedTuple):
    """A question, its answer, the same as a plain statement for texts, and ``key``: what is asked, without wording."""

    question: str
    answer: str
    statement: str
    key: str


def _number(rng: random.Random, level: int) -> int:
    return rng.randrange(2, (10, 50, 500)[level - 1])


def chain_sum(rng: random.Random, lang: str, level: int) -> Made:
    """A sum of two to four terms, never below zero on the way."""
    total = _number(rng, level)
    text = str(total)
    for _ in range((1, 2, 3)[level - 1]):
        term = _number(rng, level)
        minus = term <= total and rng.random() < 0.5
        total += -term if minus else term
        text += f" {'-' if minus else '+'} {term}"
    asked = {
        "zh": (f"计算 {text}。", f"{text} 等于多少？"),
        "en": (f"What is {text}?", f"Calculate {text}."),
    }[lang]
    return Made(rng.choice(asked), str(total), f"{text} = {total}", text)


def _word(rng: random.Random, level: int) -> str:
    """A word of English or one that sounds like it."""
    size = (range(3, 5), range(5, 7), range(7, 11))[level - 1]
    if rng.random() < 0.4:
        known = [word for word in EN if len(word) in size]
        if known:
            return rng.choice(known)
    wanted = rng.choice(size)
    return "".join(rng.choice(SYLLABLES) for _ in range(-(-wanted // 2)))[:wanted]


def _reversible(rng: random.Random, lang: str, level: int) -> str:
    """What is turned round: a word, or in Chinese as often some characters."""
    if lang == "zh" and rng.random() < 0.5:
        return "".join(rng.sample(ZH, rng.choice(((2, 3), (4, 5), (6, 8))[level - 1])))
    return _word(rng, level)


def reverse(rng: random.Random, lang: str, level: int) -> Made:
    """A word or some characters from back to front, one apart from the other."""
    word = _reversible(rng, lang, level)
    back = " ".join(reversed(word))
    asked = {
        "zh": (f"把 {' '.join(word)} 倒过来写。", f"从后往前写出 {' '.join(word)}。"),
        "en": (f"Write {' '.join(word)} backwards.", f"Reverse the letters {' '.join(word)}."),
    }[lang]
    says = {"zh": f"{' '.join(word)} 倒过来是 {back}", "en": f"{' '.join(word)} backwards is {back}"}[lang]
    return Made(rng.choice(asked), back, says, f"reverse {word}")


def spelling(rng: random.Random, lang: str, level: int) -> Made:
    """The letters of a word, one apart from the other."""
    word = _word(rng, level)
    spelt = " ".join(word)
    asked = {
        "zh": (f"拼写单词 {word}。", f"单词 {word} 由哪些字母组成？"),
        "en": (f"Spell the word {word}.", f"What letters is {word} made of?"),
    }[lang]
    says = {"zh": f"单词 {word} 拼作 {spelt}", "en": f"{word} is spelt {spelt}"}[lang]
    return Made(rng.choice(asked), spelt, says, f"spell {word}")


def sorting(rng: random.Random, lang: str, level: int) -> Made:
    """Numbers from the smallest to the largest, or the other way."""
    numbers = rng.sample(range(1, (10, 50, 500)[level - 1]), (3, 4, 5)[level - 1])
    up = rng.random() < 0.7
    text, done = " ".join(map(str, numbers)), " ".join(map(str, sorted(numbers, reverse=not up)))
    asked = {
        "zh": f"把 {text} 从{'小到大' if up else '大到小'}排列。",
        "en": f"Sort {text} from {'small to large' if up else 'large to small'}.",
    }[lang]
    says = {
        "zh": f"{text} 从{'小到大' if up else '大到小'}是 {done}",
        "en": f"{text} from {'small to large' if up else 'large to small'} is {done}",
    }[lang]
    return Made(asked, done, says, f"sort {up} {text}")


def comparison(rng: random.Random, lang: str, level: int) -> Made:
    """The larger or the smaller of two or three numbers."""
    numbers = rng.sample(range(1, (20, 100, 1000)[level - 1]), 2 if level < 3 else 3)
    large = rng.random() < 0.5
    right, text = (max if large else min)(numbers), " ".join(map(str, numbers))
    asked = {
        "zh": f"{'、'.join(map(str, numbers))} 中哪个{'最大' if large else '最小'}？",
        "en": f"Which of {text} is the {'largest' if large else 'smallest'}?",
    }[lang]
    says = {
        "zh": f"{'、'.join(map(str, numbers))} 中{'最大' if large else '最小'}的是 {right}",
        "en": f"of {text} the {'largest' if large else 'smallest'} is {right}",
    }[lang]
    return Made(asked, str(right), says, f"compare {large} {text}")


TASKS: dict[str, Callable[[random.Random, str, int], Made]] = {
    "chain_sum": chain_sum,
    "reverse": reverse,
    "spelling": spelling,
    "sorting": sorting,
    "comparison": comparison,
}


def held_out(key: str) -> bool:
    """Whether what is asked is one of those that are never trained on."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % _HELD_OUT == 0


def made(task: str, lang: str, level: int, count: int, seed: int, held: bool) -> Iterator[Made]:
    """Up to ``count`` different problems of a task, all held out or none; fewer where there are no more."""
    seen: set[str] = set()
    missed, rng = 0, random.Random(f"{seed} {task} {lang} {level} {held}")
    while len(seen) < count and missed < _TRIES * _HELD_OUT:
        one = TASKS[task](rng, lang, level)
        if held_out(one.key) != held or one.question in seen:
            missed += 1
            continue
        missed = 0
        seen.add(one.question)
        yield one
