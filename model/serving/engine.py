"""One model that answers many at once: a thread owns the generator, callers hand in requests and hear the pieces.

The thread is the only one that touches the model. Whoever asks gets its pieces by a callback, which is called on that
thread and must not block. Cancelling frees the slots at the next step.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path

import torch

from model.generation.generator import Generator, Token
from model.generation.sampling import GREEDY, Sampling
from model.quantized.load import open_model
from model.serving.grammar import Grammars, JsonRule
from model.serving.text import Reader, Spelling
from model.tokens.chat import ChatTokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ask:
    """What is to be said: ``samples`` answers to the ids of ``prompt``, at most ``max_new_tokens`` (at least 1) each,
    ended by the model's own end of a turn or before one of the ``stop`` strings. ``top_logprobs`` None: no
    log-probabilities are wanted; else how many alternatives beside each token. Nothing ends before ``least`` tokens,
    and with ``on_and_on`` the model's own end never does. ``rule`` is what an answer is held to, ``bias`` what is
    added to the logits of some tokens."""

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: Sampling = GREEDY
    samples: int = 1
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    least: int = 0
    on_and_on: bool = False
    rule: JsonRule | None = None
    bias: Mapping[int, float] | None = None


@dataclass(frozen=True)
class Scored:
    """A token with its log-probability (natural, of the model itself, before any option of sampling) and the likeliest
    alternatives; texts with their bytes."""

    text: str
    bytes: list[int]
    logprob: float
    top: list[tuple[str, list[int], float]]


@dataclass(frozen=True)
class Piece:
    """What one step adds to one sample. ``finish``: "" while it goes on, then stop, length, or error; ``tokens`` is how
    many new tokens the sample has so far."""

    sample: int
    text: str
    finish: str
    tokens: int
    scored: list[Scored] = field(default_factory=list)


@dataclass
class _Sample:
    """One answer that is being made."""

    talk: Talk
    index: int
    reader: Reader
    tokens: int = 0


class Talk:
    """A request on its way; ``cancel`` from any thread."""

    def __init__(self, engine: Engine, ask: Ask, hear: Callable[[Piece], None]) -> None:
        self.ask, self.hear = ask, hear
        self.left = ask.samples  # samples that have not ended
        self._engine = engine

    def cancel(self) -> None:
        """Nothing more is wanted; its slots are free after the step that is going on."""
        self._engine.cancel(self)


class Engine:
    """The model of a directory behind a queue. ``load`` may be refused with FileNotFoundError or ValueError."""

    def __init__(self, directory: str | Path, *, slots: int = 16, device: str = "auto", dtype: str = "auto") -> None:
        device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        half = dtype == "bf16" or (dtype == "auto" and device.startswith("cuda"))
        self.directory, self.slots = Path(directory), slots
        self.tokenizer = ChatTokenizer.load(directory).today(date.today())
        self.spelling = Spelling(self.tokenizer)
        self.model = open_model(directory, dtype=torch.bfloat16 if half else torch.float32, device=device).eval()
        self.window = self.model.config.max_seq_len
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.ends = self.tokenizer.ends
        self._generator = Generator(self.model, slots=slots)
        self._generator.add([self.tokenizer.end_of_text_id], stop=(), max_new_tokens=1)
        self._generator.step()  # what is compiled or packed at first use is not the first client's to wait for
        self._samples: dict[int, _Sample] = {}
        self._talks: dict[Talk, list[int]] = {}
        self._inbox: queue.SimpleQueue[tuple[str, Talk | None]] = queue.SimpleQueue()
        self._pending = 0  # samples that were handed in and have not ended, queued ones included
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name=f"model {self.directory.name[:12]}", daemon=True)
        self._thread.start()

    @cached_property
    def grammars(self) -> Grammars:
        """What answers can be held to."""
        return Grammars(self.tokenizer, self.model.config.vocab_size, self.ends)

    @property
    def pending(self) -> int:
        """Answers that are being made or wait for it."""
        return self._pending

    @property
    def running(self) -> int:
        """Slots that are taken."""
        return self._generator.running

    @property
    def waiting(self) -> int:
        """Answers for which there is no slot yet."""
        return max(0, self._pending - self.running)

    def submit(self, ask: Ask, hear: Callable[[Piece], None]) -> Talk:
        """Put a request into the queue; ``hear`` gets its pieces on the model's thread."""
        talk = Talk(self, ask, hear)
        with self._lock:
            self._pending += ask.samples
        self._inbox.put(("add", talk))
        return talk

    def cancel(self, talk: Talk) -> None:
        """See :meth:`Talk.cancel`."""
        self._inbox.put(("cancel", talk))

    def close(self) -> None:
        """End the thread; what is still being said is given up."""
        self._inbox.put(("close", None))
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _work(self) -> None:
        while self._obey():
            try:
                tokens = self._generator.step()
            except Exception:
                log.exception("a step of %s failed; its %d answers end", self.directory, len(self._samples))
                self._give_up()
                continue
            for token in tokens:
                self._hear(token)

    def _obey(self) -> bool:
        """Take what came in; waits while there is nothing to do. False: it is over."""
        while True:
            try:
                what, talk = self._inbox.get(block=not self._generator.busy)
            except queue.Empty:
                return True
            if talk is None:
                self._give_up()
                return False
            if what == "add":
                self._add(talk)
            else:
                for number in self._talks.get(talk, []):
                    self._generator.cancel(number)
                    self._forget(number)

    def _add(self, talk: Talk) -> None:
        ask = talk.ask
        try:
            numbers = self._generator.add(
                ask.prompt,
                stop=() if ask.on_and_on else self.ends,
                max_new_tokens=ask.max_new_tokens,
                sampling=ask.sampling,
                samples=ask.samples,
                # one at least, which brings the token's own
                top_logprobs=0 if ask.top_logprobs is None else max(1, ask.top_logprobs),
                min_new_tokens=ask.least,
                bias=ask.bias,
                rules=[ask.rule.copy() for _ in range(ask.samples)] if ask.rule else (),
            )
        except Exception:
            log.exception("a request to %s could not be begun", self.directory)
            self._count(-ask.samples)
            for i in range(ask.samples):
                talk.hear(Piece(i, "", "error", 0))
            return
        self._talks[talk] = list(numbers)
        for i, number in enumerate(numbers):
            self._samples[number] = _Sample(talk, i, Reader(self.tokenizer, ask.stop, ask.least))

    def _hear(self, token: Token) -> None:
        sample = self._samples.get(token.id)
        if sample is None:  # cancelled in this very step
            return
        ended = token.finish == "stop"  # by the model's own token, which is not shown
        sample.tokens += 1
        text = "" if ended else sample.reader.push(token.token)
        finish = "stop" if sample.reader.stopped else token.finish
        if finish and not sample.reader.stopped:
            text += sample.reader.end()
        if sample.reader.stopped and not token.finish:
            self._generator.cancel(token.id)
        scored = [] if sample.talk.ask.top_logprobs is None or ended else [self._scored(token, sample.talk.ask)]
        if finish:
            self._forget(token.id)
        sample.talk.hear(Piece(sample.index, text, finish, sample.tokens, scored))

    def _scored(self, token: Token, ask: Ask) -> Scored:
        top = [(*self.spelling(other), value) for other, value in token.top[: ask.top_logprobs or 0]]
        return Scored(*self.spelling(token.token), dict(token.top)[token.token], top)

    def _forget(self, number: int) -> None:
        sample = self._samples.pop(number, None)
        if sample is None:
            return
        self._count(-1)
        sample.talk.left -= 1
        if not sample.talk.left:
            self._talks.pop(sample.talk, None)

    def _give_up(self) -> None:
        """Tell everyone that nothing more comes, and start with an empty generator."""
        for number, sample in list(self._samples.items()):
            self._forget(number)
            sample.talk.hear(Piece(sample.index, "", "error", sample.tokens))
        self._generator = Generator(self.model, slots=self.slots)

    def _count(self, change: int) -> None:
        with self._lock:
            self._pending += change
