"""The chat tokenizer that workers, data stages and the chat command share: text and conversations to token ids and
back.

Torch-free; needs only ``tokenizers``, and ``jinja2`` for templates of others. A tokenizer directory holds
``tokenizer.json`` (byte-level BPE) and ``tokenizer_config.json`` (chat template and special tokens for transformers).
The conversation format is that of its template: :mod:`model.tokens.template`'s, with MiniMind's ids for the three
special tokens when we train the tokenizer ourselves, or any other by :mod:`model.tokens.foreign`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Self, cast

from model.tokens.foreign import ForeignFormat, Special
from model.tokens.history import fit_history
from model.tokens.jinja import TemplateRefuses
from model.tokens.template import CHAT_TEMPLATE
from model.tokens.theirs import foreign_template, special_texts
from model.tokens.turns import CHAT_SPECIALS, END_OF_TEXT, IM_END, IM_START, NO_THOUGHT, Message, turns

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DOCUMENT_ENDS = (END_OF_TEXT, "<|end_of_text|>", "<eos>", "</s>")
"""What ends a document in vocabularies of others, the first that is there."""


def transformers_config(max_length: int) -> dict[str, object]:
    """What ``tokenizer_config.json`` says, so that stock transformers loads the tokenizer with its chat template."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "bos_token": IM_START,
        "eos_token": IM_END,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


