"""Conversations written into one string, with the marks of hh-rlhf (``Human:``, ``Assistant:``) or GPT_teacher."""

from __future__ import annotations

import re
from typing import Any

from pipeline.formats.bad import BadRecord

_HH = re.compile(r"\n\n(Human|Assistant):")
"""The turn marks inside the strings of Anthropic's hh-rlhf and the data sets made like it."""

_FOLDED = re.compile(r"\n(助手|用户)[:：]")
"""GPT_teacher writes earlier turns into the prompt: ``first question\\n助手:its answer\\n用户:next question``."""


def is_transcript(text: str) -> bool:
    """Whether a string is a transcript in hh-rlhf's marks: it begins with one of the human, and has one of the
    assistant."""
    text = "\n\n" + text.lstrip()
    return text.startswith("\n\nHuman:") and "\n\nAssistant:" in text


def transcript_turns(text: str) -> list[dict[str, Any]]:
    """The turns of a transcript. A last mark of the assistant without words is the cue to answer, and no turn."""
    pieces = _HH.split("\n\n" + text.strip())[1:]
    turns = [
        {"role": "user" if who == "Human" else "assistant", "content": said.strip()}
        for who, said in zip(pieces[::2], pieces[1::2], strict=True)
    ]
    return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns


def unfold(prompt: str) -> list[dict[str, Any]]:
    """A prompt with earlier turns folded in, as turns; any other prompt as one user turn.

    Raises BadRecord(begun_answer) when it ends inside an answer.
    """
    if is_transcript(prompt):
        turns = transcript_turns(prompt)
        if turns[-1]["role"] == "assistant":
            raise BadRecord("begun_answer", "the prompt ends inside an answer; move those words to the answer")
        return turns
    pieces = _FOLDED.split(prompt.removeprefix("用户:").removeprefix("用户："))
    roles = pieces[1::2]
    # Only the strict alternation is the folded form; a text that merely mentions the words stays as it is.
    if not roles or len(roles) % 2 or any(role != ("助手", "用户")[i % 2] for i, role in enumerate(roles)):
        return [{"role": "user", "content": prompt}]
    return [{"role": ("user", "assistant")[i % 2], "content": text.strip()} for i, text in enumerate(pieces[::2])]
