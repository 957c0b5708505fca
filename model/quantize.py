"""The int8 and int4 forms of a model: ``python -m model.quantize --spec FILE``, one process.

The spec is JSON: ``model`` (directory), ``forms`` [{"out", "bits", "group"}], ``method`` (nearest, search or gptq),
``tokens`` (a token dataset whose training split calibrates gptq, or null), ``text`` (a UTF-8 file in its place, or
null), ``calibration_tokens``, ``seq_len`` and ``out``. It writes each form's directory and an empty
``out/_run/result.json``.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from model.quantized.scheme import Scheme
from model.quantized.write import write_rounded
from model.running.command import WorkerSpec, read_spec
from model.running.files import write_json
from model.tokens.chat import ChatTokenizer
from model.tokens.rows import read_split


def calibration(spec: WorkerSpec) -> list[Tensor]:
    """Windows of ids [T], ``calibration_tokens`` together: documents from all over the training split, or a text."""
    window, limit = spec["seq_len"] or 512, spec["calibration_tokens"]
    if spec.get("text"):
        tokenizer = ChatTokenizer.load(spec["model"])
        ids = tokenizer.encode(Path(spec["text"]).read_text(encoding="utf-8"))[:limit]
        return [torch.tensor(ids[at : at + window]) for at in range(0, len(ids), window)]
    if not spec.get("tokens"):
        return []
    split = read_split(Path(spec["tokens"]), "train")
    ends = list(pairwise(split.offsets.tolist()))
    stride, windows, taken = max(1, len(ends) // max(1, limit // window)), [], 0
    for begin, end in ends[::stride]:
        if taken >= limit:
            break
        ids = torch.tensor([split.meta["eos_id"], *split.tokens[begin : min(end, begin + window - 1)].tolist()])
        windows.append(ids)
        taken += len(ids)
    return windows


def run(spec: WorkerSpec) -> None:
    """Write all forms. Raises ValueError for a width that does not divide into groups, and gptq without texts."""
    windows = calibration(spec) if spec["method"] == "gptq" else []
    if spec["method"] == "gptq" and not windows:
        raise ValueError("quantize.method=gptq needs texts to calibrate by; set quantize.method=search")
    for form in spec["forms"]:
        scheme = Scheme(form["bits"], form["group"])
        write_rounded(Path(spec["model"]), Path(form["out"]), scheme, method=spec["method"], windows=windows)
    write_json(Path(spec["out"]) / "_run" / "result.json", {})


def main() -> None:
    """The worker's command line."""
    run(read_spec(__doc__))


if __name__ == "__main__":
    main()
