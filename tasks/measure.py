"""The measure stage, which `pipeline evaluate` runs by itself: any models on any exams."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.config.evaluation import EvaluateSection
from pipeline.config.resources import Resources
from tasks.running.inputs import Several
from tasks.running.launch import launch
from tasks.running.sources import SourceSet, unchanged
from tasks.running.stage import Metrics, Report, stage


@stage(version=2, kind="scores", workers="model.score", libs=("tokenizers", "torch"))
def measure(
    cfg: EvaluateSection,
    models: Several,
    exams: SourceSet | None = None,
    standard: SourceSet | None = None,
    *,
    on: Resources,
    out: Path,
    report: Report,
) -> Metrics:
    """Ask the models the same questions, each compared to the one before it."""
    from pipeline.evaluation.selection import write_exams

    own, known = exams.sources if exams else (), standard.sources if standard else ()
    with unchanged(exams, standard):
        counts = write_exams(cfg, own, out / "_run" / "exams", standard=known, contaminated=False)
    names = names_of([model.path for model in models.items])
    spec = {
        "models": [{"name": name, "path": str(m.path)} for name, m in zip(names, models.items, strict=True)],
        "reference": None,
        "exams": str(out / "_run" / "exams"),
        "tokens": None,
        "out": str(out),
        "settings": cfg.model_dump(include={"max_new_tokens", "batch", "bits_tokens", "seq_len", "seed"}),
        "device": on.device,
        "dtype": on.dtype,
    }
    scores = launch("model.score", spec, out, on, report.training, single=True)
    return {f"exam_{name}": count for name, count in counts.items()} | scores


def names_of(paths: Sequence[Path]) -> list[str]:
    """What models are called by where they lie: the folder's name, of one in a store its stage; numbered where several
    would be called the same."""
    names = [path.parent.name if (path / "lineage.json").is_file() else path.resolve().name for path in paths]
    plain = ["".join(c if c.isalnum() or c in "-_" else "_" for c in name) for name in names]
    return [f"{name}_{i + 1}" if plain.count(name) > 1 else name for i, name in enumerate(plain)]
