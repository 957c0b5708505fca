"""The parts of a chat answer while it is made: reasoning, what is said, and calls of tools.

The marks are those of :mod:`model.tokens.template`: ``<think>…</think>`` before the answer, and ``<tool_call>`` around
``{"name": …, "arguments": …}``. What looks like a call and is none stays text, so that nothing a model says is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from model.serving.text import beginning
from model.tokens.reply import ToolCall, parse_reply

_THINK, _THOUGHT = "<think>", "</think>"
_CALL, _CALLED = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class Reasoning:
    """A piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True)
class Content:
    """A piece of the answer."""

    text: str


Part = Reasoning | Content | ToolCall


class Parts:
    """Splits the text of an answer that comes in pieces. Calls are looked for where ``tools`` were offered."""

    def __init__(self, tools: bool) -> None:
        self.tools = tools
        self._calls: list[ToolCall] = []  # all but the first where one pair of marks holds several
        self._text = ""
        self._mode: Callable[[bool], Part | None] = self._open

    def push(self, text: str) -> list[Part]:
        """The parts that are sure after this piece."""
        self._text += text
        return self._advance(False)

    def end(self) -> list[Part]:
        """The rest: a call that was not closed counts when it is whole."""
        return self._advance(True)

    def _advance(self, last: bool) -> list[Part]:
        found: list[Part] = []
        while True:
            mode = self._mode
            if part := mode(last):
                found += [part, *self._calls]
                self._calls = []
            if self._mode == mode:
                return found

    def _open(self, last: bool) -> None:
        """The first letters say whether the model thinks aloud."""
        self._text = self._text.lstrip()
        if self._text.startswith(_THINK):
            self._text, self._mode = self._text[len(_THINK) :], self._think_from
        elif self._text and (last or not _THINK.startswith(self._text)):
            self._mode = self._say

    def _think_from(self, last: bool) -> None:
        """The line break after the mark is no part of the reasoning."""
        self._text = self._text.lstrip("\n")
        if self._text:
            self._mode = self._think

    def _between(self, last: bool) -> None:
        """Blank space after reasoning or a call is part of neither side."""
        self._text = self._text.lstrip()
        if self._text:
            self._mode = self._say

    def _think(self, last: bool) -> Part | None:
        said, mark, rest = self._text.partition(_THOUGHT)
        if mark:
            self._text, self._mode = rest, self._between
            return Reasoning(said.strip("\n")) if said.strip() else None
        text = self._take(_THOUGHT, last)
        return Reasoning(text) if text else None

    def _say(self, last: bool) -> Part | None:
        said, mark, rest = self._text.partition(_CALL) if self.tools else (self._text, "", "")
        if mark:
            self._text, self._mode = rest, self._call
            return Content(said.rstrip()) if said.strip() else None
        text = self._take(_CALL if self.tools else "", last)
        return Content(text) if text else None

    def _call(self, last: bool) -> Part | None:
        body, mark, rest = self._text.partition(_CALLED)
        if not mark and not last:
            return None
        calls = parse_reply(_CALL + body + _CALLED).tool_calls
        self._text, self._mode = rest, self._between if calls else self._say
        self._calls += calls[1:]
        return calls[0] if calls else Content(_CALL + body + mark)

    def _take(self, mark: str, last: bool) -> str:
        """The text but for what could begin ``mark``, and for the blank space before it."""
        end = len(self._text) - (0 if last or not mark else beginning(self._text, [mark]))
        end = len(self._text[:end].rstrip()) if mark else end
        taken, self._text = self._text[:end], "" if last else self._text[end:]
        return taken
