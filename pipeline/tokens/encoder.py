"""Text and conversations to token ids at tiktoken's speed, and the ``meta.json`` of a token dataset.

tiktoken encodes with the tokenizer's own merges, ids equal to `tokenizers` at five times its speed; a tokenizer that
tiktoken cannot repeat exactly is run by `tokenizers` itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from model.tokens.chat import ChatTokenizer
from model.tokens.turns import IM_END, IM_START
from pipeline.tokens.tiktoken_form import to_tiktoken

if TYPE_CHECKING:
    import tiktoken
    from tokenizers import Tokenizer

Meta: TypeAlias = dict[str, Any]
"""``meta.json`` of a token dataset: format, kind, dtype, special ids, the tokenizer's sha256, counts of the splits."""
CHAT_MARKS = re.compile(f"({re.escape(IM_START)}|{re.escape(IM_END)})")
_PROBES = (
    "Hello,  world!\n\n\tif x: it's 12345\r\n",
    "语言模型，是怎样炼成的？\n第二行 ",
    "naïve café 😀 ́ ",
    "<|im_start|>user\n<|endoftext|>",
)


class Encoder(ChatTokenizer):
    """The chat tokenizer with a faster engine inside: "tiktoken" where it gives the ids of `tokenizers`, else that
    itself."""

    def __init__(
        self, tokenizer: Tokenizer, template: str | None = None, names: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self._fast: tiktoken.Encoding | None = None
        super().__init__(tokenizer, template, names)
        marks = {mark: tokenizer.token_to_id(mark) for mark in (IM_START, IM_END)}
        self._marks = {mark: i for mark, i in marks.items() if i is not None}  # a vocabulary of others may have none
        unknown = getattr(tokenizer.model, "unk_token", None)
        self.unknown_id = tokenizer.token_to_id(unknown) if unknown else -1
        added = tokenizer.get_added_tokens_decoder().values()
        self._literal = {token.content for token in added if not token.special}  # these are text to `tokenizers` too
        expected = [self.encode(text) for text in _PROBES]
        self._fast = to_tiktoken(tokenizer.to_str())
        if self._fast and [self.encode(text) for text in _PROBES] != expected:
            self._fast = None
        self.engine = "tiktoken" if self._fast else "tokenizers"

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; nothing is added and nothing is parsed."""
        return self.ids(text).tolist() if self._fast else super().encode(text)

    def ids(self, text: str, *, parse_chat: bool = False) -> np.ndarray:
        """Ids (uint32). With ``parse_chat``, written ``<|im_start|>`` and ``<|im_end|>`` become their ids; else they
        are text."""
        if self._fast:
            allowed = {*self._literal, *self._marks} if parse_chat else self._literal
            return self._fast.encode_to_numpy(text, allowed_special=allowed, disallowed_special=())
        if not parse_chat:
            return np.array(self.encode(text), dtype=np.uint32)
        pieces = CHAT_MARKS.split(text)
        ids = [[self._marks[piece]] if piece in self._marks else self.encode(piece) for piece in pieces]
        return np.array([i for own in ids for i in own], dtype=np.uint32)


def dataset_meta(kind: str, tokenizer: Path) -> Meta:
    """The head of a token dataset's ``meta.json``: format, kind, dtype, special ids, the tokenizer's sha256; no splits
    yet."""
    chat = ChatTokenizer.load(tokenizer)
    return {
        "format": "tokens/1",
        "kind": kind,
        "dtype": "uint16" if chat.vocab_size <= 2**16 else "uint32",
        "vocab_size": chat.vocab_size,
        "eos_id": chat.end_of_text_id if kind == "text" else chat.eos_id,
        "bos_id": chat.bos_id,
        "pad_id": chat.pad_id,
        "tokenizer": hashlib.sha256(Path(tokenizer, "tokenizer.json").read_bytes()).hexdigest(),
        "splits": {},
    }


def write_meta(out: Path, meta: Meta) -> None:
    """Write ``meta.json``; it comes last, so a dataset without it is one whose making was cut short."""
    (out / "meta.json").write_text(json.dumps(meta, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def flat_counts(meta: Meta) -> dict[str, float]:
    """``{train_tokens: …, val_sequences: …}`` of a dataset, with bytes per token of the training split."""
    flat = {f"{split}_{name}": n for split, row in meta["splits"].items() for name, n in row.items()}
    train = meta["splits"]["train"]
    return {**flat, "bytes_per_token": round(train["bytes"] / max(1, train["supervised"]), 4)}
