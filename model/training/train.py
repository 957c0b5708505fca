"""Training worker: ``python -m model.training.train --spec RUN/spec.json``, alone or as a rank of torchrun or DeepSpeed.

Reads a token dataset and a tokenizer directory, writes ``metrics.jsonl``, checkpoints and ``result.json`` below the
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
from typing import Any

import torch

from model.network.config import ModelConfig, TrainSpec, load_spec
from model.network.fp8 import check_fp8, use_fp8
from model.network.lora import add_lora, merge, save_adapter, shrink_frozen
from model.network.transformer import Transformer, initialize
from model.network.weights import load_model, read_config, save_model, widen
from model.running.checkpoint import Checkpoints
from model.running.files import write_json
from model.running.machine import peak_flops
from model.running.meter import Meter
from model.tokens.chat import check_tokens
from model.tokens.rows import Packed, Windows, fingerprint, read_meta, read_split
from model.training import loss
from model.training.engine import make_engine
from model.training.loop import Data, Loop, Plan
from model.training.objective import Distill, NextToken, Objective, Preference
from model.training.setup import Choices, Ranks, choose, prepare, warm_marker


def main(arguments: list[str] | None = None) -> None:
    """Train what the spec says."""
    parser = argparse.ArgumentParser(prog="python -m model.training.train", description=__doc__.splitlines()[0])
    parser.add_argument("--spec", required=True, help="JSON file of a TrainSpec")
    options, _ = parser.parse_known_args(arguments)  # the DeepSpeed launcher may add its own
    spec = load_spec(options.spec)
    ranks = Ranks(spec)
    train(spec, ranks)
    ranks.close()


def train(spec: TrainSpec, ranks: Ranks) -> dict[str, Any]:
    """Train in this process group and write the model; the metrics of ``result.json``."""
    run = Path(spec.out) / "_run"
    run.mkdir(parents=True, exist_ok=True)
    data, config = read_data(spec), read_model_config(spec)
    plan = Plan(spec, data.train.rows)
    choices = choose(spec, config, ranks, plan.steps * plan.batch * spec.seq_len, run)
    model = fresh_model(spec, config)
    adapt(model, spec, choices, ranks)
    prepare(model, spec, choices)
    model.to(ranks.device)
    objective = make_objective(model, spec, choices, ranks.device)
    engine = make_engine(objective, spec, ranks.device, ranks.rank, ranks.world)
    prints = fingerprints(spec)
    peak = peak_flops(ranks.device.type, model.compute_dtype) * ranks.world
    meter = Meter(run, ranks.rank, ranks.device, flops(objective), peak)
    checkpoints = Checkpoints(run / "checkpoints", spec.keep_checkpoints, prints, ranks.rank, ranks.world)
    loop = Loop(spec, engine, data, ranks, choices, checkpoints, meter)
    describe(loop, config)
    loop.reference(run, f"{prints['init']} {prints['data']}")
    gc.collect()
    gc.freeze()  # what is there now stays; full collections would stall steps
    result = loop.run()
    finish(loop, config, result, run)
    return result


def adapt(model: Transformer, spec: TrainSpec, choices: Choices, ranks: Ranks) -> None:
    """Change how the matrices inside blocks are computed, when the spec says so: fp8, or frozen with adapters."""
    if spec.fp8:
        check_fp8(ranks.device)
    if spec.fp8 and spec.lora.rank:
        ranks.say("fp8 is left out with LoRA")
    elif spec.fp8:
        use_fp8(model)
    if spec.lora.rank:
        count = add_lora(model, spec.lora, spec.seed)
        if spec.engine in ("plain", "ddp"):  # FSDP2 and DeepSpeed want one dtype for all
            shrink_frozen(model, getattr(torch, choices.dtype))
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        ranks.say(f"LoRA of rank {spec.lora.rank} on {count} matrices: {trained / 1e6:.2f}M parameters are trained")


def make_objective(model: Transformer, spec: TrainSpec, choices: Choices, device: torch.device) -> Objective:
    """What is trained for, its model and its teacher computing as chosen."""
    if spec.distill.teacher:
        teacher = load_teacher(spec)
        prepare(teacher, spec, choices)
        objective: Objective = Distill(model, spec, teacher.to(device=device, dtype=teacher.compute_dtype))
    else:
        objective = (Preference if spec.objective == "dpo" else NextToken)(model, spec)
    if choices.compile:
        plain = loss.distill_gradient if spec.distill.teacher else loss.chunk_gradient
        objective.gradient = torch.compile(plain, dynamic=False)
    return objective


def load_teacher(spec: TrainSpec) -> Transformer:
    """The frozen teacher. Raises ValueError when its token ids are not the student's."""
    teacher, vocabulary = load_model(spec.distill.teacher), int(read_meta(spec.data)["vocab_size"])
    check_tokens(Path(spec.distill.teacher) / "tokenizer.json", Path(spec.tokenizer) / "tokenizer.json", "the teacher")
    if teacher.config.vocab_size < vocabulary:
        raise ValueError(
            f"{spec.distill.teacher}: the teacher knows {teacher.config.vocab_size} tokens, the tokenizer has"
            f" {vocabulary}; distillation needs one vocabulary: leave tokenizer.extend out"
        )
    return teacher.requires_grad_(False)


