"""Talking to a model directory: single answers, and a conversation on a terminal, streamed as it is made."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path

import torch

from model.generation.generator import Generator, stream
from model.generation.sampling import Sampling
from model.quantized.load import open_model
from model.serving.text import Reader
from model.tokens.chat import ChatTokenizer
from model.tokens.turns import Message

COMMAND = re.compile(r"/[a-z]+")


class Chat:
    """A model with its tokenizer, ready to answer."""

    def __init__(
        self,
        directory: str | Path,
        *,
        name: str = "",
        device: str = "auto",
        sampling: Sampling | None = None,
        max_new_tokens: int = 0,
    ) -> None:
        """Load ``directory``; what is not given is taken from its ``generation_config.json``. ``name`` is what the
        model is called beside another one. Raises ValueError or FileNotFoundError."""
        self.name = name or Path(directory).name
        device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.tokenizer = ChatTokenizer.load(directory).today(date.today())
        self.model = open_model(directory, dtype=torch.bfloat16 if device == "cuda" else torch.float32, device=device)
        self.generator = Generator(self.model, slots=1)  # the next turn reads only what is new
        defaults = generation_defaults(directory)
        self.sampling = sampling or own_sampling(defaults)
        self.max_new_tokens = max_new_tokens or int(defaults.get("max_new_tokens", 256))
        self.stop = self.tokenizer.ends

    def answer(self, messages: list[Message]) -> str:
        """The assistant's next message."""
        return "".join(self.stream(messages)).strip()

    def stream(self, messages: Sequence[Message]) -> Iterator[str]:
        """The same in pieces of whole characters. The oldest exchanges are forgotten when the model's window is
        full."""
        reader = Reader(self.tokenizer)
        for token in stream(
            self.generator,
            self._prompt(messages),
            stop=self.stop,
            max_new_tokens=self.max_new_tokens,
            sampling=self.sampling,
        ):
            if piece := reader.push(token):
                yield piece

    def _prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of what fits of the conversation; it begins at a question. A quarter of the
        window is left to the answer, and where the question alone needs more, what there is."""
        room = self.model.config.max_seq_len - 1
        short = min(self.max_new_tokens, (room + 1) // 4) - 1
        fitting = self.tokenizer.fit(messages, room - short, ask=True) or self.tokenizer.fit(messages, room, ask=True)
        if fitting is None:
            raise ValueError(
                f"the message is too long; this model reads at most {room} tokens, system prompt and chat format"
                " included"
            )
        return self.tokenizer.prompt(fitting[0])


SAMPLED = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def generation_defaults(directory: str | Path) -> dict[str, float]:
    """Sampling values of ``generation_config.json``; greedy when it does not ask for sampling or is not there."""
    path = Path(directory, "generation_config.json")
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    names = ("max_new_tokens", *SAMPLED) if values.get("do_sample") else ("max_new_tokens", "repetition_penalty")
    return {name: values[name] for name in names if values.get(name) is not None}


def own_sampling(defaults: Mapping[str, float], **changed: float | None) -> Sampling:
    """How a model is sampled by its own defaults, but for what is ``changed`` (None is not). Raises ValueError."""
    given = {name: value for name, value in changed.items() if value is not None}
    values = {name: value for name, value in defaults.items() if name in SAMPLED} | given
    whole = {name: int(values[name]) for name in ("top_k", "seed") if name in values}
    return Sampling(**{**values, **whole})


HELP = """\
/new   start over: what was said is forgotten
/help  this list
/quit  leave (so does Ctrl-D); Ctrl-C ends an answer
Anything else is said to the model, which sees the whole conversation until its window is full."""


def converse(*chats: Chat, system: str = "") -> None:
    """The interactive loop on stdin and stdout; ``system`` opens every conversation. Several models each have a
    conversation of their own about the same questions."""
    start: list[Message] = [{"role": "system", "content": system}] if system else []
    told = [list(start) for _ in chats]
    print("/help lists what can be done here, /quit leaves", file=sys.stderr)
    while True:
        try:
            text = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if text == "/quit":
            return
        if text == "/new":
            told = [list(start) for _ in chats]
        elif COMMAND.fullmatch(text):
            print(HELP if text == "/help" else f"{text} is no command here\n{HELP}", file=sys.stderr)
        elif text:
            for i, chat in enumerate(chats):
                if len(chats) > 1:
                    print(f"[{chat.name}]")
                told[i] = _turn(chat, [*told[i], {"role": "user", "content": text}])


def _turn(chat: Chat, messages: list[Message]) -> list[Message]:
    """Print the answer as it comes; the conversation with it. Ctrl-C ends the answer, not the conversation."""
    said = ""
    try:
        for piece in chat.stream(messages):
            said += piece
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pass
    except ValueError as error:
        print(error, end="")
        messages = messages[:-1]
    print()
    return [*messages, {"role": "assistant", "content": said}] if said else messages
