"""The export stage: the model directory that is published, in the precision asked for, with a card that says what it
was made from.

Torch-free: a safetensors file is a JSON header and bytes, and rounding fp32 to bf16 is integer arithmetic. Bytes depend
on the weights, the config and the card's facts alone. That stock ``transformers`` computes the same from it is checked
in a process of its own (``model.verify``), so that neither torch nor transformers is loaded here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from model.tokens.chat import ChatTokenizer
from pipeline.config.base import Progress, quiet
from pipeline.config.evaluation import ExportSection
from pipeline.release.card import Facts, model_card
from pipeline.release.weights import HfConfig, read_tensors, write_tensors
from storage.places import ROOT

VERIFY_PROMPTS = ["什么是语言模型？", "What does a tokenizer do?", "1 + 1 = ?"]
_COPIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def export(
    cfg: ExportSection, model: Path, out: Path, *, facts: Facts | None = None, progress: Progress = quiet
) -> dict[str, float]:
    """Write the published directory from a model directory; returns ``parameters``, ``bytes`` and what the check found.

    ``facts``: what is known of the model's making and worth, see :func:`model_card`. Raises ValueError for weights in
    a type that is not fp32, fp16 or bf16, or a GGUF that llama.cpp could not read as we do, and RuntimeError when
    transformers differs.
    """
    out.mkdir(parents=True, exist_ok=True)
    tensors = dict(read_tensors(model))
    write_tensors(tensors, out / "model.safetensors", cfg.dtype)
    for name in _COPIED:
        if (model / name).is_file():
            shutil.copyfile(model / name, out / name)
    config = _json(model / "config.json")
    _write_json(out / "config.json", {**config, "torch_dtype": "bfloat16" if cfg.dtype == "bf16" else "float32"})
    _write_json(out / "generation_config.json", generation_config(cfg, _given(model)))
    if cfg.gguf != "off":
        from pipeline.release.gguf_export import write_gguf

        write_gguf(tensors, config, model, out / f"model-{cfg.gguf}.gguf", cfg.gguf)
    parameters = sum(value.size for value in tensors.values())
    (out / "README.md").write_text(model_card(cfg, config, parameters, facts or {}), encoding="utf-8")
    size = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
    progress(1, 2 if cfg.verify else 1, "steps")
    return {"parameters": parameters, "bytes": size, **(verify(out) if cfg.verify else {})}


def verify(model: Path) -> dict[str, float]:
    """Compare a directory's answers with stock transformers'; ``verified_prompts`` is 0 where it is not installed.

    Raises RuntimeError saying what differs.
    """
    spec = model / "_run" / "verify.json"
    spec.parent.mkdir(exist_ok=True)
    _write_json(spec, {"model": str(model), "prompts": VERIFY_PROMPTS, "out": str(model)})
    root = str(ROOT)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "model.verify", "--spec", str(spec)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(
            f"the exported model failed its check: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        )
    found = _json(model / "_run" / "result.json")
    return {"verified_prompts": found["compared"], "logit_difference": found.get("logit_difference", 0.0)}


def generation_config(cfg: ExportSection, given: HfConfig) -> HfConfig:
    """``generation_config.json``: the model's special ids, and sampling as the section says."""
    ids = {name: value for name, value in given.items() if name.endswith("_token_id")}
    sampling = (
        {"do_sample": True, "temperature": cfg.temperature, "top_p": cfg.top_p}
        if cfg.temperature
        else {"do_sample": False}
    )
    return {**ids, **sampling, "max_new_tokens": cfg.max_new_tokens}


def _given(model: Path) -> HfConfig:
    """The model's ``generation_config.json``, with every id that ends an answer in its chat format."""
    given = _json(model / "generation_config.json")
    known = given.get("eos_token_id", [])
    known = known if isinstance(known, list) else [known]
    ends = ChatTokenizer.load(model).ends if (model / "tokenizer.json").is_file() else frozenset[int]()
    return given | {"eos_token_id": [*known, *sorted(ends - {*known})]} if ends - {*known} else given


def _json(path: Path) -> HfConfig:
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: Path, values: HfConfig) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2, sort_keys=True) + "\n", encoding="utf-8")
