"""Generation for everyone who generates: many sequences at once in the slots of one cache, each as if it were alone.

Sequences join and leave at any step. A prompt is read in chunks, so that a long one does not hold up the others; what
a slot has read stays in it, and a sequence that begins with the same tokens takes them over. What a sequence says
depends on no neighbour: its positions count from its own first token, its room is what its own prompt leaves, and its
random numbers follow from the seed, its prompt and its number among the samples of that prompt.

Limit: a prompt with its answer must fit the model's ``max_seq_len``; there is no sliding window.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from model.generation.choose import choose, penalise, top_logprobs
from model.generation.sampling import GREEDY, Sampling, draws
from model.generation.slots import Piece, SlotCache
from model.network.transformer import Transformer

CHUNK = 512
"""Most tokens of prompts that are read in one step."""


@dataclass
class Token:
    """One new token of sequence ``id``. ``logprob`` is its natural log-probability under the very distribution that it
    was drawn from (of a greedy one: under the whole softmax after the penalties); ``top`` the model's own likeliest
    tokens with theirs, as many as were wanted, and last the token itself where it is none of them; ``finish`` says what
    it ended: "stop" by a stop token, which this then is, or "length"."""

    id: int
    token: int
    logprob: float
    finish: Literal["", "stop", "length"] = ""
    top: list[tuple[int, float]] = field(default_factory=list)


@dataclass
class Completion:
    """An answer: its tokens with their log-probabilities, and what ended it; ``stop`` is the stop token's id and
    log-probability, which are not among them."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: Literal["", "stop", "length"] = ""
    stop: tuple[int, float] | None = None


@dataclass
class _Sequence:
    id: int
    prompt: list[int]
    stop: frozenset[int]
    room: int  # tokens it may get
    sampling: Sampling
    top_logprobs: int
    uniform: np.ndarray
    slot: int = -1
    answer: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.answer)


