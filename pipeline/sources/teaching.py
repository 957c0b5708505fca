"""The teaching set that comes with the project: bilingual facts about how language models are made.

One fact a line in ``pipeline/teaching/facts-*.jsonl``: per language four trained questions, two held-out paraphrases,
the answer, keyword groups that tell a right answer, a wrong answer with its reason, and four choices. From a fact come
texts, chats and preferences; the held-out paraphrases come out of :func:`teaching_heldout` alone and are in none of the
others.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.formats.record import Record
from pipeline.sources import SourceFile
from pipeline.sources.files import hash_files

FACTS = Path(__file__).resolve().parent.parent / "teaching"
LANGS = ("zh", "en")
_FIELDS = {
    "questions": list,
    "heldout": list,
    "answer": str,
    "keywords": list,
    "rejected": str,
    "reason": str,
    "choices": list,
    "correct": int,
}
_FAQ = {"zh": ("问：", "答："), "en": ("Q: ", "A: ")}
_PER_DOCUMENT = 8


def list_teaching() -> list[SourceFile]:
    """The fact files as source files."""
    paths = sorted(FACTS.glob("facts-*.jsonl"))
    hashed = hash_files(paths)
    return [SourceFile(p.name, str(p), hashed[p].state[0], hashed[p].sha256) for p in paths]


@functools.cache
def facts() -> tuple[Record, ...]:
    """All facts in file order, each with its ``path`` and ``line``. ValueError names the file and line of a broken
    one."""
    found = []
    for path in sorted(FACTS.glob("facts-*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            if not line:
                continue
            try:
                fact = json.loads(line)
                for lang in LANGS:
                    for field, kind in _FIELDS.items():
                        if not isinstance(fact[lang][field], kind):
                            raise ValueError(f"{lang}.{field} is not a {kind.__name__}")
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path.name} line {number}: not a teaching fact: {error!r}") from None
            found.append({**fact, "path": path.name, "line": number})
    return tuple(found)


def _blocks() -> Iterator[tuple[Record, str, Record]]:
    """(fact, language, its block in that language)."""
    for fact in facts():
        for lang in LANGS:
            yield fact, lang, fact[lang]


def _origin(fact: Record, lang: str) -> dict[str, Any]:
    return {
        "id": f"{fact['id']}-{lang}",
        "lang": lang,
        "topic": fact["topic"],
        "source": "teaching",
        "path": fact["path"],
        "line": fact["line"],
    }


def teaching_chats() -> list[Record]:
    """Every trained question with its answer, in the chat normal form."""
    return [
        {
            "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": block["answer"]}],
            **_origin(fact, lang),
        }
        for fact, lang, block in _blocks()
        for question in block["questions"]
    ]


def teaching_preferences() -> list[Record]:
    """Every trained question with the right answer and the wrong one, in the preference normal form, with the
    ``reason``."""
    return [
        {
            "prompt": [{"role": "user", "content": question}],
            "chosen": block["answer"],
            "rejected": block["rejected"],
            "reason": block["reason"],
            **_origin(fact, lang),
        }
        for fact, lang, block in _blocks()
        for question in block["questions"]
    ]


def teaching_heldout() -> list[Record]:
    """Held-out paraphrases: ``question`` (in no training form), ``answer``, ``rejected``, ``keywords`` (an answer is
    right when of every group at least one alternative occurs in it, case-insensitively)."""
    return [
        {
            "question": question,
            "answer": block["answer"],
            "rejected": block["rejected"],
            "keywords": block["keywords"],
            **_origin(fact, lang),
        }
        for fact, lang, block in _blocks()
        for question in block["heldout"]
    ]


def teaching_texts() -> Iterator[Record]:
    """The facts as prose for pretraining: ``{"text", "id", "path", "line"}``, articles of one topic each in one
    language.

    Each topic is told five times, as plain statements and as questions and answers in each of the four wordings, cut at
    other places each time, so that the tellings are no near-duplicates of each other.
    """
    topics: dict[tuple[str, str], list[tuple[Record, Record]]] = {}
    for fact, lang, block in _blocks():
        topics.setdefault((fact["topic"], lang), []).append((fact, block))
    for (topic, lang), members in topics.items():
        for telling in range(5):
            # Every telling has its own stride through the topic, so the same facts do not stand side by side again.
            order = sorted(range(len(members)), key=lambda i, t=telling: (i % (t + 1), i))
            for start in range(0, len(order), _PER_DOCUMENT):
                chosen = [members[i] for i in order[start : start + _PER_DOCUMENT]]
                name = f"{topic}-{lang}-{telling}-{start // _PER_DOCUMENT}"
                yield {
                    "text": _article(chosen, lang, telling),
                    "id": name,
                    "path": chosen[0][0]["path"],
                    "line": chosen[0][0]["line"],
                }


def _article(members: list[tuple[Record, Record]], lang: str, telling: int) -> str:
    if telling == 4:
        return ("" if lang == "zh" else " ").join(block["answer"] for _, block in members)
    ask, say = _FAQ[lang]
    return "\n\n".join(f"{ask}{block['questions'][telling]}\n{say}{block['answer']}" for _, block in members)
