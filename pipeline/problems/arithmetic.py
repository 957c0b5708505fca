"""``arithmetic``: texts and chats about sums, spelling, sorting and comparing, made by the generators of problems.

None of them has a question that is held out. Texts say the same in other words than the chats do, many statements to a
document.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from pipeline.formats.record import Record
from pipeline.problems.generators import LANGS, TASKS, Made, made
from pipeline.sources.arithmetic import CHATS, LEVELS, NAME, PER_DOCUMENT, SEED, STATEMENTS


def _some(task: str, lang: str, level: int, count: int, seed: int) -> Iterator[Made]:
    return made(task, lang, level, count, seed, held=False)


def arithmetic_texts() -> Iterator[Record]:
    """Documents for pretraining: ``{"text", "id", "path", "line"}``, statements and questions with answers of all tasks
    in one language."""
    for lang in LANGS:
        lines = [
            one.statement + ("。" if lang == "zh" else ".") if i % 2 else f"{one.question} {one.answer}"
            for task in TASKS
            for level in LEVELS
            for i, one in enumerate(_some(task, lang, level, STATEMENTS, SEED))
        ]
        random.Random(SEED).shuffle(lines)
        for number in range(0, len(lines), PER_DOCUMENT):
            name = f"{lang}-{number // PER_DOCUMENT}"
            text = "\n".join(lines[number : number + PER_DOCUMENT])
            yield {"text": text, "id": name, "path": NAME, "line": number // PER_DOCUMENT + 1}


def arithmetic_chats() -> list[Record]:
    """Questions with their answers in the chat normal form, tasks, languages and levels by turns."""
    chats = [
        {
            "messages": [
                {"role": "user", "content": one.question},
                {"role": "assistant", "content": one.answer},
            ],
            "lang": lang,
            "id": f"{task}-{lang}-{level}-{number}",
        }
        for task in TASKS
        for lang in LANGS
        for level in LEVELS
        for number, one in enumerate(_some(task, lang, level, CHATS // len(LEVELS), SEED + 1))
    ]
    random.Random(SEED).shuffle(chats)
    return [{**chat, "source": NAME, "path": NAME, "line": i + 1} for i, chat in enumerate(chats)]
