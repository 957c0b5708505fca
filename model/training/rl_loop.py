"""The loop of reinforcement learning: batches come from rollouts of the weights that train.

A rollout is one or more updates. Checkpoints are made between rollouts only, and a rollout follows from the weights,
the position among the problems and the seed alone: a run that was killed makes the same rollout again and ends with the
same bits.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from model.generation.judge import bootstrap_mean, wilson
from model.generation.sampling import GREEDY, Sampling
from model.objectives.policy import advantages, divergence, gae, varied, whitened
from model.objectives.reinforce import Known, Policy, PolicyBatch
from model.rewards.functions import pass_at
from model.rewards.problem import Problem
from model.running.files import write_text
from model.specs.rl import RlSpec
from model.tokens.rows import Order, share
from model.training.loop import Loop
from model.training.rollout import Rollout
from model.training.trials import Trial, Trials, rewarded

PASS_AT = (1, 4, 8)
SHOWN = 2
"""Problems of each rollout whose answers are kept to be read."""
COLLAPSED = 0.1
"""Share of the first entropy below which it is noted."""


class Pointless(RuntimeError):
    """Every answer earns the same: nothing can be learnt from comparing them."""


@dataclass
class Problems:
    """The problems of a split, in the place that rows have for other objectives."""

    items: list[Problem]

    @property
    def rows(self) -> int:
        return len(self.items)


class RlLoop(Loop):
    """Trains until the plan's steps are done; ``trials`` and ``reference`` are put in before it runs."""

    spec: RlSpec
    objective: Policy

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.problems = cast(Problems, self.data.train).items
        self.heldout = cast(Problems, self.data.val).items
        self.use(self.problems)
        self.trials: Trials
        self.reference: Policy | None = None
        self.rollout = empty(self.spec)
        self.seen: dict[str, float] = {}
        self.flat = self.rollouts = self.dropped = 0
        self.before: dict[str, float] = {}
        self.entropy = math.nan

    def use(self, problems: list[Problem]) -> None:
        """Train on these problems; steps follow from how many there are."""
        spec = self.spec
        self.problems, self.order = problems, Order(len(problems), spec.seed)
        rollouts = math.ceil(len(problems) * spec.epochs / spec.prompts)
        wanted = math.ceil(spec.steps / spec.updates) if spec.steps else rollouts
        self.plan.steps = wanted * spec.updates

    # where batches come from

    def draw(self) -> tuple[NDArray, float]:
        """The next mini-batch of the current rollout, after a new one where that is used up."""
        part = self.step % self.spec.updates
        if part == 0:
            began = time.perf_counter()
            self._roll()
            self.seen["rollout_seconds"] = time.perf_counter() - began
            self.meter.data(self.seen["rollout_seconds"])
        rows = self.rollout.parts[part % self.spec.num_mini_batches]
        return rows, float(len(rows) > 0)

    def _roll(self) -> None:
        """Try the next problems, and keep the answers that teach something with what is known of their tokens."""
        spec, number = self.spec, self.step // self.spec.updates
        # problems of this rollout, and answers to them: num_generations each
        numbers = self.order(self.position, self.position + spec.prompts)
        self.position += spec.prompts
        chosen = [self.problems[int(n)] for n in numbers]
        sampling = Sampling(spec.temperature, spec.top_k, spec.top_p, seed=(spec.seed << 32) + number + 1)
        groups = self.trials(chosen, spec.num_generations, sampling)
        rewards = rewarded(groups)
        self._book(chosen, groups, rewards)
        if spec.algorithm == "ppo":
            self._keep([trial for group in groups for trial in group], None, number)
            return
        # a group whose rewards are all alike has no advantage, and is left out
        good = varied(rewards)
        kept = [trial for group, stays in zip(groups, good.tolist(), strict=True) if stays for trial in group]
        self._keep(kept, advantages(rewards, spec.recipe.scale)[good].flatten(), number)

    def _book(self, problems: Sequence[Problem], groups: list[list[Trial]], rewards: torch.Tensor) -> None:
        """Count a rollout, keep some of its answers to be read, and fail when no reward has ever differed."""
        self.rollouts += 1
        differs = varied(rewards) if self.spec.algorithm != "ppo" else varied(rewards.reshape(1, -1))
        # flat rollouts in a row from the first one on; prompts without spread
        self.flat += not bool(differs.any()) and self.flat == self.rollouts - 1
        self.dropped += int((~varied(rewards)).sum()) if self.spec.algorithm != "ppo" else 0
        self.seen = told(groups, rewards)
        if self.ranks.rank == 0:
            rows = [
                {
                    "step": self.step, "task": problem["task"], "question": problem["messages"][-1]["content"],
                    "wanted": problem["answer"], "said": trial.text, "reward": trial.reward, **trial.parts,
                }
                for problem, group in zip(problems[:SHOWN], groups, strict=False)
                for trial in (max(group, key=lambda t: t.reward), min(group, key=lambda t: t.reward))
            ]  # fmt: skip
            with open(self.samples, "a", encoding="utf-8") as out:
                out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if self.flat == self.rollouts == self.spec.patience:
            raise Pointless(pointless(self.spec, float(rewards.mean()), self.rollouts))

    def _keep(self, kept: list[Trial], advantage: torch.Tensor | None, number: int) -> None:
        """Make ``kept`` the current rollout; without ``advantage`` [answers] it is estimated from values (ppo)."""
        spec = self.spec
        answers = [trial.answer for trial in kept]
        learnt = np.array([a.ended or not spec.mask_truncated_completions for a in answers], bool)
        self.rollout = Rollout(
            answers,
            spec.seq_len,
            average=spec.recipe.average,
            longest=spec.max_completion_length,
            learnt=learnt,
            parts=spec.num_mini_batches,
            seed=(spec.seed, number),
        )
        self.data = replace(self.data, train=cast(Any, self.rollout))
        spread = np.zeros(len(answers)) if advantage is None else advantage.numpy()
        known = self.objective.known = Known(self.rollout.sampled, self.rollout.spread(spread))
        if not answers:
            return
        # log-probabilities under the weights of the rollout, and under the reference
        ppo = advantage is None
        if spec.updates > 1 or ppo:
            known.old, known.value = self._scores(self.objective, self.engine)
        if self.reference is not None:
            known.reference, _ = self._scores(self.reference, self.reference, initial=True)
        if ppo:
            self._estimate(known, np.array([trial.reward for trial in kept], np.float32))

    def _scores(self, objective: Policy, compute: Any, initial: bool = False) -> tuple[NDArray, NDArray]:
        """Log-probability and value of every token [tokens] as ``compute`` gives them (``initial``: without adapters),
        each rank a share. Collective."""
        # [log-probability, value] of every token; each rank fills in its share
        found = torch.zeros(2, int(self.rollout.begin[-1]), dtype=torch.float64)
        rows = np.arange(self.rollout.rows)
        objective.known = self.objective.known
        for part in share(rows, self.ranks.rank, self.ranks.world, self.choices.micro_batch):
            self.meter.beat()
            batch = objective.batch(self.rollout.read(part), 1.0, 256, "train").to(self.engine.device)
            assert isinstance(batch, PolicyBatch)
            with torch.no_grad(), objective.adapted(not initial):
                values = torch.stack(compute(batch, scores=True)).double().cpu()
            there = (batch.weight > 0).cpu()
            found[:, batch.token.cpu()[there]] = values[:, there]
        logp, value = self.ranks.total(found).float().numpy()
        return logp, value

    def _estimate(self, known: Known, rewards: NDArray) -> None:
        """PPO's advantages and returns: the reward comes with an answer's last token, divergence with each."""
        spec, begin, lengths = self.spec, self.rollout.begin, self.rollout.lengths
        inside = np.arange(lengths.max())[None, :] < lengths[:, None]  # [answers, T]
        earned, values = np.zeros(inside.shape, np.float32), np.zeros(inside.shape, np.float32)
        if spec.beta:
            apart = divergence(torch.tensor(known.old), torch.tensor(known.reference), spec.kl_estimator)
            earned[inside] = -spec.beta * apart.numpy()
        # the reward comes with the last token of an answer
        earned[np.arange(len(lengths)), lengths - 1] += rewards
        values[inside] = known.value
        assert begin[-1] == inside.sum()
        kind = torch.from_numpy(inside)
        found = gae(
            torch.from_numpy(earned), torch.from_numpy(values), torch.from_numpy(lengths), spec.ppo.gamma, spec.ppo.lam
        )
        known.returns = (found + torch.from_numpy(values))[kind].numpy()
        known.advantage = (whitened(found, kind) if spec.whiten_advantages else found)[kind].numpy()

    # what is logged and kept

    def noted(self, values: dict[str, float]) -> dict[str, float]:
        """The rollout's numbers; notes an entropy that collapses."""
        entropy = values["entropy"]
        if math.isnan(self.entropy) and entropy:
            self.entropy = entropy
        elif 0 < entropy < COLLAPSED * self.entropy:
            self.ranks.say(
                f"step {self.step}: entropy fell from {self.entropy:.3f} to {entropy:.3f} nats a token: answers are"
                " becoming all the same (lower optim.lr, raise rl.beta, or stop earlier)"
            )
            self.entropy = math.inf  # said once
        return self.seen

    def _means(self, prefix: str, sums: torch.Tensor) -> dict[str, float]:
        """Means by token; the loss is the batch's own, whose weights are in it."""
        return {**super()._means(prefix, sums), f"{prefix}loss": float(sums[0])}

    def due(self) -> bool:
        """Whether a checkpoint is due, the last one being so many steps, or a minute, ago."""
        every = self.spec.how.checkpoint_every
        return self.step - max(self.saved_step, 0) >= every if every else super().due()

    def _housekeeping(self, done: bool) -> None:
        if self.step % self.spec.updates:
            self.meter.pause()  # a rollout is begun: its updates come first
        else:
            super()._housekeeping(done)

    def save(self, val_loss: float | None = None) -> None:
        """Write a checkpoint, unless a rollout is begun."""
        if self.step % self.spec.updates == 0:
            super().save(val_loss)

    def state(self) -> dict[str, Any]:
        """Counts, and what was measured before the first step."""
        return {"rl": {name: getattr(self, name) for name in ("flat", "rollouts", "dropped", "before")}}

    def restore(self, state: dict[str, Any]) -> None:
        """Take what a checkpoint kept."""
        for name, value in state["rl"].items():
            setattr(self, name, value)

    def forget(self, step: int) -> None:
        """Drop what an earlier attempt told of steps after ``step``, samples too."""
        super().forget(step)
        if self.ranks.rank == 0 and self.samples.is_file():
            rows = self.samples.read_text(encoding="utf-8").splitlines()
            write_text(self.samples, "".join(row + "\n" for row in rows if whole(row, step)))

    @property
    def samples(self) -> Path:
        """The file of answers to be read."""
        return Path(self.spec.out) / "_run" / "samples.jsonl"

    # held-out problems

    def validate(self) -> dict[str, float]:
        """Held-out problems: the share that greedy answers solve, and before and after training pass@k of sampled
        ones."""
        spec = self.spec
        problems = self.heldout[: spec.eval_problems] if spec.eval_problems else self.heldout
        # greedy answers at every validation
        greedy = self.trials(problems, 1, GREEDY)
        first, last = self.step == 0, self.step == self.plan.steps
        found = told_heldout(problems, greedy)
        # sampled ones before and after training only: they cost eval_samples times as much
        if first or last:
            sampling = Sampling(spec.temperature, spec.top_k, spec.top_p, seed=(spec.seed << 32))
            samples = self.trials(problems, spec.eval_samples, sampling)
            found |= told_samples(samples)
            self._show(problems, greedy, "before" if first else "after")
        if first:
            self.before = found
        return {f"val_{name}": value for name, value in found.items()}

    def _show(self, problems: Sequence[Problem], trials: list[list[Trial]], when: str) -> None:
        """Write the greedy answers to held-out problems, to be read."""
        if self.ranks.rank:
            return
        rows = [
            {
                "task": problem["task"], "lang": problem["lang"], "question": problem["messages"][-1]["content"],
                "wanted": problem["answer"], "said": group[0].text, "right": group[0].right, "reward": group[0].reward,
            }
            for problem, group in zip(problems, trials, strict=True)
        ]  # fmt: skip
        path = Path(self.spec.out) / "_run" / f"heldout-{when}.jsonl"
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def empty(spec: RlSpec) -> Rollout:
    """A rollout of no answers."""
    return Rollout([], spec.seq_len, average=spec.recipe.average, longest=1, parts=spec.num_mini_batches)


