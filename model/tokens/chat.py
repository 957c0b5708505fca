"""The chat tokenizer that workers, data stages and the chat command share: text and conversations to token ids and
back.

Torch-free; needs only ``tokenizers``. A tokenizer directory holds ``tokenizer.json`` (byte-level BPE) and
``tokenizer_config.json`` (chat template and special tokens for transformers). The conversation format is
:mod:`model.tokens.template`'s, with MiniMind's ids for the three special tokens when we train the tokenizer ourselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

from model.tokens.template import CHAT_TEMPLATE
from model.tokens.turns import CHAT_SPECIALS, END_OF_TEXT, IM_END, IM_START, NO_THOUGHT, Message, turns

if TYPE_CHECKING:
    from tokenizers import Tokenizer


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
    """Token ids of texts and conversations. Special tokens written in a text are ordinary text here, never parsed."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        missing = [token for token in CHAT_SPECIALS if tokenizer.token_to_id(token) is None]
        if missing:
            raise ValueError(
                f"the tokenizer has no {', '.join(missing)}; make it with the tokenizer stage, which adds them"
            )
        tokenizer.encode_special_tokens = True  # "<|im_end|>" typed by a user must not end the turn
        self.backend = tokenizer
        ids = cast(list[int], [tokenizer.token_to_id(token) for token in CHAT_SPECIALS])  # none is missing
        self.pad_id, self.bos_id, self.eos_id = ids
        self.vocab_size = tokenizer.get_vocab_size()
        self._newline = self.encode("\n")

    @classmethod
    def load(cls, directory: str | Path) -> Self:
        """Open a tokenizer (or model) directory. Raises FileNotFoundError or ValueError naming what is wrong."""
        from tokenizers import Tokenizer

        path = Path(directory) / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not found; {directory} is not a tokenizer or model directory")
        try:
            backend = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError(f"{path}: not a tokenizer that this version of `tokenizers` reads: {error}") from error
        return cls(backend)

    @property
    def end_of_text_id(self) -> int:
        """The id that ends a document of plain text; it is also the padding."""
        return self.pad_id

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; nothing is added and nothing is parsed."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text that the ids spell; incomplete UTF-8 at the edges becomes U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special)

    def chat(self, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        """Ids and mask of a conversation; mask is 1 on what the assistant says and on its ``<|im_end|>``, but for turns
        that are not to be learnt.

        Header and content are encoded apart, so the model meets in training exactly the tokens that
        :meth:`prompt` gives it later.
        """
        ids: list[int] = []
        mask: list[int] = []
        for turn_ids, turn_mask, _ in self._encoded(messages):
            ids += turn_ids
            mask += turn_mask
        return ids, mask

    def sizes(self, messages: Sequence[Message]) -> list[int]:
        """Tokens that each message takes; a turn of several messages (results of tools) counts at its first one."""
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
        is closed already."""
        return [*self.chat(messages)[0], self.bos_id, *self.encode("assistant\n" + ("" if thinking else NO_THOUGHT))]

    def save(self, directory: str | Path, *, max_length: int = 32768) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json`` (byte-stable) into an existing directory."""
        self.backend.encode_special_tokens = False  # the file serves transformers, where templates are parsed
        text = self.backend.to_str(pretty=True)
        self.backend.encode_special_tokens = True
        Path(directory, "tokenizer.json").write_text(text, encoding="utf-8")
        config = json.dumps(transformers_config(max_length), ensure_ascii=False, indent=2)
        Path(directory, "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")