def flops(objective: Objective) -> float:
    """FLOPs a token of training it."""
    spec = objective.spec
    teacher = objective.teacher[0].config.flops_per_token(spec.seq_len) / 3 if isinstance(objective, Distill) else 0.0
    return objective.lm.config.flops_per_token(spec.seq_len, frozen=bool(spec.lora.rank)) + teacher


def finish(loop: Loop, config: ModelConfig, result: dict[str, Any], run: Path) -> None:
    """Write the model directory, then ``result.json``: whoever sees that file has a whole model."""
    state = loop.engine.weights()
    loop.checkpoints.wait()
    if loop.ranks.rank == 0:
        model, spec = loop.engine.objective.lm, loop.spec
        if spec.lora.rank:
            save_adapter(state, spec.lora, Path(spec.out) / "adapter")
            model = fresh_model(spec, config)  # the frozen weights as they were read, however the engine holds them
            merge(model, state, spec.lora)
            state = {}
        save_model(model, spec.out, spec.tokenizer, state)
        if loop.choices.compile and (
            marker := warm_marker(loop.spec, config, loop.choices.dtype, loop.choices.micro_batch)
        ):
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
        write_json(
            run / "result.json",
            result
            | {
                "parameters": config.parameters(),
                "choices": {"dtype": loop.choices.dtype, "compile": loop.choices.compile},
            },
        )
    loop.ranks.barrier()


def read_data(spec: TrainSpec) -> Data:
    """The rows of both splits for the spec's objective. Raises ValueError when the dataset is of the wrong kind."""
    kind, wanted = read_meta(spec.data)["kind"], {"pretrain": "text", "sft": "chat", "dpo": "pairs"}[spec.objective]
    if kind != wanted:
        raise ValueError(f"{spec.data}: holds {kind} tokens, {spec.objective} needs {wanted}")
    train, val = (read_split(spec.data, name) for name in ("train", "val"))
    if spec.objective == "pretrain":
        return Data(Windows(train, spec.seq_len), Windows(val, spec.seq_len, tail=True))
    together = 2 if spec.objective == "dpo" else 1
    return Data(Packed(train, spec.seq_len, together), Packed(val, spec.seq_len, together))


def read_model_config(spec: TrainSpec) -> ModelConfig:
    """The model's shape, from the spec or the initial model, with the tokenizer's vocabulary size."""
    vocabulary = int(read_meta(spec.data)["vocab_size"])
    if spec.init is not None:
        config = read_config(spec.init)
        config = replace(config, vocab_size=max(config.vocab_size, vocabulary))
        check_tokens(Path(spec.init) / "tokenizer.json", Path(spec.tokenizer) / "tokenizer.json")
    else:
        config = replace(spec.model, vocab_size=spec.model.vocab_size or vocabulary)
    if config.vocab_size < vocabulary:
        raise ValueError(f"vocab_size {config.vocab_size} is smaller than the tokenizer's {vocabulary} ({spec.data})")
    return config


def fresh_model(spec: TrainSpec, config: ModelConfig) -> Transformer:
    """The model before its first step: new weights from the seed, or the initial model's, with rows for tokens that it
    has not met."""
    if spec.init is not None:
        model = load_model(spec.init)
        return (
            model
            if model.config.vocab_size == config.vocab_size
            else widen(model, config.vocab_size, Path(spec.tokenizer))
        )
    model = Transformer(config)
    initialize(model, spec.seed)
    return model


def fingerprints(spec: TrainSpec) -> dict[str, Any]:
    """What a checkpoint must agree with: contents of data, tokenizer and initial model, and the spec's deciding
    fields."""
    teacher = spec.distill.teacher
    return {
        "data": fingerprint(spec.data),
        "tokenizer": fingerprint(spec.tokenizer),
        "init": fingerprint(spec.init) if spec.init else None,
        "teacher": fingerprint(teacher) if teacher else None,
        "spec": json.dumps(spec.identity(), sort_keys=True),
    }


def describe(loop: Loop, config: ModelConfig) -> None:
    """One line on what is about to happen."""
    spec, plan, choices, train = loop.spec, loop.plan, loop.choices, loop.data.train
    cut = f", {train.truncated} sequences cut to fit" if isinstance(train, Packed) and train.truncated else ""
    fill = train.filled.sum() / (train.rows * spec.seq_len)
    how = (
        f"{choices.dtype}{' and fp8' if spec.fp8 else ''}, {choices.attention} attention,"
        f" {'compiled' if choices.compile else 'eager'}, {spec.engine}"
    )
    loop.ranks.say(
        f"{spec.objective}: {config.parameters() / 1e6:.2f}M parameters, {train.rows} rows of {spec.seq_len}"
        f" ({fill:.1%} filled{cut}), {plan.steps} steps of {plan.batch} rows, {loop.ranks.world} rank(s) x"
        f" {choices.micro_batch} rows, {how}"
    )


def work() -> None:
    """:func:`main`, then leave at once: everything is written, and gloo's threads can abort the interpreter's own way
    out."""
    faulthandler.enable()
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"torch\.distributed"
    )  # names that DeepSpeed and older torch still use
    code: Any = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    work()