def whole(line: str, step: int) -> bool:
    """Whether a line of samples is one, of a step before ``step``."""
    try:
        return json.loads(line)["step"] < step
    except (ValueError, KeyError):
        return False


def told(groups: list[list[Trial]], rewards: torch.Tensor) -> dict[str, float]:
    """A rollout in numbers."""
    trials = [trial for group in groups for trial in group]
    lengths = [len(trial.answer.tokens) for trial in trials]
    known = [trial.right for trial in trials if trial.right is not None]
    parts = {f"reward_{name}": sum(t.parts[name] for t in trials) / len(trials) for name in trials[0].parts}
    return {
        "reward": float(rewards.mean()),
        "reward_std": float(rewards.std(1).mean()) if rewards.shape[1] > 1 else 0.0,
        **parts,
        "completion_length": sum(lengths) / len(lengths),
        "truncated": sum(not trial.answer.ended for trial in trials) / len(trials),
        "zero_variance": float((~varied(rewards)).float().mean()),
        **({"pass_1": sum(known) / len(known)} if known else {}),
    }


def told_heldout(problems: Sequence[Problem], greedy: list[list[Trial]]) -> dict[str, float]:
    """Greedy answers in numbers: share solved with its interval, in all and by task; ``loss`` is what is not."""
    rows = [(problem["task"], group[0]) for problem, group in zip(problems, greedy, strict=True)]
    found = {"reward": sum(trial.reward for _, trial in rows) / len(rows)}
    known = [(task, trial.right) for task, trial in rows if trial.right is not None]
    if not known:
        return {**found, "loss": -found["reward"]}
    right = sum(bool(one) for _, one in known)
    low, high = wilson(right, len(known))
    found |= {"exact": right / len(known), "exact_low": low, "exact_high": high, "loss": 1 - right / len(known)}
    for name in sorted({task for task, _ in known}):
        own = [bool(one) for task, one in known if task == name]
        found[f"exact_{name}"] = sum(own) / len(own)
    return found


