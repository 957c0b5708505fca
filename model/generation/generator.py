"""Generation for everyone who generates: many sequences at once in the slots of one cache, each as if it were alone.

Sequences join and leave at any step. A prompt is read in chunks, so that a long one does not hold up the others; what
a slot has read stays in it, and a sequence that begins with the same tokens takes them over. What a sequence says
depends on no neighbour: its positions count from its own first token, its room is what its own prompt leaves, and its
random numbers follow from the seed, its prompt and its number among the samples of that prompt.

Limit: a prompt with its answer must fit the model's ``max_seq_len``; there is no sliding window.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from model.generation.choose import choose, penalise, top_logprobs
from model.generation.kernels.pick import pick, room
from model.generation.packed import Packed
from model.generation.rule import FORBIDDEN, Rule
from model.generation.sampling import GREEDY, Sampling, draws
from model.generation.slots import Pieces, SlotCache, roomy
from model.network.transformer import Transformer

NOT_FINITE = "the model's logits are not finite: its weights are damaged or diverged"


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

    def take(self, token: Token) -> None:
        """Add the next token."""
        if token.finish == "stop":
            self.stop = token.token, token.logprob
        else:
            self.tokens.append(token.token)
            self.logprobs.append(token.logprob)
        self.finish = token.finish


@dataclass
class _Sequence:
    id: int
    prompt: np.ndarray  # int32
    stop: frozenset[int]
    room: int  # tokens it may get
    sampling: Sampling
    top_logprobs: int
    uniform: np.ndarray  # float64 [room], nothing of a greedy one
    least: int = 0  # tokens before which it does not stop
    rule: Rule | None = None
    bias: tuple[np.ndarray, np.ndarray] | None = None  # ids int64 and what is added to their logits, fp32
    slot: int = -1
    said: int = 0
    length: int = 0  # of the prompt and what was said

    @property
    def bent(self) -> bool:
        return self.bias is not None or self.rule is not None or self.said < self.least


class Generator:
    """Continuous batching on ``model``, whose weights are read now and again at each :meth:`refresh`.

    On a CPU by compiled kernels (:mod:`model.generation.packed`), which hold a copy of the matrices and use as many
    threads as torch; elsewhere by torch. Memory is bounded by ``slots`` sequences of ``max_seq_len`` tokens. Not for
    several threads at once.
    """

    def __init__(self, model: Transformer, *, slots: int = 32) -> None:
        if slots < 1:
            raise ValueError(f"slots must be at least 1, not {slots}")
        self.model, self.window, self.vocab = model, model.config.max_seq_len, model.config.vocab_size
        self._cache = (Packed if model.head.device.type == "cpu" else SlotCache)(model, slots, 0)
        self.slots = slots
        self._waiting: deque[_Sequence] = deque()
        self._running: dict[int, _Sequence] = {}  # by id, in order of joining
        self._tokens = np.zeros((slots, 0), np.int32)  # what a slot's sequence has read and said
        self._held = [0] * slots  # of how many of them the cache holds keys and values
        self._free = list(range(slots))[::-1]
        self._next = 0
        self._scratch = room(self.vocab)

    def add(
        self,
        prompt: Sequence[int],
        *,
        stop: Collection[int],
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        samples: int = 1,
        top_logprobs: int = 0,
        min_new_tokens: int = 0,
        rules: Sequence[Rule] = (),
        bias: Mapping[int, float] | None = None,
    ) -> list[int]:
        """Queue ``samples`` answers to a prompt; their ids. No stop token comes before ``min_new_tokens``; ``rules``,
        one for each sample, say what may be said; ``bias`` is added to the logits of some tokens.

        Raises ValueError for an empty prompt, one that leaves no room in ``max_seq_len``, and ids the model lacks.
        """
        prompt = list(prompt)
        self._check(prompt, max_new_tokens, samples, top_logprobs)
        if rules and (len(rules) != samples or min_new_tokens):
            raise ValueError("rules are one for each sample, and say themselves when an answer may end")
        room, stops = min(max_new_tokens, self.window - len(prompt)), frozenset(stop)
        tokens = np.array(prompt, np.int32)
        added = (np.array(list(bias), np.int64), np.array(list(bias.values()), np.float32)) if bias else None
        ids = list(range(self._next, self._next + samples))
        self._next += samples
        for sample, id in enumerate(ids):
            uniform = draws(prompt, sampling.seed, sample, room) if sampling.temperature else np.zeros(0)
            rule = rules[sample] if rules else None
            self._waiting.append(
                _Sequence(
                    id, tokens, stops, room, sampling, top_logprobs, uniform, min_new_tokens, rule, added,
                    length=len(prompt),
                )
            )  # fmt: skip
        return ids

    def _check(self, prompt: list[int], max_new_tokens: int, samples: int, top_logprobs: int) -> None:
        if not prompt:
            raise ValueError("a prompt is empty; give at least one token")
        if len(prompt) >= self.window:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens leaves no room for an answer: the model reads at most"
                f" {self.window} (max_seq_len)"
            )
        if strange := [token for token in prompt if not 0 <= token < self.vocab]:
            raise ValueError(f"a prompt has the id {strange[0]}, which is none of the model's {self.vocab}")
        least = {"max_new_tokens": (max_new_tokens, 1), "samples": (samples, 1), "top_logprobs": (top_logprobs, 0)}
        for name, (value, bound) in least.items():
            if value < bound:
                raise ValueError(f"{name} must be at least {bound}, not {value}")

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
        else:
            self._waiting = deque(sequence for sequence in self._waiting if sequence.id != id)

    def refresh(self) -> None:
        """The model's weights have changed in place: they are read again, and so are the tokens of what is running."""
        self._cache.refresh()
        self._held = [0] * len(self._held)

    def step(self) -> list[Token]:
        """Let waiting sequences join as slots allow, read on in prompts, and compute one token of each sequence whose
        prompt has been read. Raises ValueError when the model's logits are not numbers."""
        while self._waiting and self._free:
            self._join(self._waiting.popleft())
        parts = self._plan()
        if not parts:
            return []
        slots = np.array([s.slot for s, _ in parts])
        starts = np.array([self._held[s.slot] for s, _ in parts])
        counts = np.array([count for _, count in parts])
        ends = starts + counts
        within = np.arange(counts.sum()) - np.repeat(counts.cumsum() - ends, counts)  # the position of each token
        ids = self._tokens[np.repeat(slots, counts), within]
        ready = np.array([i for i, (s, _) in enumerate(parts) if ends[i] == s.length], np.int64)
        logits = self._cache.read(Pieces(slots, starts, counts, ids.astype(np.int64)), ready)
        for s, count in parts:  # only now: a pass that was broken off has read nothing
            self._held[s.slot] += count
        return self._choose(logits, [parts[i][0] for i in ready])

    def _join(self, sequence: _Sequence) -> None:
        need = len(sequence.prompt) + sequence.room
        if need > self._tokens.shape[1]:
            capacity = roomy(need, self.window)
            self._cache.grow(capacity)
            self._tokens = np.pad(self._tokens, ((0, 0), (0, capacity - self._tokens.shape[1])))
        # the free slot that begins as the prompt does has read that much already
        shared = self._shared(sequence.prompt)
        sequence.slot = max(self._free, key=shared.__getitem__)
        self._held[sequence.slot] = min(shared[sequence.slot], len(sequence.prompt) - 1)
        self._free.remove(sequence.slot)
        self._tokens[sequence.slot, : len(sequence.prompt)] = sequence.prompt
        self._running[sequence.id] = sequence

    def _shared(self, tokens: np.ndarray) -> list[int]:
        """Of each slot, how many tokens that it has read are the first ones of these."""
        n = min(len(tokens), self._tokens.shape[1])
        alike = (self._tokens[:, :n] == tokens[:n]) & (np.arange(n) < np.array(self._held)[:, None])  # [slots, n]
        return np.where(alike.all(1), n, alike.argmin(1)).tolist()

    def _plan(self) -> list[tuple[_Sequence, int]]:
        """Who reads how many tokens in this step."""
        # who only says its next token, and who still reads its prompt
        single: list[_Sequence] = []
        reading: list[_Sequence] = []
        for s in self._running.values():
            (single if s.length - self._held[s.slot] == 1 else reading).append(s)
        budget, ahead = self._cache.BESIDE if single else self._cache.CHUNK, list[np.ndarray]()
        parts = [(s, 1) for s in single]
        for s in reading:
            tokens = self._tokens[s.slot, : s.length]
            if budget > 0 and not self._awaits(s, tokens, ahead):
                parts.append((s, min(budget, s.length - self._held[s.slot])))
                budget -= parts[-1][1]
            ahead.append(tokens)
        return parts

    def _awaits(self, sequence: _Sequence, tokens: np.ndarray, ahead: list[np.ndarray]) -> bool:
        """Whether one ahead is about to read more of what this one begins with than any slot holds; if not, take over
        the most that one holds."""
        most = len(tokens) - 1  # the last token has to be read for its logits
        shared = self._shared(tokens)
        best = max(range(len(shared)), key=shared.__getitem__)
        held = max(self._held[sequence.slot], min(shared[best], most))
        if any(min(_common(other, tokens), most) > held for other in ahead):
            return True
        if held > self._held[sequence.slot]:
            self._cache.copy(best, sequence.slot, held)
            self._held[sequence.slot] = held
        return False

    def _choose(self, logits: np.ndarray | Tensor, sequences: list[_Sequence]) -> list[Token]:
        """One token of each sequence from its logits [rows, vocab]; those that end leave."""
        if not sequences:
            return []
        # as the model made them: the choice is made in their place
        raw = [
            torch.as_tensor(logits[row, : self.vocab]).clone() if s.top_logprobs else None
            for row, s in enumerate(sequences)
        ]
        for row, s in enumerate(sequences):
            if s.bent:
                self._bend(logits[row, : self.vocab], s)
        uniform = np.array([s.uniform[s.said] if s.sampling.temperature else 0.0 for s in sequences])
        pick = self._pick if isinstance(logits, np.ndarray) else self._pick_torch
        said: list[Token] = []
        for s, (token, logprob), own in zip(sequences, pick(logits, sequences, uniform), raw, strict=True):
            if s.length < self._tokens.shape[1]:
                self._tokens[s.slot, s.length] = token
            s.said, s.length = s.said + 1, s.length + 1
            if s.rule is not None:
                s.rule.take(token)
            finish = "stop" if token in s.stop else "length" if s.said == s.room else ""
            top = [] if own is None else top_logprobs(own, s.top_logprobs, token)
            said.append(Token(s.id, token, logprob, finish, top))
            if finish:
                self._leave(s)
        return said

    def _bend(self, line: Any, sequence: _Sequence) -> None:
        """Add a sequence's bias to its logits [vocab], and rule out the tokens that must not come now."""
        as_index = (lambda own: own) if isinstance(line, np.ndarray) else torch.from_numpy
        if sequence.bias is not None:
            ids, values = sequence.bias
            line[as_index(ids)] += values if isinstance(line, np.ndarray) else torch.from_numpy(values).to(line.device)
        if sequence.rule is not None:
            line[as_index(~sequence.rule.allowed())] = FORBIDDEN
        elif sequence.said < sequence.least:
            line[as_index(np.array(sorted(sequence.stop), np.int64))] = FORBIDDEN

    def _pick(self, logits: Any, sequences: list[_Sequence], uniform: np.ndarray) -> Iterable[tuple[int, float]]:
        tokens, logprobs = np.empty(len(sequences), np.int64), np.empty(len(sequences))
        knobs = np.array([s.sampling.knobs for s in sequences], np.float64)
        spans = np.array([(s.slot, len(s.prompt), s.length) for s in sequences])
        if pick(logits, self.vocab, knobs, uniform, self._tokens, spans, tokens, logprobs, self._scratch) >= 0:
            raise ValueError(NOT_FINITE)
        return zip(tokens.tolist(), logprobs.tolist(), strict=True)

    def _pick_torch(self, logits: Any, sequences: list[_Sequence], uniform: np.ndarray) -> Iterable[tuple[int, float]]:
        for row, s in enumerate(sequences):
            if s.sampling.penalised:
                own = torch.from_numpy(self._tokens[s.slot, : s.length].astype(np.int64)).to(logits.device)
                logits[row] = penalise(logits[row], s.sampling, own[: len(s.prompt)], own[len(s.prompt) :])
        chosen, logprobs = choose(logits, [s.sampling for s in sequences], uniform.tolist())
        tokens, values = torch.stack((chosen.double(), logprobs.double())).tolist()  # waits for the device once
        if not np.isfinite(values).all():
            raise ValueError(NOT_FINITE)
        return zip(map(int, tokens), values, strict=True)

    def _leave(self, sequence: _Sequence) -> None:
        """Free the slot; what it holds stays for those that begin alike."""
        del self._running[sequence.id]
        self._free.append(sequence.slot)


