"""A smaller model from a large one: ``python -m model.prune --spec FILE``, one process.

The spec is JSON: ``model`` (directory), ``layers``, ``heads`` and ``channels`` (how many leave; the last two of each
layer), ``tokens`` (a token dataset whose training split they are measured by, or null), ``text`` (a UTF-8 file in its
place, or null), ``calibration_tokens``, ``seq_len``, ``pruned`` (directory to write) and ``out``. What was left out and
what each part would have cost goes to ``pruned.json`` in ``out``, the numbers to ``out/_run/result.json``.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from model.network.weights import load_model, save_model
from model.pruning.cut import prune
from model.quantize import calibration
from model.running.command import WorkerSpec, read_spec
from model.running.files import write_json


def run(spec: WorkerSpec) -> dict[str, float]:
    """Write the pruned model; the numbers. Raises ValueError for what cannot be left out."""
    windows = calibration(spec)
    if not windows:
        raise ValueError("pruning needs texts to measure by; give --text FILE")
    model = load_model(spec["model"]).eval()
    before = model.config.parameters()
    smaller, removed = prune(model, windows, layers=spec["layers"], heads=spec["heads"], channels=spec["channels"])
    save_model(smaller, spec["pruned"], spec["model"])
    write_json(Path(spec["out"]) / "pruned.json", asdict(removed), indent=2, finite=True)
    numbers = {
        "parameters_before": before,
        "parameters": smaller.config.parameters(),
        "loss_before": removed.before,
        "loss": removed.after,
    }
    write_json(Path(spec["out"]) / "_run" / "result.json", numbers, finite=True)
    return numbers


def main() -> None:
    """The worker's command line."""
    run(read_spec(__doc__))


if __name__ == "__main__":
    main()
