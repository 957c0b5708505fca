"""The sft stage: the base model learns to answer in conversations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from model.specs.sft import SftSpec
from pipeline.config.resources import Resources
from pipeline.config.sft import MINIMIND_TAG_WEIGHT, SftSection
from storage.store import Artifact
from tasks.running.stage import Metrics, Report, stage
from tasks.training import spec_of, train
from tasks.tuning import encode_records


@stage(
    version=1,
    kind="model",
    workers="model.sft",
    libs=("safetensors", "tiktoken", "tokenizers", "torch"),
    base="base",
    reads={"chats": "records.jsonl"},
)
def sft(
    cfg: SftSection,
    base: Artifact,
    chats: Artifact,
    text: Artifact | None = None,
    *,
    on: Resources,
    out: Path,
    report: Report,
) -> Metrics:
    """Supervised fine-tuning on the assistant's tokens of every conversation, with ``text``, the pretraining tokens,
    replayed among them."""
    from pipeline.tokens.chats import encode_chats

    data = out / "_run" / "data"
    tags = "pieces" if cfg.compat else "whole" if cfg.tag_weight != 1 else ""
    counts = encode_records(encode_chats, chats, cfg, base.path, data, report, weights=cfg.weights, tags=tags)
    spec = spec_of(SftSpec, cfg, on, data=data, tokenizer=base.path, out=out, init=base.path, **_more(cfg, text))
    return counts | train(spec, on, report)


def _more(cfg: SftSection, text: Artifact | None) -> dict[str, Any]:
    """Fields of the spec that are not the section's as they are."""
    more: dict[str, Any] = {"replay_data": str(text.path) if text else ""}
    if cfg.compat:
        more["tag_weight"] = MINIMIND_TAG_WEIGHT
    if cfg.distill.teacher:
        teacher = str(Path(cfg.distill.teacher).expanduser().resolve())
        more["distill"] = replace(cfg.distill, teacher=teacher)
    return more
