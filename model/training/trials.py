"""Answers to problems, tried out and rewarded, each rank its share, in the order of the problems."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from model.generation.generator import Completion, Generator
from model.generation.sampling import Sampling
from model.generation.slots import fitting
from model.network.transformer import Transformer
from model.rewards.functions import MODEL, Said, exact, gym, keywords, rewards, total
from model.rewards.problem import Problem
from model.running.setup import Ranks
from model.specs.rl import RlSpec
from model.tokens.chat import ChatTokenizer
from model.training.rollout import Answer

SLOTS = {"cpu": 64, "cuda": 512}
"""Answers that grow side by side, where they fit."""
KEPT = 0.05
"""Share of a GPU's free memory that keys and values may hold while weights are trained; so graphs are recorded once."""
Judge = Callable[[Sequence[Problem], Sequence[str]], list[float]]
"""A reward model: what it thinks of the answer to each problem."""


@dataclass(frozen=True)
class Trial:
    """An answer and what it earned: its ``text``, each reward in ``parts`` and their weighted sum ``reward``; whether
    it is ``right`` (None where that is not known)."""

    answer: Answer
    text: str
    parts: dict[str, float]
    reward: float
    right: bool | None


class Trials:
    """Tries problems on ``model``, whose weights are used as they are at each call, after ``renew``. Collective."""

    def __init__(
        self,
        model: Transformer,
        chat: ChatTokenizer,
        spec: RlSpec,
        ranks: Ranks,
        beat: Callable[[], None],
        judge: Judge | None,
        renew: Callable[[], None] | None = None,
    ) -> None:
        self.model, self.chat, self.spec, self.ranks, self.beat, self.judge = model, chat, spec, ranks, beat, judge
        self.renew = renew
        self.stop = tuple(sorted(chat.ends))
        self._kept: Generator | None = None

    def __call__(self, problems: Sequence[Problem], samples: int, sampling: Sampling) -> list[list[Trial]]:
        """``samples`` trials of each problem; what a trial says follows from its problem, its number and the seed."""
        rank, world = self.ranks.rank, self.ranks.world
        if self.renew is not None:
            self.renew()
        mine = self._try(problems[rank::world], samples, sampling)
        if world == 1:
            return mine
        parts: list[Any] = [None] * world
        dist.all_gather_object(parts, mine)
        return [parts[i % world][i // world] for i in range(len(problems))]

    def _try(self, problems: Sequence[Problem], samples: int, sampling: Sampling) -> list[list[Trial]]:
        if not problems:
            return []
        prompts = [self.chat.prompt(problem["messages"]) for problem in problems]
        found = self._complete(prompts, samples, sampling)
        flat = [
            (problem, prompt, one) for problem, prompt, own in zip(problems, prompts, found, strict=True) for one in own
        ]
        texts = [self.chat.decode(one.tokens, skip_special=False) for _, _, one in flat]
        thinks: list[float] = [0.0] * len(flat)
        if self.judge is not None and MODEL in self.spec.rewards:
            thinks = self.judge([problem for problem, _, _ in flat], texts)
            if not all(map(math.isfinite, thinks)):
                raise ValueError(
                    f"the reward model's scores are not finite ({self.spec.reward_model}): its weights are damaged or"
                    " diverged; train it again (reward.optim.lr)"
                )
        trials = [self._trial(*row, text, score) for row, text, score in zip(flat, texts, thinks, strict=True)]
        return [trials[i : i + samples] for i in range(0, len(trials), samples)]

    def _complete(self, prompts: Sequence[list[int]], samples: int, sampling: Sampling) -> list[list[Completion]]:
        """As :func:`model.generation.generator.complete`, with a sign of life at each step."""
        longest = self.spec.max_completion_length
        generator = self._generator(len(prompts) * samples, max(map(len, prompts)) + longest)
        ids = [
            generator.add(prompt, stop=self.stop, max_new_tokens=longest, sampling=sampling, samples=samples)
            for prompt in prompts
        ]
        answers = {id: Completion() for own in ids for id in own}
        while generator.busy:
            for token in generator.step():
                answer = answers[token.id]
                answer.finish = token.finish
                if token.finish == "stop":
                    answer.stop = token.token, token.logprob
                else:
                    answer.tokens.append(token.token)
                    answer.logprobs.append(token.logprob)
            self.beat()
        return [[answers[id] for id in own] for own in ids]

    def _generator(self, answers: int, length: int) -> Generator:
        """One for so many answers of ``length`` tokens with their prompts, on today's weights."""
        most = min(SLOTS.get(self.ranks.device.type, 64), answers)
        if self._kept is not None and self._kept.slots >= most:
            self._kept.refresh()
            return self._kept
        self._kept = None
        made = Generator(self.model, slots=fitting(self.model, length, most))
        if self.ranks.device.type == "cuda" and fitting(self.model, length, most, KEPT) == made.slots:
            self._kept = made
        return made

    def _trial(self, problem: Problem, prompt: list[int], one: Completion, text: str, score: float) -> Trial:
        end = [one.stop] if one.stop else []
        tokens = [*one.tokens, *(token for token, _ in end)]
        answer = Answer(prompt, tokens, [*one.logprobs, *(lp for _, lp in end)], bool(end))
        said = Said(text, len(tokens), bool(end), self.spec.max_completion_length, self.spec.length_limit)
        parts = rewards(problem, said, self.spec.rewards)
        if MODEL in self.spec.rewards:
            parts[MODEL] = score
        return Trial(answer, text, parts, total(parts, self.spec.rewards), is_right(problem, said))


def is_right(problem: Problem, said: Said) -> bool | None:
    """Whether an answer solves its problem; None where nothing tells."""
    if "gym" in problem:
        return gym(problem, said) >= 1
    if problem["answer"]:
        return exact(problem, said) == 1
    return keywords(problem, said) == 1 if problem.get("keywords") else None


def rewarded(trials: Sequence[Sequence[Trial]]) -> torch.Tensor:
    """The rewards [problems, samples] fp32."""
    return torch.tensor([[trial.reward for trial in group] for group in trials], dtype=torch.float32)
