"""The quantize stage: the final model as int8, int4 and GGUF files, each with what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from pipeline.config.release import QuantizeSection
from pipeline.config.resources import Resources
from storage.store import Artifact
from tasks.running.inputs import Folder
from tasks.running.launch import launch
from tasks.running.stage import Metrics, Report, stage

BITS = {"int8": 8, "int4": 4}
MEASURED = {"bits_tokens", "kl_tokens", "exam_items", "seq_len", "speed_tokens", "max_new_tokens", "batch"}
"""Options of the section that the measuring process takes."""


class Told(Protocol):
    """What hears of the work: a stage's report, or a command's."""

    def note(self, text: str) -> None: ...

    def training(self, metrics: dict[str, Any]) -> None: ...


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
    texts = {
        "tokens": str(tokens.path) if tokens else None,
        "text": str(text.path) if text else None,
        "exams": str(scores.path) if scores else None,
    }
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
    same = {"model": str(model), "out": str(out), **texts}
    if own:
        options = cfg.model_dump(include={"method", "calibration_tokens", "seq_len"})
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
    spec = {**same, "forms": forms, "settings": cfg.model_dump(include=MEASURED)}
    return launch("model.measure", spec, out, on, report.training, single=True)
