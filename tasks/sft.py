"""The sft stage: the base model learns to answer in conversations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from model.specs.sft import SftSpec
from pipeline.config.resources import Resources
from pipeline.config.training import SftSection
from storage.store import Artifact
from tasks.running.stage import Report, stage
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
    cfg: SftSection, base: Artifact, chats: Artifact, *, on: Resources, out: Path, report: Report
) -> dict[str, Any]:
    """Supervised fine-tuning on the assistant's tokens of every conversation."""
    from pipeline.tokens.chats import encode_chats

    data = out / "_run" / "data"
    counts = encode_records(encode_chats, chats, cfg, base.path, data, report)
    spec = spec_of(SftSpec, cfg, on, data=data, tokenizer=base.path, out=out, init=base.path)
    if spec.distill.teacher:
        teacher = str(Path(spec.distill.teacher).expanduser().resolve())
        spec = replace(spec, distill=replace(spec.distill, teacher=teacher))
    return counts | train(spec, on, report)
