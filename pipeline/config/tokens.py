"""Config of the two token stages: the tokenizer and the encoded text."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from model.tokens.imported import check_conversations
from model.tokens.theirs import TEMPLATE_FILES, foreign_template, special_texts
from pipeline.config.base import Section, where


class TokenizerSection(Section):
    """What the tokenizer is trained on, or which existing one is taken."""

    vocab_size: int = Field(
        default=6400,
        ge=300,
        le=1_000_000,
        description="special and reserved tokens, 256 bytes and merges; fewer when the text has no more pairs",
    )
    reserved: int = Field(
        default=13,
        ge=0,
        le=256,
        description="unused special ids kept for later (tools, thinking, images) after the three of the chat format",
    )
    sample_chars: int = Field(
        default=50_000_000,
        ge=10_000,
        description="characters to learn merges from; more text is sampled down by document hash",
    )
    max_document_chars: int = Field(
        default=100_000,
        ge=1_000,
        description="most that is learned from one document, so that no single book decides the merges",
    )
    template: Literal["same", "own"] = where(
        "same",
        description=(
            "the chat template that the existing tokenizer brings: same trains, asks and exports in its format, own"
            " replaces it by ours"
        ),
    )
    existing: str = where(
        "",
        description=(
            "tokenizer.json, or a folder with one, to use instead of training; the chat tokens it lacks are added at"
            " the end"
        ),
    )

    extend: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="tokens to add to the existing tokenizer, learnt from this run's text; its ids stay",
    )

    @field_validator("existing")
    @classmethod
    def _can_be_used(cls, value: str, info: ValidationInfo) -> str:
        if not value:
            return value
        path = tokenizer_file(value)
        if not path.is_file():
            raise ValueError(f"{path}: no such file; name a tokenizer.json or a folder that holds one")
        _check(path, _states(path), info.data.get("template") == "own")
        return value

    @model_validator(mode="after")
    def _extends_something(self) -> TokenizerSection:
        if self.extend and not self.existing:
            raise ValueError(
                "tokenizer.extend adds to an existing tokenizer: name one in tokenizer.existing, or set"
                " tokenizer.vocab_size"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """The fields, and an existing tokenizer by its content: where it lies does not matter, what it says does. The
        files of a chat template count where it is used."""
        content = tokenizer_file(self.existing).read_bytes() if self.existing else None
        known = {**super().identity(), "existing": content and hashlib.sha256(content).hexdigest()}
        if not self.foreign:
            return known
        files = [tokenizer_file(self.existing).parent / name for name in TEMPLATE_FILES]
        own = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}
        return {**known, "template": own}

    @property
    def foreign(self) -> bool:
        """Whether conversations are written in the format of the existing tokenizer's chat template."""
        if not self.existing or self.template == "own":
            return False
        folder = tokenizer_file(self.existing).parent
        return foreign_template(folder, special_texts(folder)) is not None


_States = tuple[tuple[int, int], ...]


def _states(path: Path) -> _States:
    """Sizes and times of a tokenizer's files: what is known of them holds as long as these do."""
    stats = [file.stat() for name in TEMPLATE_FILES if (file := path.parent / name).is_file()]
    return tuple((stat.st_size, stat.st_mtime_ns) for stat in (path.stat(), *stats))


@functools.lru_cache(maxsize=8)
def _check(path: Path, states: _States, own: bool) -> None:
    """:func:`check_conversations` of a tokenizer, once for each state of its files."""
    check_conversations(path.read_text(encoding="utf-8"), path.parent, str(path), own=own)


def tokenizer_file(existing: str) -> Path:
    """The ``tokenizer.json`` that ``tokenizer.existing`` names, directly or by its folder."""
    path = Path(existing).expanduser()
    return path / "tokenizer.json" if path.is_dir() else path


class EncodeSection(Section):
    """How documents become token ids."""

    append_end_of_text: bool = Field(
        default=True, description="end every document with <|endoftext|>, so that packed documents stay apart"
    )
