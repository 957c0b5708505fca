"""The forms a model is released in beside its own precision: int8 and int4 for our engine, transformers and vLLM, and
GGUF files of any type that llama.cpp writes without texts to weigh by.

A GGUF file is first written in f32 and then rounded by llama.cpp's own code, in a process of its own. Where a row does
not divide into the blocks of a type (256 for the K types), llama.cpp takes a neighbouring type for that tensor; what it
took is read back from the file and said.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.network.hf_config import from_hf, to_hf
from model.tokens.chat import ChatTokenizer
from model.tokens.theirs import template_of
from pipeline.release.gguf_export import normalises, write_gguf
from pipeline.release.weights import HfConfig, read_tensors
from storage.places import ROOT

PLAIN = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16"}
GGUF_TYPES = (
    *PLAIN, "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q4_1", "q4_0", "iq4_nl", "iq4_xs",
    "q3_k_l", "q3_k_m", "q3_k_s", "q2_k",
)  # fmt: skip
"""GGUF file types by llama.cpp's names; those that need an importance matrix are not among them."""
OWN = ("int8", "int4")
FORMS = (*OWN, *(f"gguf:{name}" for name in GGUF_TYPES))


@dataclass
class GgufFile:
    """A GGUF file that was written: ``types`` counts its tensors by type, ``other`` those whose rows do not divide into
    the blocks of the type that was wanted; ``notes`` are lines for people."""

    path: Path
    types: dict[str, int] = field(default_factory=dict)
    other: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def check_forms(forms: Iterable[str]) -> list[str]:
    """What is wrong with the names of forms, in words; empty when nothing is."""
    forms = list(forms)
    wrong = [f"{form!r} is no form; forms are {', '.join(FORMS)}" for form in forms if form not in FORMS]
    wrong += [f"{form} is there twice" for form in dict.fromkeys(forms) if forms.count(form) > 1]
    if any(form.startswith("gguf:") and form[5:] not in PLAIN for form in forms if form in FORMS):
        from importlib.util import find_spec

        if find_spec("cyllama") is None:
            wrong.append(
                "rounded GGUF types are written by llama.cpp: pip install 'full-pipeline[gguf-run]' (the package"
                " cyllama), or take gguf:f16"
            )
    return wrong


def folder_name(form: str) -> str:
    """What the folder of a form is called, and its scores: ``gguf:q8_0`` is ``gguf-q8_0``."""
    return form.replace(":", "-")


def write_ggufs(model: Path, out: Path, types: Iterable[str], scratch: Path, threads: int = 1) -> dict[str, GgufFile]:
    """Write ``out/gguf-TYPE/model-TYPE.gguf`` of a model directory with an Ollama Modelfile for each of the ``types``;
    what was written, by form.

    Raises ValueError for a model or tokenizer that has no GGUF form, and RuntimeError when llama.cpp fails.
    """
    import gguf

    tensors, config = dict(read_tensors(model)), to_hf(from_hf(_json(model / "config.json"), str(model)))
    check_rows(config, types := list(types))
    notes = _notes(model)
    scratch.mkdir(parents=True, exist_ok=True)
    base = scratch / "base-f32.gguf.tmp"
    paths = {kind: out / folder_name(f"gguf:{kind}") / f"model-{kind}.gguf" for kind in types}
    rounded: dict[str, int] = {}
    for kind, path in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "Modelfile").write_text(modelfile(path.name, config, model), encoding="utf-8")
        if kind in PLAIN:
            write_gguf(tensors, config, model, path, kind)
        else:
            rounded[str(path)] = int(gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"])
    if rounded:
        write_gguf(tensors, config, model, base, "f32")
        _llama_cpp({"source": str(base), "targets": rounded, "threads": threads}, scratch)
        base.unlink()
    return {f"gguf:{kind}": _read_back(path, kind, gguf, notes) for kind, path in paths.items()}


def check_rows(config: HfConfig, types: list[str]) -> None:
    """Raises ValueError for rows that llama.cpp cannot cut into the smallest blocks, which it has no other type for."""
    rounded = [kind for kind in types if kind not in PLAIN]
    inner = config["moe_intermediate_size"] if config.get("num_experts") else config["intermediate_size"]
    rows = {config["hidden_size"], inner, config["num_attention_heads"] * config["head_dim"]}
    uneven = sorted(row for row in rows if row % 32)
    if rounded and uneven:
        raise ValueError(
            f"quantize.forms: gguf:{', gguf:'.join(rounded)} cannot be written: llama.cpp rounds rows of a multiple of"
            f" 32, and this model has rows of {', '.join(map(str, uneven))}; take gguf:f16 or int8, or train widths"
            " (dim, ffn, heads * head_dim) that are"
        )


def modelfile(file: str, config: HfConfig, model: Path) -> str:
    """An Ollama Modelfile: the chat format that was trained (a system prompt is one of the messages), what ends an
    answer, and how to sample. Another chat format than ChatML is left to Ollama, which reads the GGUF file's."""
    chat, written = ChatTokenizer.load(model), template_of(model)
    chatml = written is None or "<|im_start|>" in written
    template = (
        "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
    )
    values = {"temperature": 0, "num_ctx": config["max_position_embeddings"], **_sampling(model)}
    lines = [f"FROM ./{file}", *([f'TEMPLATE """{template}"""'] if chatml else [])]
    ends = [chat.backend.id_to_token(i) for i in sorted(chat.ends, reverse=True)]
    lines += [f'PARAMETER stop "{token}"' for token in ends]
    lines += [f"PARAMETER {name} {value}" for name, value in sorted(values.items())]
    return "\n".join(lines) + "\n"


def _sampling(model: Path) -> HfConfig:
    path = model / "generation_config.json"
    values = _json(path) if path.is_file() else {}
    if not values.get("do_sample"):
        return {}
    return {name: values[name] for name in ("temperature", "top_p", "top_k") if values.get(name) is not None}


def _notes(model: Path) -> list[str]:
    if normalises(_json(model / "tokenizer.json")):
        return ["llama.cpp does not bring texts into NFC as this tokenizer does; texts that are not get other ids"]
    return []


def _read_back(path: Path, kind: str, gguf: Any, notes: list[str]) -> GgufFile:
    """What llama.cpp made of each tensor. Mixed types (q4_k_m) hold several K types on purpose."""
    tensors = gguf.GGUFReader(path).tensors
    types = Counter(tensor.tensor_type.name.lower() for tensor in tensors)
    block = 256 if "_k" in kind or kind == "iq4_xs" else 32
    large = [t for t in tensors if len(t.shape) > 1 and "ffn_gate_inp" not in t.name]
    uneven = [t for t in large if kind not in PLAIN and int(t.shape[0]) % block]
    other = Counter(tensor.tensor_type.name.lower() for tensor in uneven)
    told = list(notes)
    if other:
        taken = ", ".join(f"{count} in {name}" for name, count in sorted(other.items()))
        told.append(f"{len(uneven)} of {len(large)} matrices do not divide into the blocks of {kind}: {taken}")
    return GgufFile(path, dict(sorted(types.items())), dict(sorted(other.items())), told)


def _llama_cpp(spec: dict[str, Any], scratch: Path) -> None:
    path = scratch / "quantize.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    command = [sys.executable, "-m", "model.llamacpp.quantize", "--spec", str(path)]
    path_variable = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path_variable}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"llama.cpp could not write {', '.join(spec['targets'])} (code {done.returncode}): {last}")


def _json(path: Path) -> HfConfig:
    return json.loads(path.read_text(encoding="utf-8"))