class ChatTokenizer:
    """Token ids of texts and conversations. Special tokens written in a text are ordinary text here, never parsed.

    ``template`` is a chat template of others, written in their format; without one conversations are written in ours.
    ``names`` are the special tokens that it may write by name, ``bos_token`` and the like. ``pad_id`` pads,
    ``end_of_text_id`` ends a document, ``ends`` are the ids at which an answer stops.
    """

    pad_id: int
    bos_id: int
    eos_id: int
    end_of_text_id: int
    ends: frozenset[int]

    def __init__(
        self, tokenizer: Tokenizer, template: str | None = None, names: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Raises ValueError for a tokenizer without the tokens of the chat format, or a template that cannot be used
        (TemplateRefuses)."""
        tokenizer.encode_special_tokens = True  # "<|im_end|>" typed by a user must not end the turn
        self.backend = tokenizer
        self.vocab_size = tokenizer.get_vocab_size()
        if template is None:
            self.foreign = None
            self._own_tokens()
        else:
            specials = {
                token.content: Special(i, token.lstrip, token.rstrip)
                for i, token in tokenizer.get_added_tokens_decoder().items()
                if token.special
            }
            self.foreign = ForeignFormat(template, dict(names), specials, self.encode, self._spelled)
            self._foreign_tokens(self.foreign, names)

    def _own_tokens(self) -> None:
        missing = [token for token in CHAT_SPECIALS if self.backend.token_to_id(token) is None]
        if missing:
            raise ValueError(
                f"the tokenizer has no {', '.join(missing)}; make it with the tokenizer stage, which adds them"
            )
        # none is missing
        self.pad_id, self.bos_id, self.eos_id = cast(list[int], [self.backend.token_to_id(t) for t in CHAT_SPECIALS])
        self.end_of_text_id = self.pad_id
        self.ends = frozenset({self.eos_id, self.end_of_text_id})
        self._newline = self.encode("\n")

    def _foreign_tokens(self, form: ForeignFormat, names: Mapping[str, str]) -> None:
        known = {name: self.backend.token_to_id(text) for name, text in names.items()}
        documents = [i for text in DOCUMENT_ENDS if (i := self.backend.token_to_id(text)) is not None]
        self.eos_id = form.ends[0]
        self.end_of_text_id = next(iter(documents), known.get("eos_token") or self.eos_id)
        pad, bos = known.get("pad_token"), known.get("bos_token")
        self.pad_id = self.end_of_text_id if pad is None else pad
        self.bos_id = self.end_of_text_id if bos is None else bos
        own = known.get("eos_token")
        self.ends = frozenset({*form.ends, self.end_of_text_id, *([] if own is None else [own])})

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Open a tokenizer (or model) directory; a chat template in it that says something else than ours is used.
        Raises FileNotFoundError or ValueError naming what is wrong."""
        from tokenizers import Tokenizer

        path = Path(directory) / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not found; {directory} is not a tokenizer or model directory")
        try:
            backend = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError(f"{path}: not a tokenizer that this version of `tokenizers` reads: {error}") from error
        names = special_texts(path.parent)
        template = foreign_template(path.parent, names)
        if template is None:
            return cls(backend)
        backend.no_truncation()
        backend.no_padding()
        try:
            return cls(backend, template, names)
        except TemplateRefuses as error:
            raise ValueError(f"{directory}: its chat template cannot be used: {error}") from None

    def today(self, day: date) -> Self:
        """The same, with the day that a template of others may write; while data is made it is always the same one."""
        if self.foreign:
            self.foreign.day = day
        return self

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; nothing is added and nothing is parsed."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text that the ids spell; incomplete UTF-8 at the edges becomes U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special)

    def _spelled(self, ids: Sequence[int]) -> str:
        return self.decode(ids, skip_special=False)

    def chat(self, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """Ids and mask of a conversation; mask is 1 on what the assistant says and on the token that ends its turn,
        but for turns that are not to be learnt.

        In our format header and content are encoded apart, so the model meets in training exactly the tokens that
        :meth:`prompt` gives it later.
        """
        if self.foreign:
            return self.foreign.masked(self.foreign.text(messages))
        ids: list[int] = []
        mask: list[int] = []
        for turn_ids, turn_mask, _ in self._encoded(messages):
            ids += turn_ids
            mask += turn_mask
        return ids, mask

    def sequences(self, messages: Sequence[Message]) -> list[tuple[list[int], list[int]]]:
        """Ids and mask of all that is to be learnt of a conversation: itself, or several sequences where a template of
        others writes earlier answers in another way than the last. Raises TemplateRefuses."""
        if self.foreign:
            return [self.foreign.masked(text) for text in self.foreign.texts(messages)]
        return [self.chat(messages)]

    def fit(self, messages: Sequence[Message], room: int, *, ask: bool = False) -> tuple[list[Message], int] | None:
        """Leave out the oldest exchanges until the rest fits into ``room`` tokens, with ``ask`` as a :meth:`prompt`; it
        and how many messages went, None when even the last exchange does not fit. Raises TemplateRefuses."""
        if self.foreign:
            return self.foreign.fit(messages, room, ask)
        return fit_history(messages, self.sizes(messages), room - (len(self.prompt([])) if ask else 0))

    def answer_size(self, answer: str) -> int:
        """Tokens that an answer's turn takes after its question."""
        if self.foreign:
            return self.foreign.answer_size(answer)
        return sum(self.sizes([{"role": "assistant", "content": answer}]))

    def sizes(self, messages: Sequence[Message]) -> list[int]:
        """Tokens that each message takes in our format; a turn of several messages (results of tools) counts at its
        first one."""
        found: list[int] = []
        for ids, _, count in self._encoded(messages):
            found += [len(ids), *[0] * (count - 1)]
        return found + [0] * (len(messages) - len(found))

    def _encoded(self, messages: Sequence[Message]) -> Iterator[tuple[list[int], list[int], int]]:
        """Ids, mask and number of messages of every turn."""
        for turn in turns(messages):
            header = [self.bos_id, *self.encode(turn.role + "\n")]
            content = [*self.encode(turn.content), self.eos_id]
            mask = [0] * len(header) + [int(turn.learn)] * len(content) + [0] * len(self._newline)
            yield header + content + self._newline, mask, turn.messages

    def prompt(self, messages: Sequence[Message], *, thinking: bool = True) -> list[int]:
        """Ids of a conversation followed by the header of the assistant's next turn; without ``thinking`` its reasoning
        is closed already. Raises TemplateRefuses."""
        if self.foreign:
            return self.foreign.ids(self.foreign.written(messages, ask=True, thinking=thinking))
        return [*self.chat(messages)[0], self.bos_id, *self.encode("assistant\n" + ("" if thinking else NO_THOUGHT))]

    def save(self, directory: str | Path, *, max_length: int = 32768) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json`` (byte-stable) into an existing directory, in our chat
        format."""
        self.backend.encode_special_tokens = False  # the file serves transformers, where templates are parsed
        text = self.backend.to_str(pretty=True)
        self.backend.encode_special_tokens = True
        Path(directory, "tokenizer.json").write_text(text, encoding="utf-8")
        config = json.dumps(transformers_config(max_length), ensure_ascii=False, indent=2)
        Path(directory, "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")