def complete(
    model: Transformer | Generator,
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
    generator = _generator(model, min(slots, len(prompts) * samples))
    given = {
        prompt: generator.add(
            prompt, stop=stop, max_new_tokens=max_new_tokens, sampling=sampling, samples=samples * count
        )
        for prompt, count in groups.items()
    }
    answers = {id: Completion() for ids in given.values() for id in ids}
    while generator.busy:
        for token in generator.step():
            answers[token.id].take(token)
    rest = {prompt: iter([answers[id] for id in ids]) for prompt, ids in given.items()}
    return [[next(rest[tuple(prompt)]) for _ in range(samples)] for prompt in prompts]


def _generator(model: Transformer | Generator, slots: int) -> Generator:
    if isinstance(model, Transformer):
        return Generator(model, slots=max(1, slots))
    if model.busy:
        raise RuntimeError("the generator is at work for someone else")
    return model


def generate(
    model: Transformer | Generator,
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
    model: Transformer | Generator,
    prompt: Sequence[int],
    *,
    stop: Collection[int],
    max_new_tokens: int = 256,
    sampling: Sampling = GREEDY,
) -> Iterator[int]:
    """The same for one prompt, a token at a time."""
    generator = _generator(model, 1)
    (name,) = generator.add(prompt, stop=stop, max_new_tokens=max_new_tokens, sampling=sampling)
    try:
        while generator.busy:
            yield from (token.token for token in generator.step() if token.finish != "stop")
    finally:  # whoever takes no more leaves the generator free
        generator.cancel(name)


def _common(held: np.ndarray, tokens: np.ndarray) -> int:
    """How many tokens two sequences begin with alike."""
    end = min(len(held), len(tokens))
    differing = (held[:end] != tokens[:end]).nonzero()[0]
    return int(differing[0]) if len(differing) else end