class Generator:
    """Continuous batching on ``model``, whose weights are read as they are now and again at each :meth:`refresh`.

    Memory is bounded by ``slots`` sequences of ``max_seq_len`` tokens. Not for several threads at once.
    """

    def __init__(self, model: Transformer, *, slots: int = 32) -> None:
        if slots < 1:
            raise ValueError(f"slots must be at least 1, not {slots}")
        self.model, self.window, self.vocab = model, model.config.max_seq_len, model.config.vocab_size
        self._cache = SlotCache(model, slots, 0)
        self._waiting: deque[_Sequence] = deque()
        self._running: dict[int, _Sequence] = {}  # by id, in order of joining
        self._held: list[list[int]] = [[] for _ in range(slots)]  # tokens whose keys and values a slot holds
        self._free = list(range(slots))[::-1]
        self._next = 0

    def add(
        self,
        prompt: Sequence[int],
        *,
        stop: Collection[int],
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        samples: int = 1,
        top_logprobs: int = 0,
    ) -> list[int]:
        """Queue ``samples`` answers to a prompt; their ids.

        Raises ValueError for an empty prompt, one that leaves no room in ``max_seq_len``, and ids the model lacks.
        """
        prompt = list(prompt)
        self._check(prompt, max_new_tokens, samples, top_logprobs)
        room = min(max_new_tokens, self.window - len(prompt))
        ids = list(range(self._next, self._next + samples))
        self._next += samples
        for sample, id in enumerate(ids):
            uniform = draws(prompt, sampling.seed, sample, room) if sampling.temperature else np.zeros(0)
            self._waiting.append(_Sequence(id, prompt, frozenset(stop), room, sampling, top_logprobs, uniform))
        return ids

    def _check(self, prompt: list[int], max_new_tokens: int, samples: int, top_logprobs: int) -> None:
        if not prompt:
            raise ValueError("a prompt is empty; give at least one token")
        if len(prompt) >= self.window:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens leaves no room for an answer: the model reads at most"
                f" {self.window} (max_seq_len)"
            )
        if not 0 <= min(prompt) <= max(prompt) < self.vocab:
            raise ValueError(
                f"a prompt has the id {min(prompt) if min(prompt) < 0 else max(prompt)}, which is none of"
                f" the model's {self.vocab}"
            )
        for name, value, least in (
            ("max_new_tokens", max_new_tokens, 1),
            ("samples", samples, 1),
            ("top_logprobs", top_logprobs, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")

    @property
    def running(self) -> int:
        """Sequences that have a slot."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences that wait for one."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._running or self._waiting)

    def cancel(self, id: int) -> None:
        """End a sequence and free its slot; one that has ended already, or never was, is let be."""
        if id in self._running:
            self._leave(self._running[id])
        self._waiting = deque(sequence for sequence in self._waiting if sequence.id != id)

    def refresh(self) -> None:
        """The model's weights have changed in place: what runs is read again with the new ones."""
        self._cache.refresh()
        self._held = [[] for _ in self._held]

    @torch.no_grad()  # not inference_mode: what the model caches would be unusable for training after it
    def step(self) -> list[Token]:
        """Let waiting sequences join as slots allow, read a chunk of the prompts, and compute one token of each
        sequence whose prompt has been read."""
        self._join()
        pieces, ready = self._plan()
        if not pieces:
            return []
        logits = self._cache.read(pieces)
        for piece in pieces:
            self._held[piece.slot] += piece.tokens
        rows = [row for row, sequence in enumerate(ready) if sequence is not None]
        sequences = [sequence for sequence in ready if sequence is not None]
        return self._choose(logits[rows], sequences) if rows else []

    def _join(self) -> None:
        while self._waiting and self._free:
            sequence = self._waiting.popleft()
            # the free slot whose tokens begin as the prompt does loses nothing by being taken
            sequence.slot = max(self._free, key=lambda slot: _common(self._held[slot], sequence.prompt))
            self._free.remove(sequence.slot)
            kept = min(_common(self._held[sequence.slot], sequence.prompt), len(sequence.prompt) - 1)
            self._held[sequence.slot] = sequence.prompt[:kept]
            need = len(sequence.prompt) + sequence.room
            if need > self._cache.capacity:
                self._cache.grow(min(self.window, 1 << max(6, (need - 1).bit_length())))
            self._running[sequence.id] = sequence

    def _plan(self) -> tuple[list[Piece], list[_Sequence | None]]:
        """What is read in this step, and for each piece the sequence that gets a token of it, if one does."""
        pieces: list[Piece] = []
        ready: list[_Sequence | None] = []
        budget = CHUNK
        reading: list[_Sequence] = []
        for sequence in self._running.values():
            tokens = sequence.prompt + sequence.answer
            held = self._held[sequence.slot]
            if len(tokens) - len(held) > 1:
                if self._awaits(sequence, tokens, reading) or budget <= 0:
                    reading.append(sequence)
                    continue
                held = self._held[sequence.slot]
                reading.append(sequence)
            part = tokens[len(held) :][: max(budget, 1)]
            if len(tokens) - len(held) > 1:
                budget -= len(part)
            pieces.append(Piece(sequence.slot, len(held), part))
            ready.append(sequence if len(held) + len(part) == len(tokens) else None)
        return pieces, ready

    def _awaits(self, sequence: _Sequence, tokens: list[int], reading: list[_Sequence]) -> bool:
        """Take over the longest beginning that another slot holds; whether an earlier sequence is about to read more of
        it."""
        own = len(self._held[sequence.slot])
        last = len(tokens) - 1
        best = max(range(len(self._held)), key=lambda slot: _common(self._held[slot], tokens))
        shared = min(_common(self._held[best], tokens), last)
        if shared > own:
            self._cache.copy(best, sequence.slot, shared)
            self._held[sequence.slot] = tokens[:shared]
            own = shared
        return any(min(_common(other.prompt, tokens), last) > own for other in reading)

    def _choose(self, logits: Tensor, sequences: list[_Sequence]) -> list[Token]:
        """One token of each sequence from its logits [rows, vocab]; those that end leave."""
        # as the model made them: penalties are written over the rows
        raw = [row.clone() if s.top_logprobs else None for row, s in zip(logits, sequences, strict=True)]
        for row, s in enumerate(sequences):
            if s.sampling.penalised:
                prompt, answer = (
                    torch.tensor(ids, dtype=torch.long, device=logits.device) for ids in (s.prompt, s.answer)
                )
                logits[row] = penalise(logits[row], s.sampling, prompt, answer)
        uniform = [float(s.uniform[len(s.answer)]) if s.sampling.temperature else 0.0 for s in sequences]
        chosen, logprobs = choose(logits, [s.sampling for s in sequences], uniform)
        said: list[Token] = []
        for s, token, logprob, own in zip(sequences, chosen.tolist(), logprobs.tolist(), raw, strict=True):
            s.answer.append(token)
            finish = "stop" if token in s.stop else "length" if len(s.answer) == s.room else ""
            top = [] if own is None else top_logprobs(own, s.top_logprobs, token)
            said.append(Token(s.id, token, logprob, finish, top))
            if finish:
                self._leave(s)
        return said

    def _leave(self, sequence: _Sequence) -> None:
        del self._running[sequence.id]
        self._free.append(sequence.slot)


def complete(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    stop: Collection[int],
    max_new_tokens: int = 256,
    sampling: Sampling = GREEDY,
    samples: int = 1,
    slots: int = 32,
) -> list[list[Completion]]:
    """``samples`` answers to each prompt, with log-probabilities. Equal prompts count as more samples of one, so they
    draw apart.

    Raises ValueError for an empty prompt, or one that leaves no room in ``max_seq_len``.
    """
    groups = Counter(tuple(prompt) for prompt in prompts)
    generator = Generator(model, slots=max(1, min(slots, len(prompts) * samples)))
    given = {
        prompt: generator.add(
            prompt, stop=stop, max_new_tokens=max_new_tokens, sampling=sampling, samples=samples * count
        )
        for prompt, count in groups.items()
    }
    answers = {id: Completion() for ids in given.values() for id in ids}
    while generator.busy:
        for token in generator.step():
            _extend(answers[token.id], token)
    rest = {prompt: iter([answers[id] for id in ids]) for prompt, ids in given.items()}
    return [[next(rest[tuple(prompt)]) for _ in range(samples)] for prompt in prompts]


def _extend(answer: Completion, token: Token) -> None:
    if token.finish == "stop":
        answer.stop = token.token, token.logprob
    else:
        answer.tokens.append(token.token)
        answer.logprobs.append(token.logprob)
    answer.finish = token.finish


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    stop: Collection[int],
    max_new_tokens: int = 256,
    sampling: Sampling = GREEDY,
) -> list[list[int]]:
    """New token ids after each prompt, without the stop token that ended them. Raises ValueError as :func:`complete`
    does."""
    answers = complete(model, prompts, stop=stop, max_new_tokens=max_new_tokens, sampling=sampling)
    return [own[0].tokens for own in answers]


def stream(
    model: Transformer,
    prompt: Sequence[int],
    *,
    stop: Collection[int],
    max_new_tokens: int = 256,
    sampling: Sampling = GREEDY,
) -> Iterator[int]:
    """The same for one prompt, a token at a time."""
    generator = Generator(model, slots=1)
    generator.add(prompt, stop=stop, max_new_tokens=max_new_tokens, sampling=sampling)
    while generator.busy:
        yield from (token.token for token in generator.step() if token.finish != "stop")


def _common(held: Sequence[int], tokens: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    end = min(len(held), len(tokens))
    if held[:end] == tokens[:end]:
        return end
    return next(i for i in range(end) if held[i] != tokens[i])
