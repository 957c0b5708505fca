"""The quality rules of the clean stage, each a few lines over the batch's statistics, after Gopher, C4 and FineWeb.

Sources: Gopher arXiv 2112.11446 appendix A1.1, C4 arXiv 1910.10683 section 2.2, FineWeb arXiv 2406.17557 section 3.6.
Their thresholds fit English web prose; here every measure is by characters or by words that count two Chinese
characters as one, and the limits are wider, since books on programming, poems and word lists are documents too. A rule
returns which documents fail, the measured values, and a sentence with ``{}`` for the value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa

from pipeline.config.cleaning import CleanSection
from pipeline.data import terms
from pipeline.kernels import alphabet, scan, tokens
from pipeline.kernels.alphabet import CYRILLIC, DIGIT, HAN, HANGUL, KANA, LATIN, LETTER, NEWLINE, SPACE, UNSPACED
from pipeline.kernels.columns import Stat
from pipeline.kernels.terms import Terms

Verdict = tuple[np.ndarray, np.ndarray, str]
_compiled: list[Terms] = []


@dataclass(frozen=True)
class Facts:
    """What is known of a batch of n documents: ``stats`` int64 [n, COLUMNS], ``points`` int64 [n, 3], ``repeats``
    float32 [n, 2]."""

    stats: np.ndarray
    points: np.ndarray
    repeats: np.ndarray

    def update(self, where: list[int], facts: Facts) -> None:
        """Take over the facts of the documents numbered in `where`, which were measured again."""
        self.stats[where], self.points[where], self.repeats[where] = facts.stats, facts.points, facts.repeats

    def __getitem__(self, stat: int) -> np.ndarray:
        return self.stats[:, stat]

    @property
    def characters(self) -> np.ndarray:
        return self.stats[:, : alphabet.CLASSES].sum(1)

    @property
    def visible(self) -> np.ndarray:
        return self.characters - self[SPACE] - self[NEWLINE]

    @property
    def unspaced(self) -> np.ndarray:
        return self[HAN] + self[KANA] + self[UNSPACED]

    @property
    def words(self) -> np.ndarray:
        """Words, two characters of an unspaced script counted as one."""
        return self[Stat.WORDS] + self.unspaced / 2


def lexicon() -> Terms:
    """The compiled term list of this process."""
    if not _compiled:
        _compiled.append(Terms(terms.weighted()))
    return _compiled[0]


@lru_cache(1)
def _function_words() -> np.ndarray:
    """The set of their token hashes."""
    return tokens.hash_set(tokens.tokenize(*alphabet.utf8(terms.FUNCTION_WORDS.split("|")))[0])


def gather(texts: list[str] | pa.ChunkedArray) -> Facts:
    """Measure a batch of texts."""
    return Facts(*scan.measure(*alphabet.utf8(texts), lexicon(), _function_words()))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return part / np.maximum(whole, 1)


def empty(f: Facts, c: CleanSection) -> Verdict:
    return f.visible == 0, f.visible, "{:.0f} visible characters are left"


def unrepaired_text(f: Facts, c: CleanSection) -> Verdict:
    """Mojibake or replacement characters that no repair removed: more than 3 in 1,000 characters, or 3 in a short
    text."""
    value = 1000 * _share(f[Stat.MOJIBAKE] + f[Stat.REPLACED], f.characters)
    return (
        (value > 3) & (f[Stat.MOJIBAKE] + f[Stat.REPLACED] >= 3),
        value,
        "{:.1f} in 1000 characters are wrongly decoded, more than 3",
    )


def too_short(f: Facts, c: CleanSection) -> Verdict:
    """A short text stays when it is a whole sentence (a verse, an answer); a fragment cut anywhere does not."""
    width = (
        f.stats[:, DIGIT : LETTER + 1].sum(1) + f.unspaced + f[HANGUL]
    )  # letters alone, so that rules and marks do not count
    whole = (f[Stat.ENDS_SENTENCE] == 1) & (width >= c.min_sentence_width)
    limit = f"{c.min_width}, or {c.min_sentence_width} in whole sentences"
    return (width < c.min_width) & ~whole, width, f"letters of width {{:.0f}}, less than {limit}"


def too_long(f: Facts, c: CleanSection) -> Verdict:
    return f.characters > c.max_characters, f.characters, f"{{:.0f}} characters, more than {c.max_characters}"


def letters(f: Facts, c: CleanSection) -> Verdict:
    value = _share(f.stats[:, LATIN : LETTER + 1].sum(1), f.visible)
    return (
        value < c.min_letter_share,
        value,
        f"{{:.2f}} of the visible characters are letters, less than {c.min_letter_share}",
    )


def word_length(f: Facts, c: CleanSection) -> Verdict:
    value = _share(f[Stat.WORD_CHARACTERS], f[Stat.WORDS])
    return (
        (value > c.max_mean_word_length) & (f[Stat.WORDS] >= 10),
        value,
        f"words have {{:.1f}} letters, more than {c.max_mean_word_length}",
    )


def symbols(f: Facts, c: CleanSection) -> Verdict:
    value = _share(f[Stat.HASHES], f.words)
    return value > c.max_symbol_share, value, f"{{:.2f}} '#' or ellipses a word, more than {c.max_symbol_share}"


def bullet_lines(f: Facts, c: CleanSection) -> Verdict:
    value = _share(f[Stat.BULLET_LINES], f[Stat.LINES])
    return (
        (value > c.max_bullet_lines) & (f[Stat.LINES] >= 5),
        value,
        f"{{:.2f}} of the lines start with a bullet, more than {c.max_bullet_lines}",
    )


def ellipsis_lines(f: Facts, c: CleanSection) -> Verdict:
    value = _share(f[Stat.ELLIPSIS_LINES], f[Stat.LINES])
    return (
        (value > c.max_ellipsis_lines) & (f[Stat.LINES] >= 3),
        value,
        f"{{:.2f}} of the lines end in an ellipsis, more than {c.max_ellipsis_lines}",
    )


def function_words(f: Facts, c: CleanSection) -> Verdict:
    """Gopher asks for two of eight English stop words; here for function words of twenty languages, in long Latin texts
    alone."""
    latin = (f[LATIN] > 0.9 * f.stats[:, LATIN : LETTER + 1].sum(1)) & (f[Stat.WORDS] >= 100) & (f[CYRILLIC] == 0)
    value = f[Stat.FUNCTION_WORDS]
    return (
        latin & (value < 2),
        value,
        "{:.0f} function words (the, of, und, les …), fewer than 2 in a text of 100 words and more",
    )


def lorem_ipsum(f: Facts, c: CleanSection) -> Verdict:
    value = 1000 * _share(f.points[:, 2], f.characters)
    return value > 1, value, "{:.1f} 'lorem ipsum' in 1000 characters, more than 1"


def duplicate_lines(f: Facts, c: CleanSection) -> Verdict:
    value = _share(f[Stat.DUPLICATE_LINES], f[Stat.LINES])
    return (
        (value > c.max_duplicate_lines) & (f[Stat.LINES] >= 4),
        value,
        f"{{:.2f}} of the lines came before, more than {c.max_duplicate_lines}",
    )


def duplicate_line_characters(f: Facts, c: CleanSection) -> Verdict:
    value = _share(f[Stat.DUPLICATE_LINE_CHARACTERS], f.visible)
    return (
        value > c.max_duplicate_line_characters,
        value,
        f"{{:.2f}} of the text is in repeated lines, more than {c.max_duplicate_line_characters}",
    )


def top_ngram(f: Facts, c: CleanSection) -> Verdict:
    value = f.repeats[:, 0]
    return value > c.max_top_ngram, value, f"{{:.2f}} of the text is one n-gram, more than {c.max_top_ngram}"


def duplicate_ngrams(f: Facts, c: CleanSection) -> Verdict:
    value = f.repeats[:, 1]
    return (
        value > c.max_duplicate_ngrams,
        value,
        f"{{:.2f}} of the text is in repeated n-grams, more than {c.max_duplicate_ngrams}",
    )


def sentence_ends(f: Facts, c: CleanSection) -> Verdict:
    value = _share(f[Stat.ENDED_LINES], f[Stat.LINES])
    return (
        (value < c.min_sentence_ends) & (f[Stat.LINES] >= 10),
        value,
        f"{{:.2f}} of the lines end a sentence, less than {c.min_sentence_ends}",
    )


def short_lines(f: Facts, c: CleanSection) -> Verdict:
    value = _share(f[Stat.SHORT_LINES], f[Stat.LINES])
    verse = f[Stat.ENDED_LINES] * 3 >= f[Stat.LINES]  # short lines that end sentences are verse or dialogue
    return (
        (value > c.max_short_lines) & (f[Stat.LINES] >= 10) & ~verse,
        value,
        f"{{:.2f}} of the lines are short, more than {c.max_short_lines}",
    )


def line_breaks(f: Facts, c: CleanSection) -> Verdict:
    value = _share(f[Stat.LINES], f.words)
    return (
        (value > c.max_line_breaks) & (f[Stat.LINES] >= 10),
        value,
        f"{{:.2f}} line breaks a word, more than {c.max_line_breaks}",
    )


def spam(f: Facts, c: CleanSection) -> Verdict:
    """Advertising and gambling: at least 4 points of terms, and many for the length."""
    value = 100 * _share(f.points[:, 0], f[Stat.WIDTH])
    return (
        (f.points[:, 0] >= 4) & (value > c.max_spam_density),
        value,
        f"{{:.1f}} points of spam terms per 100 width, more than {c.max_spam_density}",
    )


def url_share(f: Facts, c: CleanSection) -> Verdict:
    value = _share(f[Stat.URL_CHARACTERS], f.visible)
    return value > c.max_url_share, value, f"{{:.2f}} of the text is URLs, more than {c.max_url_share}"


RULES: tuple[Callable[[Facts, CleanSection], Verdict], ...] = (
    empty,
    spam,
    unrepaired_text,
    too_short,
    too_long,
    letters,
    word_length,
    symbols,
    bullet_lines,
    ellipsis_lines,
    function_words,
    lorem_ipsum,
    duplicate_lines,
    duplicate_line_characters,
    top_ngram,
    duplicate_ngrams,
    sentence_ends,
    short_lines,
    line_breaks,
    url_share,
)
"""Asked in this order; the first that fails names the reason."""
