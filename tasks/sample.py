"""The sample stage: the chat model's own answers, judged, become preference pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.resources import Resources
from pipeline.config.sample import SampleSection
from storage.places import home
from storage.store import Artifact
from tasks.running.launch import launch
from tasks.running.sources import SourceSet, unchanged
from tasks.running.stage import Metrics, Report, stage

if TYPE_CHECKING:
    from pipeline.sampling.pairs import Judged
    from pipeline.sampling.prompt import Prompt


@stage(
    version=1,
    kind="records",
    workers="model.sample",
    libs=("tokenizers", "torch"),
    reads={"chats": "records.jsonl"},
)
def sample(
    cfg: SampleSection,
    chat: Artifact,
    chats: Artifact,
    reward: Artifact | None = None,
    exams: SourceSet | None = None,
    *,
    on: Resources,
    out: Path,
    report: Report,
) -> Metrics:
    """Ask the chat model prompts of its chats several times, score the answers, and make pairs of best and worst.

    ``exams``: whose questions must not be made up, where new prompts are.
    """
    from pipeline.data.jsonl import read_jsonl
    from pipeline.evaluation.exams import exam_items
    from pipeline.sampling.disturbed import plain
    from pipeline.sampling.pairs import write_jsonl, write_pairs
    from pipeline.sampling.prompts import choose_prompts

    with unchanged(exams):
        taken = {plain(item["text"]) for item in exam_items(exams.sources)} if exams else set[str]()
    talks = read_jsonl(chats.path / "records.jsonl")
    prompts = choose_prompts(talks, cfg.prompts, cfg.seed, cfg.disturbed, taken)
    asked = out / "_run" / "prompts.jsonl"
    asked.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(asked, prompts)
    spec = {
        "model": str(chat.path),
        "prompts": str(asked),
        "answers": cfg.answers,
        "reference": cfg.reference,
        "sampling": cfg.model_dump(include={"temperature", "top_p", "top_k", "seed"}),
        "max_new_tokens": cfg.max_new_tokens,
        "batch": cfg.batch,
        "rewarder": str(reward.path) if reward and cfg.judge == "reward" else None,
        "device": on.device,
        "out": str(out),
    }
    launch("model.sample", spec, out, on, report.training, one_folder=True, note=report.note)
    answered = [row for path in sorted((out / "_run" / "answers").glob("*.jsonl")) for row in read_jsonl(path)]
    judged = _judged(cfg, prompts, answered, report)
    write_jsonl(
        out / "answers.jsonl",
        ({**prompt, "answers": [one._asdict() for one in own]} for prompt, own in zip(prompts, judged, strict=True)),
    )
    return write_pairs(cfg, prompts, answered, judged, out)


def _judged(
    cfg: SampleSection, prompts: Sequence[Prompt], answered: Sequence[dict[str, Any]], report: Report
) -> list[list[Judged]]:
    """The answers of each prompt that say something, with their scores."""
    from pipeline.sampling.openai_judge import compare_all
    from pipeline.sampling.pairs import Judged, by_rule

    own = [said["answers"] for said in answered]
    if cfg.reference:
        own = [[*texts, prompt["reference"]] if texts else [] for prompt, texts in zip(prompts, own, strict=True)]
    if cfg.judge == "reward":
        scores = [said["rewards"] for said in answered]
    elif cfg.judge == "openai":
        scores = compare_all(cfg, prompts, own, home() / "cache" / "judge", report)
    else:
        rows = zip(prompts, own, strict=True)
        scores = [[by_rule(cfg.judge, prompt, text) for text in texts] for prompt, texts in rows]
    return [
        [Judged(text, score) for text, score in zip(texts, values, strict=True) if text]
        for texts, values in zip(own, scores, strict=True)
    ]