def told_samples(samples: list[list[Trial]]) -> dict[str, float]:
    """pass@k of several answers to each problem, as far as there are enough of them; pass@1 with its interval over the
    problems."""
    known = [[bool(t.right) for t in group] for group in samples if group[0].right is not None]
    size = len(samples[0])
    low, high = bootstrap_mean([sum(group) / size for group in known], seed=0)
    bounds = {"pass_1_low": low, "pass_1_high": high} if known else {}
    return bounds | {
        f"pass_{k}": sum(pass_at(k, sum(group), size) for group in known) / len(known)
        for k in PASS_AT
        if known and k <= size
    }


def pointless(spec: RlSpec, reward: float, rollouts: int) -> str:
    """Why nothing can be learnt, and what to change."""
    what = "answers of one prompt all earn" if spec.algorithm != "ppo" else "all answers earn"
    return (
        f"in the first {rollouts} rollouts {what} the same (reward {reward:.3g} on average): where all are wrong the"
        " model is too weak or the reward too strict, where all are right there is nothing left to learn. Choose easier"
        " or harder problems (rl.levels, rl.sources), train sft longer, add a reward that some answers earn"
        f" (rl.rewards), try more answers (rl.num_generations, now {spec.num_generations}) or sample more widely"
        f" (rl.temperature, now {spec.temperature}); the answers are in _run/samples.jsonl"
    )
