"""Tokenizer training and encoding beside `tokenizers` alone, on one core: speed, compression, and whether vocabulary
and ids are equal.

    python benchmarks/tokens.py [--corpus FILE.jsonl[.gz]] [--megabytes 30] [--vocab 6400]

A corpus line is a JSON object with a ``text``; without one, the sources of Python's standard library and the teaching
set are taken. Both sides get the same documents, the same split pattern and one thread; CPU seconds, best of the
rounds, the two sides in turn; compiling our kernels counts when it happens, so the first of the rounds may hold it.
Ends with exit code 1 when ids differ.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.update(RAYON_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")  # read by both sides' Rust when it is loaded
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers  # noqa: E402

from model.tokens.chat import ChatTokenizer  # noqa: E402
from model.tokens.turns import CHAT_SPECIALS  # noqa: E402
from pipeline.tokens.bpe import learn_merges, to_tokenizers  # noqa: E402
from pipeline.tokens.encoder import Encoder  # noqa: E402
from pipeline.tokens.patterns import PRETOKEN_PATTERN  # noqa: E402


def corpus(path: str | None, limit: int) -> list[str]:
    """Texts up to ``limit`` UTF-8 bytes in all."""
    found, size = [], 0
    for text in _lines(Path(path)) if path else _own():
        size += len(text.encode())
        if size > limit:
            break
        found.append(text)
    return found


def _lines(path: Path) -> Iterator[str]:
    with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
        for line in file:
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError):
                continue
            if isinstance(text, str):
                yield text


def _own() -> Iterator[str]:
    for path in sorted((ROOT / "pipeline" / "teaching").glob("*.jsonl")):
        yield from path.read_text(encoding="utf-8").splitlines()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" not in path.parts:
            yield path.read_text(encoding="utf-8", errors="ignore")


def train_ours(texts: list[str], vocab: int) -> Tokenizer:
    """What the tokenizer stage runs on its sample."""
    return to_tokenizers(learn_merges(texts, vocab - len(CHAT_SPECIALS) - 256), list(CHAT_SPECIALS))


def train_theirs(texts: list[str], vocab: int) -> Tokenizer:
    """`tokenizers`' own BPE trainer with the same pattern, alphabet and special tokens."""
    own = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PRETOKEN_PATTERN), "isolated")
    own.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=list(CHAT_SPECIALS), initial_alphabet=alphabet, show_progress=False
    )
    own.train_from_iterator(iter(texts), trainer)
    return own


def best(rounds: int, *sides: Callable[[], object]) -> list[tuple[float, object]]:
    """Least CPU seconds of each side and what it gave, the sides run in turn."""
    found: list[tuple[float, object]] = [(float("inf"), None)] * len(sides)
    for _ in range(rounds):
        for i, side in enumerate(sides):
            begun = time.process_time()
            result = side()
            found[i] = min(found[i], (time.process_time() - begun, result), key=lambda pair: pair[0])
    return found


def main() -> int:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", help="JSONL file with a text in every line")
    parser.add_argument("--megabytes", type=float, default=30, help="most text that is read")
    parser.add_argument("--vocab", type=int, default=6400)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    texts = corpus(options.corpus, int(options.megabytes * 1e6))
    size = sum(len(text.encode()) for text in texts) / 1e6
    (ours, tokenizer), (theirs, other) = best(
        options.rounds, lambda: train_ours(texts, options.vocab), lambda: train_theirs(texts, options.vocab)
    )
    with tempfile.TemporaryDirectory() as folder:
        ChatTokenizer(tokenizer).save(folder)
        fast, plain = Encoder.load(folder), ChatTokenizer.load(folder)
    batch = plain.backend.encode_batch_fast
    (quick, a), (slow, b) = best(
        options.rounds,
        lambda: [fast.ids(text) for text in texts],
        lambda: [e.ids for e in batch(texts, add_special_tokens=False)],
    )
    equal = sum(own.tolist() == ids for own, ids in zip(a, b, strict=True))
    vocabulary, theirs_too = (json.loads(each.to_str())["model"]["vocab"] for each in (tokenizer, other))
    learnt = len(vocabulary.items() & theirs_too.items())
    tokens, their_tokens = (
        sum(map(len, b)),
        sum(len(e.ids) for e in other.encode_batch_fast(texts, add_special_tokens=False)),
    )
    print(
        f"{len(texts)} documents, {size:.1f} MB, vocabulary {options.vocab}, one core, CPU seconds, best of"
        f" {options.rounds}\n"
    )
    print("| | this project | `tokenizers` | ratio |\n|---|---:|---:|---:|")
    print(f"| training, MB/s | {size / ours:.2f} | {size / theirs:.2f} | {theirs / ours:.2f} |")
    print(
        f"| compression, bytes per token | {size * 1e6 / tokens:.3f} | {size * 1e6 / their_tokens:.3f} |"
        f" {their_tokens / tokens:.4f} |"
    )
    print(
        f"| encoding with the same merges ({fast.engine}), MB/s | {size / quick:.2f} | {size / slow:.2f} |"
        f" {slow / quick:.2f} |"
    )
    print(
        f"\nEqual: {learnt} of {len(theirs_too)} tokens with their ids after training; ids of {equal} of {len(texts)}"
        " documents after encoding"
    )
    return 0 if equal == len(texts) else 1


if __name__ == "__main__":
    sys.exit(main())
