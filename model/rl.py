"""Worker of the rl stage: ``python -m model.rl --spec FILE`` (see :mod:`model.training.trainer`)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor

from model.generation.rewarder import Rewarder
from model.generation.sampling import Sampling
from model.network.transformer import Transformer
from model.objectives.reinforce import VALUE, Policy, add_value_head
from model.rewards.functions import MODEL
from model.rewards.problem import read_problems
from model.running.files import replacing
from model.running.setup import Choices, Ranks
from model.specs.rl import RlSpec
from model.specs.shape import ModelConfig
from model.tokens.chat import ChatTokenizer
from model.tokens.rows import fingerprint, read_meta
from model.training.engine import slices
from model.training.loop import Data, Loop
from model.training.rl_loop import Problems, RlLoop
from model.training.trainer import initial_model, prepare, read_model_config, work
from model.training.trials import Judge, Trials
from model.training.tuner import Tuner


class RlTrainer(Tuner[RlSpec]):
    """Answers of the model itself, rewarded and learnt from."""

    SPEC = RlSpec
    LOOP = RlLoop

    def __init__(self, spec: RlSpec, ranks: Ranks) -> None:
        # rows and answers have ever new lengths: a compiled graph would be made again and again
        super().__init__(replace(spec, how=replace(spec.how, compile="off")), ranks)

    def read_data(self) -> Data:
        """The problems of both splits. Raises ValueError when the data is of the wrong kind, or answers do not fit the
        model."""
        spec = self.spec
        kind, config = read_meta(spec.data)["kind"], read_model_config(spec)
        if kind != spec.DATA:
            raise ValueError(f"{spec.data}: holds {kind} tokens, rl needs {spec.DATA}")
        if spec.max_prompt_length + spec.max_completion_length > config.max_seq_len:
            raise ValueError(
                f"{spec.max_prompt_length} tokens of prompt and {spec.max_completion_length} of answer are more than"
                f" the model reads ({config.max_seq_len}); lower rl.max_completion_length or rl.max_prompt_length"
            )
        train, val = (Problems(list(read_problems(Path(spec.data) / f"{s}.jsonl"))) for s in ("train", "val"))
        return Data(cast(Any, train), cast(Any, val))

    def adapt(self, model: Transformer, choices: Choices) -> None:
        """Adapters as for every tuning; with PPO a value head."""
        super().adapt(model, choices)
        if self.spec.algorithm == "ppo":
            add_value_head(model)

    def objective(self, model: Transformer, choices: Choices, data: Data) -> Policy:
        """The policy's loss."""
        return Policy(model, self.spec)

    def describe(self, loop: Loop, config: ModelConfig) -> None:
        """One line on what is about to happen."""
        spec, choices = self.spec, loop.choices
        assert isinstance(loop, RlLoop)
        self.ranks.say(
            f"rl: {config.parameters() / 1e6:.2f}M parameters, {len(loop.problems)} problems, {loop.plan.steps} steps"
            f" of {spec.algorithm}, rollouts of {spec.prompts} x {spec.num_generations} answers,"
            f" {self.ranks.world} rank(s) x {choices.micro_batch} rows, {choices.dtype}, {spec.how.engine}"
        )

    def before_first_step(self, loop: Loop, prints: dict[str, Any]) -> None:
        """The sampler, the initial model where the loss needs it, and which problems are neither too easy nor too
        hard."""
        assert isinstance(loop, RlLoop)
        spec = self.spec
        chat = ChatTokenizer.load(spec.tokenizer)
        model, renew = self._whole(loop)
        loop.trials = Trials(model, chat, spec, self.ranks, loop.meter.beat, self._judge(), renew)
        if spec.beta:
            loop.reference = loop.objective if spec.lora.rank else self._reference(loop.choices)
        if spec.filter_samples:
            self._filter(loop, prints)

    def _whole(self, loop: Loop) -> tuple[Transformer, Callable[[], None] | None]:
        """The model that answers: the one that trains or, where ranks hold shards of that, a copy that each makes whole
        before it is asked."""
        engine, how = loop.engine, self.spec.how
        shards = how.engine == "fsdp2" and self.ranks.world > 1
        if not shards and not (how.engine == "deepspeed" and how.zero_stage == 3):
            return engine.objective.lm, None
        model = initial_model(self.spec, read_model_config(self.spec))
        self.adapt(model, loop.choices)
        prepare(model, self.spec, loop.choices)
        model.to(device=self.ranks.device, dtype=model.compute_dtype).requires_grad_(False)
        held = dict(model.named_parameters())

        def renew() -> None:
            for group in engine.groups:
                for chosen in slices(group["shapes"]):
                    for i, values in zip(chosen, engine.whole(group, engine.local(group), chosen), strict=True):
                        held[group["names"][i]].copy_(values)

        return model, renew

    def _judge(self) -> Judge | None:
        """The reward model, where it is one of the rewards. Raises ValueError when it is wanted and not there."""
        if MODEL not in self.spec.rewards:
            return None
        if not self.spec.reward_model:
            raise ValueError(
                "reward model is wanted (rl.rewards) and there is none: give preferences in reward.sources"
            )
        rewarder = Rewarder.from_dir(self.spec.reward_model, device=self.ranks.device)
        return lambda problems, texts: rewarder.of_answers([problem["messages"] for problem in problems], texts)

    def fingerprints(self) -> dict[str, Any]:
        """As for every run, and the reward model's content."""
        judge = self.spec.reward_model
        return super().fingerprints() | {"judge": fingerprint(judge) if judge else None}

    def _reference(self, choices: Choices) -> Policy:
        """The initial model, frozen, as it computes here."""
        model = initial_model(self.spec, read_model_config(self.spec))
        prepare(model, self.spec, choices)
        model.requires_grad_(False)
        return Policy(model.to(device=self.ranks.device, dtype=model.compute_dtype), self.spec)

    def _filter(self, loop: RlLoop, prints: dict[str, Any]) -> None:
        """Leave out problems that the initial model solves too rarely or too often; measured once, kept by weights and
        data."""
        spec = self.spec
        facts = [prints["init"], prints["data"], spec.filter_samples, spec.temperature, spec.top_k, spec.top_p]
        facts += [spec.seed, spec.max_completion_length, loop.choices.dtype]
        name = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
        path = self.run / f"pass-rates-{name}.npy"
        if path.is_file():
            rates = np.load(path)
        else:
            sampling = Sampling(spec.temperature, spec.top_k, spec.top_p, seed=(spec.seed << 32) + (1 << 31))
            trials = loop.trials(loop.problems, spec.filter_samples, sampling)
            rates = np.array([sum(bool(t.right) for t in group) / len(group) for group in trials])
            if self.ranks.rank == 0:
                with replacing(path) as temporary, open(temporary, "wb") as handle:
                    np.save(handle, rates)
        good = (rates >= spec.min_pass_rate) & (rates <= spec.max_pass_rate)
        self.ranks.say(
            f"{int(good.sum())} of {len(rates)} problems are solved in {spec.min_pass_rate:.0%} to"
            f" {spec.max_pass_rate:.0%} of {spec.filter_samples} answers and trained on"
            f" ({int((rates < spec.min_pass_rate).sum())} are too hard,"
            f" {int((rates > spec.max_pass_rate).sum())} too easy)"
        )
        if not good.any():
            raise ValueError(
                "no problem is solved as often as rl.min_pass_rate and rl.max_pass_rate want; widen them, choose other"
                " problems (rl.levels, rl.sources), or train sft longer"
            )
        loop.use([problem for problem, stays in zip(loop.problems, good, strict=True) if stays])

    def merged(self, model: Transformer, config: ModelConfig, state: dict[str, Tensor]) -> Transformer:
        """The model without its value head."""
        state.pop(VALUE, None)
        if hasattr(model, VALUE):
            delattr(model, VALUE)
        return super().merged(model, config, state)

    def finish(self, loop: Loop, config: ModelConfig, result: dict[str, Any]) -> None:
        """As for every run, with what was measured before."""
        assert isinstance(loop, RlLoop)
        found = {f"before_{name}": value for name, value in loop.before.items()}
        super().finish(loop, config, result | found | {"zero_variance_groups": loop.dropped})


if __name__ == "__main__":
    work(RlTrainer)
