"""The dpo stage: the chat model learns which of two answers is preferred."""

from __future__ import annotations

from pathlib import Path

from model.specs.dpo import DpoSpec
from pipeline.config.dpo import DpoSection
from pipeline.config.resources import Resources
from storage.store import Artifact
from tasks.running.stage import Metrics, Report, stage
from tasks.training import spec_of, train
from tasks.tuning import encode_records


@stage(
    version=1,
    kind="model",
    workers="model.dpo",
    libs=("safetensors", "tiktoken", "tokenizers", "torch"),
    base="chat",
    reads={"preferences": "records.jsonl", "sampled": "records.jsonl"},
)
def dpo(
    cfg: DpoSection,
    chat: Artifact,
    preferences: Artifact | None = None,
    sampled: Artifact | None = None,
    *,
    on: Resources,
    out: Path,
    report: Report,
) -> Metrics:
    """Direct preference optimisation, in most losses against the SFT model, whose log-probabilities are computed
    once. Pairs that the model made itself (``sampled``) stand behind those of files."""
    from pipeline.tokens.pairs import encode_pairs

    data = out / "_run" / "data"
    pairs = [given for given in (preferences, sampled) if given]
    counts = encode_records(encode_pairs, pairs, cfg, chat.path, data, report)
    spec = spec_of(DpoSpec, cfg, on, data=data, tokenizer=chat.path, out=out, init=chat.path)
    return counts | train(spec, on, report)
