"""The DAG, on one screen: raw text in, an aligned, evaluated, exported language model out.

Straight code. What a stage call does (build, take from cache, only plan) is decided by the run it happens in.
"""

from __future__ import annotations

from typing import Any

from pipeline.config.tree import Config
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
from tasks.report import report
from tasks.running.sources import Inputs
from tasks.sft import sft
from tasks.shard import shard
from tasks.tokenizer import tokenizer


def full(cfg: Config, given: Inputs) -> dict[str, Any]:
    """Run every stage of the pipeline on what was ``given``; returns the last artifacts by what they are."""
    raw = ingest(cfg.ingest, given.text)
    text = clean(cfg.clean, raw)
    text = language(cfg.language, text)
    text = dedup(cfg.dedup, text, given.against)
    text = decontaminate(cfg.decontaminate, text, given.exams)
    asked = chats(cfg.decontaminate, given.chats, given.exams) if given.chats else given.chats
    liked = preferences(cfg.decontaminate, given.preferences, given.exams) if given.preferences else given.preferences
    shards = shard(cfg.shard, text)
    vocabulary = tokenizer(cfg.tokenizer, shards)
    tokens = encode(cfg.encode, shards, vocabulary)
    base = pretrain(cfg.pretrain, tokens, vocabulary)
    chat = sft(cfg.sft, base, asked) if asked else base
    aligned = dpo(cfg.dpo, chat, liked) if liked else chat
    release = export.submit(cfg.export, aligned)
    scores = evaluate.submit(cfg.evaluate, base, chat, aligned, tokens, given.exams, text, asked, liked)
    return {"model": release.result(), "report": report(cfg.report, scores.result(), base, chat, aligned)}
