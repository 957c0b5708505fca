"""What the four document stages are told: clean, language, dedup, decontaminate.

Every number here changes bytes and so is part of the stage's cache key. Thresholds are stated for text in any script:
*characters* count as they are, *width* counts a CJK character as two, and a *word* is a run of letters and digits in a
script with spaces, or two characters in one without.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import Section, where

RuleName = Literal[
    "html",
    "mojibake",
    "control_characters",
    "unicode_nfc",
    "whitespace",
    "boilerplate_lines",
    "empty",
    "unrepaired_text",
    "too_short",
    "too_long",
    "letters",
    "word_length",
    "symbols",
    "bullet_lines",
    "ellipsis_lines",
    "function_words",
    "lorem_ipsum",
    "duplicate_lines",
    "duplicate_line_characters",
    "top_ngram",
    "duplicate_ngrams",
    "sentence_ends",
    "short_lines",
    "line_breaks",
    "spam",
    "url_share",
    "email",
    "phone",
    "id_card",
    "ip_address",
]
"""Every rule of the clean stage by name: repairs, quality, masks (``pipeline.data.rules.RULES`` is their order)."""

Share = Annotated[float, Field(ge=0, le=1)]


class CleanSection(Section):
    """The clean stage: repairs first, then quality rules (Gopher, C4, FineWeb families), then masking of personal
    data."""

    disabled_rules: tuple[RuleName, ...] = Field(default=(), description="rules switched off by name")
    min_width: int = Field(
        default=64, ge=0, description="shorter documents (width: CJK counts 2) must be whole sentences to stay"
    )
    min_sentence_width: int = Field(
        default=20, ge=0, description="the least width of a document that is a whole sentence"
    )
    max_characters: int = Field(default=2_000_000, ge=1, description="longer documents are dropped: dumps, not texts")
    min_letter_share: Share = Field(
        default=0.35, description="letters among non-space characters, at least (Gopher: alphabetic words)"
    )
    max_mean_word_length: float = Field(default=15.0, gt=0, description="mean length of spaced words, at most (Gopher)")
    max_symbol_share: Share = Field(default=0.2, description="'#' and ellipses per word, at most (Gopher)")
    max_bullet_lines: Share = Field(
        default=0.95, description="share of lines that start with a bullet, at most (Gopher)"
    )
    max_ellipsis_lines: Share = Field(
        default=0.5, description="share of lines that end in an ellipsis, at most (Gopher)"
    )
    max_duplicate_lines: Share = Field(
        default=0.4, description="share of lines seen before in the document, at most (Gopher)"
    )
    max_duplicate_line_characters: Share = Field(
        default=0.3, description="share of characters in repeated lines, at most (Gopher)"
    )
    max_top_ngram: Share = Field(
        default=0.3, description="share of characters in the most frequent short n-gram, at most (Gopher)"
    )
    max_duplicate_ngrams: Share = Field(
        default=0.5, description="share of characters in repeated 5-word n-grams, at most (Gopher)"
    )
    min_sentence_ends: Share = Field(default=0.02, description="share of lines that end a sentence, at least (FineWeb)")
    max_short_lines: Share = Field(
        default=0.95, description="share of lines under 30 width, at most, in documents of 10 lines and more (FineWeb)"
    )
    max_line_breaks: float = Field(default=0.5, gt=0, description="line breaks per word, at most (FineWeb)")
    max_url_share: Share = Field(default=0.8, description="share of characters inside URLs, at most")
    max_spam_density: float = Field(
        default=3.0, gt=0, description="points of advertising and gambling terms per 100 width, at most"
    )


class LanguageSection(Section):
    """The language stage: which languages stay, and who decides."""

    keep: tuple[str, ...] = Field(
        default=("zh", "en"), description="ISO 639-1 codes of the languages that stay; empty keeps all"
    )
    engine: Literal["cascade", "fasttext", "langdetect"] = Field(
        default="cascade",
        description="cascade: scripts, then fastText on windows, then langdetect where both are unsure",
    )
    windows: int = Field(default=2, ge=1, le=16, description="excerpts of an ambiguous document shown to fastText")
    window_characters: int = Field(default=250, ge=40, le=4000, description="characters in an excerpt")
    min_confidence: Share = Field(default=0.2, description="below this fastText confidence langdetect is asked")
    seed: int = Field(default=0, ge=0, description="seed of langdetect's sampling")


class DedupSection(Section):
    """The dedup stage: exact copies, then near copies by MinHash and a verified Jaccard similarity."""

    near: bool = Field(default=True, description="find near copies too, not only exact ones")
    threshold: float = Field(
        default=0.75, gt=0, le=1, description="Jaccard similarity of shingle sets from which documents are copies"
    )
    ngram: int = Field(default=5, ge=1, le=32, description="tokens in a shingle (a CJK character or a word is a token)")
    permutations: int = Field(default=128, ge=16, le=1024, description="MinHash permutations (datasketch affine32)")
    bands: int = Field(default=21, ge=1, le=256, description="bands; bands x rows must not exceed permutations")
    rows: int = Field(default=6, ge=1, le=64, description="signature values in a band")
    seed: int = Field(default=1, ge=0, description="seed of the permutations")
    against: tuple[str, ...] = where(
        (), description="earlier document artifacts whose documents count as already there"
    )


class DecontaminateSection(Section):
    """The stages decontaminate, chats and preferences: which overlap with evaluation texts counts, and what happens
    then."""

    action: Literal["drop", "report"] = Field(
        default="drop", description="what happens to documents and records that hold an evaluation text"
    )
    words: int = Field(
        default=13, ge=3, le=64, description="n-gram length in words for texts in scripts with spaces (GPT-3)"
    )
    characters: int = Field(
        default=24, ge=6, le=128, description="n-gram length in characters for Chinese and other unspaced texts"
    )
    min_words: int = Field(
        default=6,
        ge=2,
        le=64,
        description="shorter items than `words` must occur whole; below this they cannot be judged",
    )
    min_characters: int = Field(default=10, ge=3, le=128, description="the same in characters")
    min_share: Share = Field(
        default=0.5, description="share of an item's n-grams that a document must hold to count as overlapping"
    )
    in_distribution: tuple[str, ...] = Field(
        default=(), description="evaluation sets made from training data on purpose: reported, never dropped"
    )
    max_bad_records: Share = Field(
        default=0.1, description="share of the chats or preference pairs of a source that may be unusable"
    )
    ignore_fields: tuple[str, ...] = Field(
        default=(),
        description=(
            "fields of chats and preference pairs to leave out on purpose; any other field with text that no known form"
            " has is refused by name"
        ),
    )
