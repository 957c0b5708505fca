"""The reward stage: a model that scores answers, learnt from which of two is preferred."""

from __future__ import annotations

from pathlib import Path

from model.specs.reward import RewardSpec
from pipeline.config.resources import Resources
from pipeline.config.reward import RewardSection
from storage.store import Artifact
from tasks.running.stage import Metrics, Report, stage
from tasks.training import spec_of, train
from tasks.tuning import encode_records


@stage(
    version=1,
    kind="reward",
    workers="model.reward",
    libs=("safetensors", "tiktoken", "tokenizers", "torch"),
    base="chat",
    reads={"preferences": "records.jsonl"},
)
def reward(
    cfg: RewardSection, chat: Artifact, preferences: Artifact, *, on: Resources, out: Path, report: Report
) -> Metrics:
    """A scalar head on the SFT model: the better answer of each pair is to score higher."""
    from pipeline.tokens.ranked import encode_ranked

    data = out / "_run" / "data"
    counts = encode_records(encode_ranked, [preferences], cfg, chat.path, data, report)
    spec = spec_of(RewardSpec, cfg, on, data=data, tokenizer=chat.path, out=out, init=chat.path)
    result = train(spec, on, report)
    if "accuracy" in result:
        accuracy, count, length = (result[name] for name in ("accuracy", "accuracy.n", "longer_wins"))
        result["headline"] = f"{accuracy:.0%} of {count:,.0f} held-out pairs in order (by length alone {length:.0%})"
    return counts | result
