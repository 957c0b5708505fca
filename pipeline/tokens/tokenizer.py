"""The tokenizer stage: learn a byte-level BPE from a deterministic sample of the training shards, or take an existing
one.

Memory is bounded by ``sample_chars``: texts are streamed, and only the distinct pre-tokens and their counts are kept.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.tokens.chat import ChatTokenizer
from model.tokens.imported import read_tokenizer
from model.tokens.theirs import TEMPLATE_FILES
from model.tokens.turns import CHAT_SPECIALS
from pipeline.config.base import Progress, quiet
from pipeline.config.tokens import TokenizerSection, tokenizer_file
from pipeline.tokens.bpe import extend_merges, learn_merges, to_tokenizers

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SPECIALS = re.compile("|".join(re.escape(token) for token in CHAT_SPECIALS))
_REPORT_CHARS = 2_000_000  # per language: enough for three digits of bytes per token


def make_tokenizer(cfg: TokenizerSection, shards: Path, out: Path, *, progress: Progress = quiet) -> dict[str, Any]:
    """Write a tokenizer directory with its ``report.json``; returns the report's numbers as flat metrics.

    ``shards`` holds ``train/part-*.parquet`` and, if there is one, ``val/part-*.parquet``, on which the report is
    measured. Raises ValueError naming the field when there is no text, or ``existing`` cannot be used.
    """
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = (
        _existing(cfg, shards / "train", progress) if cfg.existing else train(cfg, shards / "train", progress=progress)
    )
    if cfg.foreign:
        _save_as_it_was(cfg, tokenizer, out)
    else:
        ChatTokenizer(tokenizer).save(out)
    measured = vocabulary_report(out, shards)
    report = {"trained": bool(cfg.extend or not cfg.existing), "vocab_size": tokenizer.get_vocab_size(), **measured}
    (out / "report.json").write_text(
        json.dumps(report, ensure_ascii=False, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    return flat_metrics(report)


def train(cfg: TokenizerSection, docs: Path, *, progress: Progress = quiet) -> Tokenizer:
    """Learn the merges; special tokens get ids 0.. (see ``CHAT_SPECIALS``), then the reserved ones, bytes and merges.

    A text too small for ``vocab_size`` gives a smaller vocabulary; models take its size from the tokenizer.
    """
    specials = [*CHAT_SPECIALS, *(f"<|reserved_{i}|>" for i in range(cfg.reserved))]
    if cfg.vocab_size < len(specials) + 256:
        raise ValueError(
            f"tokenizer.vocab_size={cfg.vocab_size} leaves no room for {len(specials)} special tokens and 256 bytes"
        )
    merges = learn_merges(sample_texts(cfg, docs, progress=progress), cfg.vocab_size - len(specials) - 256)
    return to_tokenizers(merges, specials)


def sample_texts(cfg: TokenizerSection, docs: Path, *, progress: Progress = quiet) -> Iterator[str]:
    """Texts to learn from, in document order; which documents are taken depends on their ids alone, not on the
    sharding."""
    import pyarrow.compute as pc

    columns = (batch.column("text") for batch in _batches(docs, ["text"]))
    # pyarrow makes these functions on import
    sizes = (pc.sum(pc.utf8_length(column)) for column in columns)  # pyright: ignore[reportAttributeAccessIssue]
    total = sum(size.as_py() or 0 for size in sizes)
    if total == 0:
        raise ValueError(f"{docs}: no text to train a tokenizer on; every document was dropped before this stage")
    share = min(1.0, cfg.sample_chars / total)
    taken = 0
    for batch in _batches(docs, ["id", "text", "kind"]):
        for doc, text, kind in zip(*(batch.column(i).to_pylist() for i in range(3)), strict=True):
            if share == 1.0 or _unit_hash(doc) < share:
                text = text[: cfg.max_document_chars]
                taken += len(text)
                # the chat format's tokens have ids already, so their letters must not earn merges
                yield from filter(None, _SPECIALS.split(text)) if kind == "chat" else (text,)
        progress(taken, min(total, cfg.sample_chars), "chars")


def vocabulary_report(tokenizer: Path, shards: Path) -> dict[str, Any]:
    """Compression, unknown tokens and round trip per language, over up to two million characters each.

    Measured on the validation split, or on the training split when that is empty. ``bytes_per_token`` is UTF-8 bytes.
    """
    from pipeline.tokens.encoder import Encoder

    encoder = Encoder.load(tokenizer)
    by_lang: dict[str, dict[str, int]] = {}
    split = next((name for name in ("val", "train") if any((shards / name).glob("part-*.parquet"))), "train")
    for batch in _batches(shards / split, ["text", "lang", "kind"]):
        for text, lang, kind in zip(*(batch.column(i).to_pylist() for i in range(3)), strict=True):
            row = by_lang.setdefault(
                lang or "unknown",
                dict.fromkeys(("documents", "chars", "bytes", "tokens", "unknown", "round_trip_failures"), 0),
            )
            if row["chars"] < _REPORT_CHARS:
                ids = encoder.ids(text, parse_chat=kind == "chat")
                row["documents"] += 1
                row["chars"] += len(text)
                row["bytes"] += len(text.encode())
                row["tokens"] += len(ids)
                row["unknown"] += int((ids == encoder.unknown_id).sum())
                row["round_trip_failures"] += encoder.decode(ids.tolist(), skip_special=False) != text
    return {
        "measured_on": split,
        "encoder": encoder.engine,
        "languages": {lang: _with_ratios(by_lang[lang]) for lang in sorted(by_lang)},
    }


def flat_metrics(report: dict[str, Any]) -> dict[str, float]:
    """The report's numbers under flat names, as a tracking server wants them."""
    metrics: dict[str, float] = {"vocab_size": report["vocab_size"]}
    for lang, row in report["languages"].items():
        for name in ("bytes_per_token", "chars_per_token"):
            metrics[f"{name}_{lang}"] = row[name]
    for name in ("unknown", "round_trip_failures"):
        metrics[name] = sum(row[name] for row in report["languages"].values())
    return metrics


