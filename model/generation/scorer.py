"""One model and its tokenizer, answering questions and weighing texts.

Whatever does not fit the model's window is given back as None and never cut: a likelihood without part of its question,
or of part of an answer, is another question's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from model.generation.forest import Scored, batches, groves, picked, plant, read_trunk, shared, tree_log_probabilities
from model.generation.generator import Completion, Generator
from model.generation.plain import PlainText
from model.generation.summary import Weighed
from model.quantized.load import open_model
from model.tokens.chat import ChatTokenizer
from model.tokens.turns import Message

WORTH = 0.1
"""The share of tokens that must be common for trees to be quicker than plain rows."""
_LOGITS = 1 << 26  # most logits held at once: 256 MB


class Scorer:
    """A model in a directory. ``tick`` hears of every batch how many items it was; ``cut_short`` counts the answers
    that ended only because the window was full."""

    def __init__(self, directory: str, device: str, dtype: str, batch: int, tick: Callable[[int], None]) -> None:
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        bf16 = dtype == "bf16" or (dtype == "auto" and self.device == "cuda")
        self.model = open_model(directory, dtype=torch.bfloat16 if bf16 else torch.float32, device=self.device).eval()
        self.directory = directory
        self.window = self.model.config.max_seq_len
        self.batch, self.tick, self.cut_short = batch, tick, 0

    @functools.cached_property
    def tokenizer(self) -> ChatTokenizer:
        """The chat tokenizer, which a directory that is asked plain text need not have."""
        return ChatTokenizer.load(self.directory)

    @functools.cached_property
    def plain(self) -> PlainText:
        """The tokenizer of plain text."""
        return PlainText(self.directory)

    def answers(self, questions: Sequence[str], max_new_tokens: int) -> list[str | None]:
        """Greedy answers; None to a question that leaves no room in the model's window."""
        if not questions:
            return []
        prompts = [self.tokenizer.prompt([{"role": "user", "content": question}]) for question in questions]
        order = sorted(
            (i for i in range(len(prompts)) if len(prompts[i]) < self.window), key=lambda i: (len(prompts[i]), i)
        )
        answers: list[str | None] = [None] * len(prompts)
        stop = self.tokenizer.ends
        self.tick(len(prompts) - len(order))
        generator = Generator(self.model, slots=self.batch)
        asked = {
            generator.add(prompts[i], stop=stop, max_new_tokens=max_new_tokens)[0]: (i, Completion()) for i in order
        }
        while generator.busy:
            for token in generator.step():
                i, answer = asked[token.id]
                answer.take(token)
                if token.finish:
                    answers[i] = self.tokenizer.decode(answer.tokens).strip()
                    self.cut_short += token.finish == "length" and len(answer.tokens) < max_new_tokens
                    self.tick(1)
        return answers

    def likelihoods(self, pairs: Sequence[tuple[str | list[Message] | None, str]]) -> list[Weighed | None]:
        """For (question, answer) the answer's likelihood after the question (or a whole conversation) as a chat, or
        alone as a text where the question is None; None for a pair that does not fit the window."""
        sequences: list[Scored] = []
        for question, answer in pairs:
            begin = [self.tokenizer.end_of_text_id]  # what a document begins with in training
            if question is not None:
                talk: list[Message] = (
                    question if isinstance(question, list) else [{"role": "user", "content": question}]
                )
                begin = self.tokenizer.prompt(talk)
            sequences.append((begin + self.tokenizer.encode(answer.strip()), len(begin)))
        fitting = [i for i, (ids, _) in enumerate(sequences) if len(ids) <= self.window]
        self.tick(len(sequences) - len(fitting))
        found: list[Weighed | None] = [None] * len(sequences)
        for i, values in zip(fitting, self.log_probabilities([sequences[i] for i in fitting]), strict=True):
            found[i] = float(values.sum()), len(pairs[i][1].strip().encode())
        return found

    @torch.no_grad()
    def log_probabilities(self, sequences: Sequence[Scored]) -> list[np.ndarray]:
        """Natural log-probabilities (float64) of each sequence's tokens from its start index on, given what precedes
        them; what many begin with is computed once. Raises ValueError when one is not a number."""
        if shared(sequences) >= WORTH:
            return self._by_trees(sequences)
        found: list[np.ndarray] = [np.zeros(0)] * len(sequences)
        order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i][0]), i))
        for rows in self._batches(order, sequences):
            longest = max(len(sequences[i][0]) for i in rows)
            ids = torch.zeros((len(rows), longest), dtype=torch.long)
            for row, i in enumerate(rows):
                ids[row, : len(sequences[i][0])] = torch.tensor(sequences[i][0])
            # padding is at the right, where causal attention never looks
            hidden = self.model.hidden(ids.to(self.device))  # [rows, longest, dim]
            wanted = [
                (i, row * longest + np.arange(sequences[i][1] - 1, len(sequences[i][0]) - 1))
                for row, i in enumerate(rows)
            ]
            self._take(picked(self.model, hidden, wanted, sequences, _LOGITS), found)
        return found

    def _by_trees(self, sequences: Sequence[Scored]) -> list[np.ndarray]:
        found: list[np.ndarray] = [np.zeros(0)] * len(sequences)
        for grove in groves(sequences):
            trunk = read_trunk(self.model, grove.trunk)
            for trees in batches(list(plant(sequences, grove)), self._slots(), len(grove.trunk)):
                self._take(tree_log_probabilities(self.model, trees, sequences, trunk, _LOGITS), found)
        return found

    def _take(self, own: dict[int, np.ndarray], found: list[np.ndarray]) -> None:
        """Put the log-probabilities of a batch into their places. Raises ValueError when one is not a number."""
        for i, values in own.items():
            if not np.isfinite(values).all():
                raise ValueError(f"{self.directory}: likelihoods are not finite: the weights are damaged or diverged")
            found[i] = values
        self.tick(len(own))

    def _slots(self) -> int:
        """Tokens of a batch: more than fill the processor's caches only add padding."""
        return 1024 if self.device == "cpu" else 16_384

    def _batches(self, order: list[int], sequences: Sequence[Scored]) -> Iterator[list[int]]:
        tokens = self._slots()
        rows: list[int] = []
        for i in order:  # lengths rise, so the next one is the longest of its batch
            if rows and ((len(rows) + 1) * len(sequences[i][0]) > tokens or len(rows) == self.batch):
                yield rows
                rows = []
            rows.append(i)
        if rows:
            yield rows
