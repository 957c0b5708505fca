"""The DAG, on one screen: raw text in, an aligned, evaluated, exported language model out.

Straight code. What a stage call does (build, take from cache, only plan) is decided by the run it happens in.
"""

from __future__ import annotations

import functools
from typing import Any

from pipeline.config.tree import Config
from pipeline.evaluation.names import model_name
from tasks.chats import chats
from tasks.clean import clean
from tasks.decontaminate import decontaminate
from tasks.dedup import dedup
from tasks.dpo import dpo
from tasks.encode import encode
from tasks.evaluate import evaluate
from tasks.export import export
from tasks.ingest import ingest
from tasks.language import language
from tasks.preferences import preferences
from tasks.pretrain import pretrain
from tasks.problems import problems
from tasks.quantize import quantize
from tasks.report import report
from tasks.reward import reward
from tasks.rl import rl
from tasks.running.inputs import several
from tasks.running.outline import Outlined, outline
from tasks.running.run import descent, seeds, verdict
from tasks.running.sources import Inputs
from tasks.sample import sample
from tasks.sft import sft
from tasks.shard import shard
from tasks.tokenizer import tokenizer


def full(cfg: Config, inputs: Inputs) -> dict[str, Any]:
    """Run every stage of the pipeline on its ``inputs``; returns the last artifacts by what they are."""
    raw = ingest(cfg.ingest, inputs.text)
    cleaned = clean(cfg.clean, raw)
    kept = language(cfg.language, cleaned)
    unique = dedup(cfg.dedup, kept, inputs.against)
    text = decontaminate(cfg.decontaminate, unique, inputs.guarded)
    talks = chats(cfg.decontaminate, inputs.chats, inputs.guarded) if inputs.chats else None
    pairs = preferences(cfg.decontaminate, inputs.preferences, inputs.guarded) if inputs.preferences else None
    shards = shard(cfg.shard, text, several(raw, cleaned, kept, unique, text))
    vocabulary = tokenizer(cfg.tokenizer, shards)
    tokens = encode(cfg.encode, shards, vocabulary)
    base = pretrain(cfg.pretrain, tokens, vocabulary)
    chat = sft(cfg.sft, base, talks, tokens if inputs.replays else None) if talks else None
    judge = reward(cfg.reward, chat, pairs) if inputs.ranks else None
    scorer = judge if inputs.scores else None
    own = sample(cfg.sample, chat, talks, scorer, inputs.unasked) if inputs.samples else None
    given = pairs if inputs.aligns else None
    aligned = dpo(cfg.dpo, chat, given, own) if given or own else None
    tried = problems(cfg.decontaminate, inputs.problems, inputs.guarded) if inputs.problems else None
    trained = rl(cfg.rl, aligned or chat, tried, judge if inputs.rewards else None) if tried else None
    final = trained or aligned or chat or base
    models = several(base, chat, aligned, trained)
    learnt = several(text, talks, pairs, tried)
    scores = evaluate(cfg.evaluate, models, tokens, shards, inputs.exams, inputs.standard, learnt)
    forms = quantize(cfg.quantize, final, tokens, scores) if cfg.quantize.forms else None
    release = export.submit(cfg.export, final, descent(final), scores, forms)
    gated = verdict(cfg.evaluate, final, scores)
    page = report(cfg.report, scores, models, judge, own, gated, forms, seeds(scores))
    return {"report": page, "model": release.result()}


@functools.cache
def stages() -> tuple[Outlined, ...]:
    """Every stage in the order of the DAG, read off :func:`full` itself."""
    return outline(full)


def stage_names() -> tuple[str, ...]:
    """Their names."""
    return tuple(stage.name for stage in stages())


def of_kind(*kinds: str) -> tuple[str, ...]:
    """Names of the stages that make one of these kinds of artifact, in the order of the DAG."""
    return tuple(stage.name for stage in stages() if stage.kind in kinds)


def model_names() -> tuple[str, ...]:
    """What the models are called in scores, in the order of the DAG."""
    return tuple(model_name(stage) for stage in of_kind("model"))


def data_names() -> tuple[str, ...]:
    """The stages before the first that trains: they need no GPU."""
    names = stage_names()
    return names[: names.index(of_kind("model")[0])]


def trains(until: str | None) -> bool:
    """Whether a run that stops after ``until`` (None: at the end) trains a model."""
    return until not in data_names()