def _existing(cfg: TokenizerSection, docs: Path, progress: Progress) -> Tokenizer:
    text = tokenizer_file(cfg.existing).read_text(encoding="utf-8")
    if cfg.extend:
        try:
            text = extend_merges(text, sample_texts(cfg, docs, progress=progress), cfg.extend)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"tokenizer.existing={cfg.existing}: not a readable tokenizer.json: {error!r}") from error
        except ValueError as error:
            raise ValueError(f"tokenizer.extend={cfg.extend}: {cfg.existing}: {error}") from error
    return read_tokenizer(text, f"tokenizer.existing={cfg.existing}", chat_tokens=not cfg.foreign)


def _save_as_it_was(cfg: TokenizerSection, tokenizer: Tokenizer, out: Path) -> None:
    """Write a tokenizer with its own chat template: its files byte for byte, but for the tokens that were added."""
    file = tokenizer_file(cfg.existing)
    for name in TEMPLATE_FILES:
        if (file.parent / name).is_file():
            shutil.copyfile(file.parent / name, out / name)
    if cfg.extend:
        (out / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    else:
        shutil.copyfile(file, out / "tokenizer.json")


def _batches(directory: Path, columns: list[str]) -> Iterator[Any]:
    import pyarrow.parquet as pq

    for path in sorted(directory.glob("part-*.parquet")):
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=1024, columns=columns)


def _unit_hash(doc_id: str) -> float:
    """A document's place in [0, 1), drawn apart from the hash that splits train from validation."""
    digest = hashlib.blake2b(doc_id.encode(), digest_size=8, person=b"tokenizer").digest()
    return int.from_bytes(digest, "big") / 2**64


def _with_ratios(row: dict[str, int]) -> dict[str, float]:
    tokens = max(1, row["tokens"])
    return {
        **row,
        "bytes_per_token": round(row["bytes"] / tokens, 4),
        "chars_per_token": round(row["chars"] / tokens, 4),
    }
