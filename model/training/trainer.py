"""A training run in one process: everything around the loop. Each stage's worker (``python -m model.pretrain --spec
FILE``, ``model.sft``, ``model.dpo``) is a :class:`Trainer` of its own, alone or as a rank of torchrun or DeepSpeed.

It reads a token dataset and a tokenizer directory, writes ``metrics.jsonl``, checkpoints and ``result.json`` below the
spec's ``out/_run`` and the model's files into ``out``. Run again with the same spec it goes on from the newest whole
checkpoint. Exit code 143 after SIGTERM (checkpoint written), 1 with a traceback after an error.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import os
import sys
import traceback
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from model.network.fp8 import check_fp8, use_fp8
from model.network.moe import compile_around
from model.network.transformer import Transformer, initialize
from model.network.weights import load_model, read_config, save_model, widen
from model.objectives.base import Objective
from model.objectives.next_token import NextToken
from model.running.checkpoint import Checkpoints
from model.running.files import write_json
from model.running.machine import peak_flops
from model.running.meter import Meter
from model.running.setup import Choices, Ranks, choose, warm_marker
from model.specs.base import load
from model.specs.shape import ModelConfig
from model.specs.train import TrainSpec
from model.tokens.rows import Packed, Split, Windows, fingerprint, read_meta, read_split
from model.tokens.vocabulary import check_tokens
from model.training.engine import make_engine
from model.training.loop import Data, Loop, Plan

Spec = TypeVar("Spec", bound=TrainSpec)


class Trainer(Generic[Spec]):
    """Pretraining as it is; subclasses say what their objective reads, trains and leaves differently."""

    SPEC: type[TrainSpec] = TrainSpec
    LOOP: type[Loop] = Loop

    def __init__(self, spec: Spec, ranks: Ranks) -> None:
        self.spec, self.ranks = spec, ranks
        self.run = Path(spec.out) / "_run"

    def train(self) -> dict[str, Any]:
        """Train in this process group and write the model; the metrics of ``result.json``."""
        spec, ranks = self.spec, self.ranks
        self.run.mkdir(parents=True, exist_ok=True)
        # data, shape, and how it is computed here
        data, config = self.read_data(), read_model_config(spec)
        plan = Plan(spec, data.train.rows)
        choices = choose(spec, config, ranks, plan.steps * plan.batch * spec.seq_len, self.run)
        # model and objective
        model = initial_model(spec, config)
        self.adapt(model, choices)
        prepare(model, spec, choices)
        model.to(ranks.device)
        objective = self.objective(model, choices, data)
        if choices.compile:
            objective.gradient = torch.compile(objective.compiled_gradient, dynamic=False)
        # engine, meter, checkpoints
        engine = make_engine(objective, spec, ranks.device, ranks.rank, ranks.world)
        prints = self.fingerprints()
        peak = peak_flops(ranks.device.type, model.compute_dtype) * ranks.world
        meter = Meter(self.run, ranks.rank, ranks.device, objective.flops_per_token(), peak)
        folder = self.run / "checkpoints"
        checkpoints = Checkpoints(folder, spec.how.keep_checkpoints, prints, ranks.rank, ranks.world)
        # train
        loop = self.LOOP(spec, engine, data, ranks, choices, checkpoints, meter)
        self.describe(loop, config)
        self.before_first_step(loop, prints)
        gc.collect()
        gc.freeze()  # what is there now stays; full collections would stall steps
        result = loop.run()
        self.finish(loop, config, result)
        return result

    def read_data(self) -> Data:
        """The rows of both splits. Raises ValueError when the dataset is of the wrong kind."""
        spec = self.spec
        kind = read_meta(spec.data)["kind"]
        if kind != spec.DATA:
            raise ValueError(f"{spec.data}: holds {kind} tokens, {spec.NAME} needs {spec.DATA}")
        train, val = (read_split(spec.data, name) for name in ("train", "val"))
        return Data(self.rows(train, whole=False), self.rows(val, whole=True))

    def rows(self, split: Split, whole: bool) -> Windows | Packed:
        """A split as rows; ``whole`` (validation) keeps the shorter last one."""
        return Windows(split, self.spec.seq_len, tail=whole)

    def adapt(self, model: Transformer, choices: Choices) -> None:
        """Change how the matrices inside blocks are computed, when the spec says so."""
        if self.spec.how.fp8:
            check_fp8(self.ranks.device)
            use_fp8(model)

    def objective(self, model: Transformer, choices: Choices, data: Data) -> Objective:
        """What is trained for."""
        return NextToken(model, self.spec)

    def fingerprints(self) -> dict[str, Any]:
        """What a checkpoint must agree with: contents of data, tokenizer and initial model, and the spec's deciding
        fields."""
        spec = self.spec
        return {
            "data": fingerprint(spec.data),
            "tokenizer": fingerprint(spec.tokenizer),
            "init": fingerprint(spec.init) if spec.init else None,
            "spec": json.dumps(spec.identity(), sort_keys=True),
        }

    def before_first_step(self, loop: Loop, prints: dict[str, Any]) -> None:
        """What has to be known before training goes on."""

    def describe(self, loop: Loop, config: ModelConfig) -> None:
        """One line on what is about to happen."""
        describe(loop, config)

    def merged(self, model: Transformer, config: ModelConfig, state: dict[str, Tensor]) -> Transformer:
        """The model to publish, and in ``state`` what :func:`save_model` writes instead of its weights."""
        return model

    def save(self, model: Transformer, state: dict[str, Tensor]) -> None:
        """Write the model directory; ``state`` holds the weights where ``model`` does not."""
        save_model(model, self.spec.out, self.spec.tokenizer, state)

    def finish(self, loop: Loop, config: ModelConfig, result: dict[str, Any]) -> None:
        """Write the model directory, then ``result.json``: whoever sees that file has a whole model."""
        spec, choices = self.spec, loop.choices
        # all ranks give their parts; only rank 0 has the whole model
        state = loop.engine.weights()
        loop.checkpoints.wait()
        if self.ranks.rank == 0:
            model = self.merged(loop.engine.objective.lm, config, state)
            self.save(model, state)
            if choices.compile and (marker := warm_marker(spec, config, choices.dtype, choices.micro_batch)):
                marker.parent.mkdir(parents=True, exist_ok=True)
                marker.touch()
            facts = {
                "parameters": config.parameters(),
                "choices": {"dtype": choices.dtype, "compile": choices.compile},
            }
            write_json(self.run / "result.json", result | facts)
        self.ranks.barrier()


def prepare(model: Transformer, spec: TrainSpec, choices: Choices) -> None:
    """Make ``model`` compute as chosen. Blocks are compiled one by one: they share one graph, so depth costs no compile
    time."""
    model.compute_dtype = getattr(torch, choices.dtype)
    model.attention = choices.attention
    model.checkpointing = spec.how.checkpointing
    model.compiled = choices.compile
    if choices.compile:
        compile_around()
        torch._dynamo.config.cache_size_limit = max(64, torch._dynamo.config.cache_size_limit)
        for block in model.model.layers:
            block.compile(dynamic=False)


def read_model_config(spec: TrainSpec) -> ModelConfig:
    """The model's shape, from the spec or the initial model, with the tokenizer's vocabulary size."""
    vocabulary = int(read_meta(spec.data)["vocab_size"])
    if spec.init is not None:
        config = read_config(spec.init)
        config = replace(config, vocab_size=max(config.vocab_size, vocabulary))
        check_tokens(Path(spec.init) / "tokenizer.json", Path(spec.tokenizer) / "tokenizer.json")
    else:
        assert spec.model is not None
        config = replace(spec.model, vocab_size=spec.model.vocab_size or vocabulary)
    if config.vocab_size < vocabulary:
        raise ValueError(f"vocab_size {config.vocab_size} is smaller than the tokenizer's {vocabulary} ({spec.data})")
    return config


def initial_model(spec: TrainSpec, config: ModelConfig) -> Transformer:
    """The model before its first step: new weights from the seed, or the initial model's, with rows for tokens that it
    has not met."""
    if spec.init is not None:
        model = load_model(spec.init)
        known = model.config.vocab_size == config.vocab_size
        return model if known else widen(model, config.vocab_size, Path(spec.tokenizer))
    model = Transformer(config)
    initialize(model, spec.seed)
    return model


def describe(loop: Loop, config: ModelConfig) -> None:
    """One line on what is about to happen."""
    spec, plan, choices, train = loop.spec, loop.plan, loop.choices, loop.data.train
    cut = f", {train.truncated} sequences cut to fit" if isinstance(train, Packed) and train.truncated else ""
    fill = train.filled.mean() / spec.seq_len
    how = (
        f"{choices.dtype}{' and fp8' if spec.how.fp8 else ''}, {choices.attention} attention,"
        f" {'compiled' if choices.compile else 'eager'}, {spec.how.engine}"
    )
    loop.ranks.say(
        f"{spec.NAME}: {config.parameters() / 1e6:.2f}M parameters, {train.rows} rows of {spec.seq_len}"
        f" ({fill:.1%} filled{cut}), {plan.steps} steps of {plan.batch} rows, {loop.ranks.world} rank(s) x"
        f" {choices.micro_batch} rows, {how}"
    )


def main(trainer: type[Trainer[Any]], arguments: list[str] | None = None) -> None:
    """Train what the spec on the command line says."""
    name = trainer.SPEC.NAME
    parser = argparse.ArgumentParser(prog=f"python -m model.{name}", description=f"Worker of the {name} stage.")
    parser.add_argument("--spec", required=True, help=f"JSON file of a {trainer.SPEC.__name__}")
    options, _ = parser.parse_known_args(arguments)  # the DeepSpeed launcher may add its own
    spec = load(trainer.SPEC, options.spec)
    ranks = Ranks(spec.how)
    trainer(spec, ranks).train()
    ranks.close()


def work(trainer: type[Trainer[Any]]) -> None:
    """:func:`main`, then leave at once: everything is written, and gloo's threads can abort the interpreter's own way
    out."""
    faulthandler.enable()
    # names that DeepSpeed and older torch still use
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    code: Any = 0
    try:
        main(trainer)
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)
