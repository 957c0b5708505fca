"""The quantize stage: the final model as int8, int4 and GGUF files, each with what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config.release import QuantizeSection
from pipeline.config.resources import Resources
from storage.store import Artifact
from tasks.costs import Told, measure_costs, texts_of
from tasks.running.inputs import Folder
from tasks.running.launch import launch
from tasks.running.stage import Metrics, Report, stage

BITS = {"int8": 8, "int4": 4}


@stage(
    version=1,
    kind="forms",
    workers=("model.quantize", "model.llamacpp.quantize", "model.measure"),
    libs=("gguf", "safetensors", "tokenizers", "torch"),
    base="model",
    reads={"scores": ("answers.jsonl", "choices.jsonl", "standard.jsonl")},
)
def quantize(
    cfg: QuantizeSection,
    model: Artifact | Folder,
    tokens: Artifact | None = None,
    scores: Artifact | None = None,
    text: Folder | None = None,
    *,
    on: Resources,
    out: Path,
    report: Report,
) -> Metrics:
    """Write every form of the model into a folder of its own, and measure each against the model in fp32: on held-out
    tokens (or a ``text``), and on the questions of the evaluation."""
    texts = texts_of(tokens, text, scores)
    return make_forms(cfg, model.path, texts, on=on, out=out, report=report)


def make_forms(
    cfg: QuantizeSection, model: Path, texts: dict[str, str | None], *, on: Resources, out: Path, report: Told
) -> dict[str, Any]:
    """The same for any model directory; ``texts`` may name ``tokens`` (a dataset) or ``text`` (a file), and ``exams``
    (the files of an evaluation).

    Raises ValueError for forms that cannot be made here or of this model.
    """
    from pipeline.release.forms import check_forms, folder_name, write_ggufs

    if problems := check_forms(cfg.forms):
        raise ValueError(f"quantize.forms: {'; '.join(problems)}")
    folders = {form: out / folder_name(form) for form in cfg.forms}
    own = [
        {"out": str(folders[form]), "bits": BITS[form], "group": cfg.group if form == "int4" else 0}
        for form in cfg.forms
        if form in BITS
    ]
    if own:
        options = cfg.model_dump(include={"method", "calibration_tokens", "seq_len"})
        same = {"model": str(model), "out": str(out), **texts}
        launch("model.quantize", {**same, **options, "forms": own}, out, on, report.training, single=True)
    types = [form.removeprefix("gguf:") for form in cfg.forms if form.startswith("gguf:")]
    files = write_ggufs(model, out, types, out / "_run" / "gguf", on.workers) if types else {}
    for line in dict.fromkeys(note for file in files.values() for note in file.notes):
        report.note(f"quantize: {line}")
    forms = [
        {
            "name": folder_name(form),
            "path": str(files[form].path if form in files else folder),
            "bytes": sum(path.stat().st_size for path in folder.glob("model*")),
        }
        for form, folder in folders.items()
    ]
    return measure_costs(cfg, model, forms, texts, on=on, out=out, report=report)
