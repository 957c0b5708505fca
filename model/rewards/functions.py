"""Rewards: named functions of a problem and an answer, which add up with weights.

Each gives a number between 0 and 1 (``length`` between -1 and 0). They are made so that no reward can be had by
breaking another: an answer that was cut off, or that writes the chat format's own marks, is right for none; the
language counts letters that were neither asked for nor in the question; a keyword that the question has in it already
is no achievement.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from model.generation.judge import final_number
from model.rewards.problem import Problem
from model.tokens.reply import parse_reply, well_formed
from model.tokens.turns import CHAT_SPECIALS

_BLOCK = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_MARK = re.compile(r"####\s*(.+)")
_NUMERIC = re.compile(r"[-+−]?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?%?")
_LEAD = re.compile(r"^(?:the answer is|answer|答案是|答案)\s*[:：]?\s*", re.IGNORECASE)
_LATIN = re.compile(r"[a-zà-ÿ]+", re.IGNORECASE)
_TRIM = " \t\r\n.。!！,，;；:：\"'“”‘’「」`*"


@dataclass(frozen=True)
class Said:
    """An answer: its ``text`` without the token that ended it, how many ``tokens`` it took of ``longest`` that were
    allowed, whether it ``ended`` by itself, and from which length on it is too long (``limit``; 0: never)."""

    text: str
    tokens: int
    ended: bool
    longest: int
    limit: int = 0

    @property
    def whole(self) -> bool:
        """Whether it ended by itself and writes none of the chat format's marks."""
        return self.ended and not any(mark in self.text for mark in CHAT_SPECIALS)


def answer_of(text: str) -> str | None:
    """What an answer says in the end: the one ``<answer>`` block, else what follows ``####``, else all but the
    reasoning. None where there are several blocks, or tags without their partners."""
    blocks = _BLOCK.findall(text)
    if text.count("<answer>") != text.count("</answer>") or len(blocks) > 1:
        return None
    if blocks:
        return blocks[0].strip()
    content = parse_reply(text).content
    mark = _MARK.search(content)
    return (mark[1] if mark else content).strip()


def plain(text: str) -> str:
    """A text as it is compared: without case, lead-in ("Answer:"), outer punctuation, and runs of blanks."""
    return _LEAD.sub("", " ".join(text.split()).strip(_TRIM).casefold()).strip(_TRIM)


def exact(problem: Problem, said: Said) -> float:
    """1 where the answer is the right one: equal as a number where that is one, else equal in its letters."""
    final = answer_of(said.text) if said.whole else None
    if not final or not problem["answer"]:
        return 0.0
    wanted = problem["answer"]
    if _NUMERIC.fullmatch(wanted.strip()):
        number = final_number(final)
        return float(number is not None and number == final_number(wanted))
    return float(plain(final) == plain(wanted))


def form(problem: Problem, said: Said) -> float:
    """1 for ``<think>…</think><answer>…</answer>``, each once, with something in both and nothing beside them."""
    return float(said.whole and well_formed(said.text, answer=True))


def length(problem: Problem, said: Said) -> float:
    """0 up to the limit, then falling to -1 at the longest that is allowed (the soft punishment of DAPO,
    arXiv:2503.14476, equation 13); an answer that was cut off has -1."""
    if not said.ended:
        return -1.0
    if not said.limit or said.tokens <= said.limit:
        return 0.0
    return -min(1.0, (said.tokens - said.limit) / max(1, said.longest - said.limit))


def language(problem: Problem, said: Said) -> float:
    """1 where the answer is in the question's language, by its letters: at least nine in ten are Chinese characters, or
    none, as the question is. Words of the question and of the right answer do not count, and an answer that has no
    other letters is in every language; one that says nothing is in none."""
    if not said.whole or not said.text.strip():
        return 0.0
    question = "\n".join(message["content"] for message in problem["messages"])
    known = {word.casefold() for word in _LATIN.findall(question + "\n" + problem["answer"])}
    others = set(question + problem["answer"])
    text = re.sub(r"</?(?:think|answer)>", " ", said.text)
    words = [word for word in _LATIN.findall(text) if word.casefold() not in known]
    if problem["lang"] != "zh":
        # a Chinese word that was asked for may be said
        foreign = [c for c in text if is_han(c) and c not in others]
        return float(not foreign)
    han, latin = sum(map(is_han, text)), sum(map(len, words))
    return float(latin <= 0.1 * (han + latin))


def is_han(character: str) -> bool:
    """Whether it is a Chinese character."""
    return "㐀" <= character <= "鿿" or "𠀀" <= character <= "𲎯"


def keywords(problem: Problem, said: Said) -> float:
    """The share of keyword groups of which the answer has a word, of those that the question does not answer itself."""
    if not said.whole:
        return 0.0
    question = "\n".join(message["content"] for message in problem["messages"]).casefold()
    asked = [group for group in problem.get("keywords", ()) if not any(word.casefold() in question for word in group)]
    text = (answer_of(said.text) or "").casefold()
    return sum(any(word.casefold() in text for word in group) for group in asked) / max(1, len(asked))


def gym(problem: Problem, said: Said) -> float:
    """The score that reasoning-gym's own verifier gives; 0 for a problem that is not one of its."""
    if not said.whole or "gym" not in problem:
        return 0.0
    from model.rewards.gym import score

    return score(problem["gym"], answer_of(said.text) or "")


REWARDS: dict[str, Callable[[Problem, Said], float]] = {
    "exact": exact,
    "format": form,
    "length": length,
    "language": language,
    "keywords": keywords,
    "gym": gym,
}
"""Rewards by the names that ``rl.rewards`` uses; ``model`` (the reward model) is the worker's own."""
MODEL = "model"


def rewards(problem: Problem, said: Said, weights: Mapping[str, float]) -> dict[str, float]:
    """Every reward of ``weights`` but the model's, by name, unweighted."""
    return {name: REWARDS[name](problem, said) for name in weights if name != MODEL}


def total(parts: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Rewards by name as one number."""
    return sum(weights[name] * parts[name] for name in weights)


def pass_at(k: int, right: int, of: int) -> float:
    """The chance that of ``k`` answers at least one is right, from ``right`` of ``of`` (Chen et al. 2021,
    arXiv:2107.03374, without bias)."""
    if of - right < k:
        return 1.0
    miss = 1.0
    for i in range(k):
        miss *= (of - right - i) / (of - i)
    return 1.0 - miss


def unknown(names: Sequence[str]) -> list[str]:
    """Those that are no reward."""
    return sorted(set(names) - {*REWARDS, MODEL})
