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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.base import Progress, quiet
from pipeline.config.evaluation import ExportSection
from storage.places import ROOT

_NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
VERIFY_PROMPTS = ["什么是语言模型？", "What does a tokenizer do?", "1 + 1 = ?"]
_COPIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def export(
    cfg: ExportSection, model: Path, out: Path, *, facts: dict[str, Any] | None = None, progress: Progress = quiet
) -> dict[str, float]:
    """Write the published directory from a model directory; returns ``parameters``, ``bytes`` and what the check found.

    ``facts``: what is known of the model's making, see :func:`model_card`. Raises ValueError for weights in a type that
    is not fp32, fp16 or bf16, or a GGUF that llama.cpp could not read as we do, and RuntimeError when transformers
    differs.
    """
    out.mkdir(parents=True, exist_ok=True)
    tensors = dict(read_tensors(model))
    write_tensors(tensors, out / "model.safetensors", cfg.dtype)
    for name in _COPIED:
        if (model / name).is_file():
            shutil.copyfile(model / name, out / name)
    config = _json(model / "config.json")
    _write_json(out / "config.json", {**config, "torch_dtype": "bfloat16" if cfg.dtype == "bf16" else "float32"})
    _write_json(out / "generation_config.json", generation_config(cfg, _json(model / "generation_config.json")))
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


def read_tensors(model: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Names and fp32 values of a model directory's weights, names sorted within a file."""
    files = sorted(model.glob("model*.safetensors"))
    if not files:
        raise ValueError(f"{model}: no model*.safetensors; a model directory is needed")
    for path in files:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        data = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + size)
        for name in sorted(header.keys() - {"__metadata__"}):
            kind, (begin, end) = header[name]["dtype"], header[name]["data_offsets"]
            if kind not in _NUMPY:
                raise ValueError(f"{path}: {name} is {kind}; only F32, F16 and BF16 weights can be exported")
            raw = data[begin:end].view(_NUMPY[kind]).reshape(header[name]["shape"])
            yield name, from_bf16(raw) if kind == "BF16" else raw.astype(np.float32)


def write_tensors(tensors: dict[str, np.ndarray], path: Path, dtype: str) -> None:
    """Write a safetensors file in ``dtype`` ("bf16" or "fp32"), names sorted, one tensor in memory at a time."""
    kind, width = ("BF16", 2) if dtype == "bf16" else ("F32", 4)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, value in sorted(tensors.items()):
        begin, end = end, end + value.size * width
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # readers map the data and want it aligned
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, value in sorted(tensors.items()):
            (to_bf16(value) if dtype == "bf16" else np.ascontiguousarray(value)).tofile(file)


def to_bf16(value: np.ndarray) -> np.ndarray:
    """The upper halves (uint16) of fp32 values, rounded to nearest even as torch does; NaN stays NaN."""
    bits = np.ascontiguousarray(value, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(value), np.uint32(0x7FC0), rounded).astype(np.uint16)


def from_bf16(raw: np.ndarray) -> np.ndarray:
    """fp32 values of bf16 bits held as uint16."""
    return (raw.astype(np.uint32) << 16).view(np.float32)


def generation_config(cfg: ExportSection, given: dict[str, Any]) -> dict[str, Any]:
    """``generation_config.json``: the model's special ids, and sampling as the section says."""
    ids = {name: value for name, value in given.items() if name.endswith("_token_id")}
    sampling = (
        {"do_sample": True, "temperature": cfg.temperature, "top_p": cfg.top_p}
        if cfg.temperature
        else {"do_sample": False}
    )
    return {**ids, **sampling, "max_new_tokens": cfg.max_new_tokens}


def model_card(cfg: ExportSection, config: dict[str, Any], parameters: int, facts: dict[str, Any]) -> str:
    """README.md of the published model, with Hugging Face's front matter.

    ``facts`` may hold ``sources`` {name: {files, bytes, digest, stage}} and ``stages`` {name: {digest, section}} from
    last to first; what it lacks is left out.
    """
    front = [
        "---",
        "language: [zh, en]",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        *([f"license: {cfg.licence}"] if cfg.licence else []),
        "---",
        "",
    ]
    lines = [
        *front,
        f"# {cfg.title or 'A model of full-pipeline'}",
        "",
        f"{_shape(config, parameters)} Made by full-pipeline from raw text.",
        "",
    ]
    lines += [
        "## Use",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'tokenizer, model = AutoTokenizer.from_pretrained("."), AutoModelForCausalLM.from_pretrained(".")',
        'chat = [{"role": "user", "content": "什么是语言模型？"}]',
        'ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)',
        "print(tokenizer.decode(model.generate(**ids)[0], skip_special_tokens=True))",
        "```",
        "",
    ]
    lines += _sources_table(facts.get("sources") or {}) + _stages_table(facts.get("stages") or {})
    lines += [
        "## Limits",
        "",
        (
            "A small model states wrong things fluently. It knows what its sources say and little else; it has had no"
            " safety training beyond them."
        ),
        "",
    ]
    return "\n".join(lines)


def _shape(config: dict[str, Any], parameters: int) -> str:
    return (
        f"A {parameters / 1e6:.1f}M-parameter decoder ({config['architectures'][0]}: "
        f"{config['num_hidden_layers']} layers, width {config['hidden_size']}, "
        f"{config['num_attention_heads']} heads, vocabulary {config['vocab_size']})."
    )


def _sources_table(sources: dict[str, dict[str, Any]]) -> list[str]:
    if not sources:
        return []
    rows = [
        f"| {name} | {s.get('stage', '')} | {s.get('files', '')} | {s.get('bytes', 0):,} |"
        f" `{str(s.get('digest', ''))[:12]}` |"
        for name, s in sorted(sources.items())
    ]
    return ["## Made from", "", "| source | read by | files | bytes | digest |", "|---|---|---:|---:|---|", *rows, ""]


def _stages_table(stages: dict[str, dict[str, Any]]) -> list[str]:
    """Stages from first to last, and every setting of those that train."""
    if not stages:
        return []
    rows = [f"| {name} | `{str(stages[name].get('digest', ''))[:12]}` |" for name in reversed(stages)]
    settings = [
        line
        for name in reversed(stages)
        if stages[name].get("kind") == "model"
        for line in _settings(name, stages[name].get("section") or {})
    ]
    return [
        "## Stages",
        "",
        "| stage | artifact |",
        "|---|---|",
        *rows,
        "",
        *(["```toml", *settings, "```", ""] if settings else []),
    ]


def _settings(path: str, value: Any) -> list[str]:
    """``section.key = value`` lines, the grammar that ``pipeline run`` takes."""
    if isinstance(value, dict):
        return [line for name, inner in value.items() for line in _settings(f"{path}.{name}", inner)]
    return [f"{path} = {json.dumps(value, ensure_ascii=False)}"]


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2, sort_keys=True) + "\n", encoding="utf-8")
