"""The rl stage: the chat model tries answers to problems, and what was rewarded becomes likelier."""

from __future__ import annotations

from pathlib import Path

from model.specs.rl import RlSpec
from pipeline.config.resources import Resources
from pipeline.config.rl import RlSection
from storage.store import Artifact
from tasks.running.stage import Metrics, Report, stage
from tasks.training import spec_of, train


@stage(
    version=1,
    kind="model",
    workers="model.rl",
    libs=("safetensors", "tiktoken", "tokenizers", "torch"),
    base="chat",
    reads={"problems": "records.jsonl"},
)
def rl(
    cfg: RlSection,
    chat: Artifact,
    problems: Artifact,
    judge: Artifact | None = None,
    *,
    on: Resources,
    out: Path,
    report: Report,
) -> Metrics:
    """Reinforcement learning on problems whose answers can be checked, with rollouts from the weights that train."""
    from pipeline.tokens.problems import encode_problems

    data = out / "_run" / "data"
    counts = encode_problems(problems.path / "records.jsonl", chat.path, data, cfg)
    for line in counts.pop("notes"):
        report.note(f"rl: {line}")
    more = {"reward_model": str(judge.path)} if judge else {}
    spec = spec_of(RlSpec, cfg, on, data=data, tokenizer=chat.path, out=out, init=chat.path, **more)
    result = train(spec, on, report)
    kind = "exact" if "val_exact" in result else "reward"
    form = "{:.0%}" if kind == "exact" else "{:.2f}"
    told = " → ".join(form.format(result[f"{when}_{kind}"]) for when in ("before", "val"))
    words = "solved" if kind == "exact" else "reward"
    return counts | result | {"headline": f"held-out problems: {words} {told}"}
