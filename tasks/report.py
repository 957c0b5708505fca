"""The report stage: a page for people about what the models scored and how they were trained."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.evaluation import ReportSection
from pipeline.config.resources import Resources
from storage.store import Artifact
from tasks.running.gate import Verdict
from tasks.running.inputs import Several
from tasks.running.seeds import Seeds
from tasks.running.stage import Report, stage


@stage(version=1, kind="page", libs=("jinja2",), reads={"forms": "costs.json"})
def report(
    cfg: ReportSection,
    scores: Artifact,
    models: Several,
    reward: Artifact | None = None,
    sample: Artifact | None = None,
    gate: Verdict | None = None,
    forms: Artifact | None = None,
    seeds: Seeds | None = None,
    *,
    on: Resources,
    out: Path,
    report: Report,
) -> dict[str, int]:
    """Write report.html and report.md from the scores, the answers, the curves of the models' training, what judged
    answers, what the gate says of the last model, what rounded forms cost, and how far seeds alone move the scores."""
    from pipeline.pages.report.gate import Gated
    from pipeline.pages.report.learning import learning
    from pipeline.pages.report.page import write_report
    from pipeline.pages.report.preferences import judging

    # the loss of rl says nothing: it has a part of its own
    curves = {model.stage: model.path / "_run" / "metrics.jsonl" for model in models.items if model.stage != "rl"}
    judged = judging(reward and reward.path, sample and sample.path, cfg.samples)
    gated = None if gate is None else Gated(list(gate.conditions), gate.champion)
    tried = next((model.path for model in models.items if model.stage == "rl"), None)
    learnt = learning(tried, cfg.samples)
    return write_report(
        scores.path,
        out,
        curves=curves,
        samples=cfg.samples,
        judged=judged,
        learnt=learnt,
        gate=gated,
        costs=forms and forms.path / "costs.json",
        seeds=seeds.scores if seeds else (),
    )
