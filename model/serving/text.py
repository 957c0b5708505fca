"""The text of an answer while it is made: whole characters only, and never a part of a stop string."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from model.tokens.chat import ChatTokenizer

_BROKEN = "\ufffd"
_TAIL = 3
"""Bytes that an unfinished UTF-8 character has at most; a decoder writes one mark for all of them or one for each."""
_LONG = 32
"""Tokens without a whole character after which there will be none: what they spell is shown as it is."""


class Reader:
    """Token ids of one answer to text. What :meth:`push` gives is final: it holds whole characters, and nothing in it
    may still turn out to begin one of the ``stop`` strings. ``stopped`` tells that one of them was met; neither it nor
    what follows is shown. In the first ``least`` tokens none is looked for."""

    def __init__(self, tokenizer: ChatTokenizer, stop: Sequence[str] = (), least: int = 0) -> None:
        self.tokenizer, self.stop, self.least = tokenizer, stop, least
        self.stopped = False
        self._ids: list[int] = []
        self._shown = 0  # characters of what _ids spell that are out
        self._held = ""

    def push(self, token: int) -> str:
        """The text that one more token makes sure."""
        text = self._whole(token)
        self.least -= 1
        return text if self.least >= 0 else self._pass(text)

    def end(self) -> str:
        """What was held back because a stop string could have begun with it; half a character is dropped."""
        rest, self._held = self._held, ""
        return rest

    def _whole(self, token: int) -> str:
        """What the token adds, as far as its characters are whole."""
        self._ids.append(token)
        text = self.tokenizer.decode(self._ids)
        whole = text if len(self._ids) > _LONG else text[:-_TAIL] + text[-_TAIL:].rstrip(_BROKEN)
        added = whole[self._shown :]
        self._shown = max(self._shown, len(whole))
        if len(whole) == len(text):
            # the last token stays as context: some tokenizers write a blank only between two tokens
            self._ids = self._ids[-1:]
            self._shown = len(self.tokenizer.decode(self._ids))
        return added

    def _pass(self, text: str) -> str:
        if not self.stop or self.stopped:
            return "" if self.stopped else text
        held = self._held + text
        if found := [(at + len(word), at) for word in self.stop if (at := held.find(word)) >= 0]:
            self.stopped, self._held = True, ""
            return held[: min(found)[1]]  # of the one that is whole first, wherever tokens cut the text
        keep = beginning(held, self.stop)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]


def beginning(text: str, words: Sequence[str]) -> int:
    """Length of the longest end of ``text`` with which one of the ``words`` could begin (0: none)."""
    longest = min(len(text), max(map(len, words)) - 1)
    return next((n for n in range(longest, 0, -1) if any(word.startswith(text[-n:]) for word in words)), 0)


class Spelling:
    """What single tokens are called in log-probabilities: their text, and their bytes where these are known."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        from tokenizers.decoders import ByteLevel

        self.backend = tokenizer.backend
        self.bytes_of = _byte_level() if isinstance(self.backend.decoder, ByteLevel) else None
        added = self.backend.get_added_tokens_decoder()
        self.added = {number: token.content for number, token in added.items()}

    def __call__(self, token: int) -> tuple[str, list[int]]:
        """Text (unfinished characters as U+FFFD) and bytes of a token."""
        if token in self.added:
            text = self.added[token]
            return text, list(text.encode())
        word = self.backend.id_to_token(token) or ""
        if self.bytes_of is not None and all(c in self.bytes_of for c in word):
            spelt = bytes(self.bytes_of[c] for c in word)
            return spelt.decode("utf-8", "replace"), list(spelt)
        text = self.backend.decode([token], skip_special_tokens=False)
        return text, list(text.encode())


@functools.cache
def _byte_level() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (GPT-2, Radford et al. 2019): printable
    Latin-1 characters for themselves, the others in order from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}
