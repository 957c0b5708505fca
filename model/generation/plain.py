"""Text and continuations as lm-evaluation-harness 0.4 gives them to a model: no chat template, special tokens of the
text parsed, the tokenizer's own ones added.

Spaces at the end of a context belong to its continuation; both are encoded as one text and split where the context's
own encoding ends; what is longer than the window loses tokens at the left. An empty context is the begin-of-text token,
or the end-of-text token where there is none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from model.generation.forest import Scored
from model.generation.generator import Generator
from model.network.transformer import Transformer


class PlainText:
    """The tokenizer of a model directory (ours or Hugging Face's) as ``transformers`` would use it. Raises ValueError
    for a directory without one."""

    def __init__(self, directory: str | Path) -> None:
        path = Path(directory)
        if not (path / "tokenizer.json").is_file():
            raise ValueError(f"{path}: has no tokenizer.json; save its fast tokenizer beside the weights")
        self.backend = Tokenizer.from_str((path / "tokenizer.json").read_text(encoding="utf-8"))
        config = _json(path / "tokenizer_config.json")
        bos, eos = (_token(config.get(name)) for name in ("bos_token", "eos_token"))
        self.prefix, self.eos = bos or eos, eos
        known = self.backend.token_to_id(self.prefix) if self.prefix else None
        if known is None:
            raise ValueError(f"{path / 'tokenizer_config.json'}: names no bos_token or eos_token of the tokenizer")
        self.prefix_id = int(known)
        ends = _json(path / "generation_config.json").get(
            "eos_token_id", _json(path / "config.json").get("eos_token_id")
        )
        listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
        own = self.backend.token_to_id(eos) if eos else None
        self.stop = {int(end) for end in listed} or ({own} if own is not None else set[int]())

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids; ``special``: with what the tokenizer puts around a text, unless the text brings it."""
        return self.backend.encode(text, add_special_tokens=special and not text.startswith(self.prefix or "\0")).ids

    def pair(self, context: str, continuation: str, window: int) -> Scored:
        """Ids of both, at most ``window`` + 1, and where the continuation's begin. Raises ValueError when it has no
        token of its own, or more than fit."""
        if context == "":
            own = self.encode(continuation, special=False)
            head, tail = ([self.prefix_id], own) if own[:1] != [self.prefix_id] else (own[:1], own[1:])
        else:
            kept = context.rstrip()
            continuation, context = context[len(kept) :] + continuation, kept
            whole, head = self.encode(context + continuation), self.encode(context)
            tail = whole[len(head) :]
        if not tail or len(tail) > window:
            why = "has no token of its own" if not tail else f"has {len(tail)} tokens, more than the window of {window}"
            raise ValueError(f"the continuation {continuation[:40]!r} {why}")
        ids = (head + tail)[-(window + 1) :]
        return ids, len(ids) - len(tail)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        return self.backend.decode(list(ids), skip_special_tokens=True)


def continue_text(
    model: Transformer, text: PlainText, contexts: Sequence[str], until: Sequence[str], new_tokens: int, slots: int
) -> list[str]:
    """The greedy continuation of each context up to a stop string, an end token or ``new_tokens``; a context is cut at
    the left to what leaves room for them."""
    window = model.config.max_seq_len
    room = max(1, min(new_tokens, window - 1))
    stops = [*until, *([text.eos] if text.eos else [])]
    generator = Generator(model, slots=slots)
    asked: dict[int, int] = {}
    said: list[list[int]] = [[] for _ in contexts]
    for i, context in enumerate(contexts):
        prompt = text.encode(context)[-max(1, window - room) :]
        (name,) = generator.add(prompt, stop=text.stop, max_new_tokens=room)
        asked[name] = i
    while generator.busy:
        for token in generator.step():
            i = asked[token.id]
            if token.finish == "stop":
                continue
            said[i].append(token.token)
            # a stop string spans few tokens: only the end of the text can have completed one
            if not token.finish and any(stop in text.decode(said[i][-24:]) for stop in stops):
                generator.cancel(token.id)
    return [_before(text.decode(ids), stops) for ids in said]


def _before(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.split(stop)[0]
    return text


def _token(value: Any) -> str | None:
    """A token as a config names it: its text, or an object that has it."""
    return value.get("content") if isinstance(value, dict) else value


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
