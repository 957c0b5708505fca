"""The export stage: the model directory that is published, in the precision asked for, with a card that says what it was made from.

Torch-free: a safetensors file is a JSON header and bytes, and rounding fp32 to bf16 is integer arithmetic. Bytes depend on
the weights, the config and the card's facts alone. That stock ``transformers`` computes the same from it is checked by the
worker ``model.verify``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.sections.evaluation import ExportSection

_NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
_COPIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def export_model(cfg: ExportSection, model: Path, out: Path, *, card: dict[str, Any] | None = None) -> dict[str, int]:
    """Write the published directory from a model directory; returns ``parameters`` and ``bytes`` (of all files).

    ``card``: what is known of the model's making, see :func:`model_card`. Raises ValueError for weights in a type that is
    not fp32, fp16 or bf16, or a GGUF that llama.cpp could not read as we do.
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
        from pipeline.gguf_export import write_gguf

        write_gguf(tensors, config, model, out / f"model-{cfg.gguf}.gguf", cfg.gguf)
    parameters = sum(value.size for value in tensors.values())
    (out / "README.md").write_text(model_card(cfg, config, parameters, card or {}), encoding="utf-8")
    return {"parameters": parameters, "bytes": sum(path.stat().st_size for path in out.iterdir() if path.is_file())}


def read_tensors(model: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Names and fp32 values of a model directory's weights, names sorted within a file."""
    files = sorted(model.glob("model*.safetensors"))
    if not files:
        raise ValueError(f"{model}: no model*.safetensors; a model directory is needed")
    for path in files:
        size = int.from_bytes(path.open("rb").read(8), "little")
        header = json.loads(path.open("rb").read(8 + size)[8:])
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
    sampling = {"do_sample": True, "temperature": cfg.temperature, "top_p": cfg.top_p} if cfg.temperature else {"do_sample": False}
    return {**ids, **sampling, "max_new_tokens": cfg.max_new_tokens}


def model_card(cfg: ExportSection, config: dict[str, Any], parameters: int, card: dict[str, Any]) -> str:
    """README.md of the published model, with Hugging Face's front matter.

    ``card`` may hold ``preset``, ``sources`` (list of {name, files, bytes, digest, licence}), ``stages`` (list of {name,
    digest, metrics}), ``scores`` (``scores.json`` of the evaluate stage) and ``notes``; what it lacks is left out.
    """
    title = cfg.title or f"{card.get('preset') or 'full-pipeline'} model"
    front = ["---", "language: [zh, en]", "library_name: transformers", "pipeline_tag: text-generation", *([f"license: {cfg.licence}"] if cfg.licence else []), "---", ""]
    lines = [*front, f"# {title}", "", f"{_shape(config, parameters)} Made by full-pipeline from raw text to preference-aligned chat model.", ""]
    lines += ["## Use", "", "```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", "",
              'tokenizer, model = AutoTokenizer.from_pretrained("."), AutoModelForCausalLM.from_pretrained(".")',
              'chat = [{"role": "user", "content": "什么是语言模型？"}]',
              'ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)',
              "print(tokenizer.decode(model.generate(**ids)[0], skip_special_tokens=True))", "```", ""]
    lines += _sources_table(card.get("sources") or []) + _stages_table(card.get("stages") or []) + _scores_table(card.get("scores") or {})
    lines += ["## Limits", "", "A small model states wrong things fluently. It knows what its sources say and little else; it has had no safety training beyond them.", ""]
    return "\n".join([*lines, *([card["notes"], ""] if card.get("notes") else [])])


def _shape(config: dict[str, Any], parameters: int) -> str:
    return (f"A {parameters / 1e6:.1f}M-parameter decoder ({config.get('architectures', ['?'])[0]}: {config['num_hidden_layers']} layers, width {config['hidden_size']}, "
            f"{config['num_attention_heads']} heads, vocabulary {config['vocab_size']}).")


def _sources_table(sources: list[dict[str, Any]]) -> list[str]:
    if not sources:
        return []
    rows = [f"| {s['name']} | {s.get('files', '')} | {s.get('bytes', 0):,} | {s.get('licence') or 'not stated'} | `{str(s.get('digest', ''))[:12]}` |" for s in sources]
    return ["## Made from", "", "| source | files | bytes | licence | digest |", "|---|---:|---:|---|---|", *rows, ""]


def _stages_table(stages: list[dict[str, Any]]) -> list[str]:
    if not stages:
        return []
    rows = []
    for stage in stages:
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in (stage.get("metrics") or {}).items() if isinstance(value, (int, float)))
        rows.append(f"| {stage['name']} | `{str(stage.get('digest', ''))[:12]}` | {numbers} |")
    return ["## Stages", "", "| stage | artifact | numbers |", "|---|---|---|", *rows, ""]


def _scores_table(scores: dict[str, Any]) -> list[str]:
    if not scores:
        return []
    from pipeline.report import markdown_table, table

    names = sorted(scores, key=lambda name: scores[name]["place"])
    return ["## Scores", "", *markdown_table(table(scores, names), names), ""]


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2, sort_keys=True) + "\n", encoding="utf-8")
