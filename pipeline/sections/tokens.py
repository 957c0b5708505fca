"""Config of the two token stages: the tokenizer and the encoded text."""

from __future__ import annotations

from pydantic import Field

from pipeline.sections.base import Section, where


class TokenizerSection(Section):
    """What the tokenizer is trained on, or which existing one is taken."""

    vocab_size: int = Field(6400, ge=300, le=1_000_000, description="ids in all: special and reserved tokens, 256 bytes, merges")
    reserved: int = Field(13, ge=0, le=256, description="unused special ids kept for later (tools, thinking, images) after the three of the chat format")
    sample_chars: int = Field(50_000_000, ge=10_000, description="characters of training text to learn merges from; more text is sampled down by document hash")
    max_document_chars: int = Field(100_000, ge=1_000, description="only so much of one document is learned from, so that no single book decides the merges")
    existing: str = where("", description="tokenizer.json, or a folder with one, to use instead of training; the chat tokens it lacks are added at the end")


class EncodeSection(Section):
    """How documents become token ids."""

    append_end_of_text: bool = Field(True, description="end every document with <|endoftext|>, so that packed documents stay apart")
