"""The model card: README.md of a published model, from what lineage, evaluation and quantisation say, nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TypeAlias

from pipeline.config.evaluation import ExportSection
from pipeline.release.weights import HfConfig

_LANGUAGE = re.compile(r"[a-z]{2,3}")
_LIMITS = (
    "A small model states wrong things fluently. It knows what its sources say and little else; it has had no safety"
    " training beyond them. Scores within their interval of chance say nothing. It reads at most {window} tokens."
)

Facts: TypeAlias = dict[str, Any]
"""What is known of a model, a source or a form by name: numbers, texts and the like of ``scores.json`` and lineage."""


def model_card(cfg: ExportSection, config: HfConfig, parameters: int, facts: Facts) -> str:
    """README.md of the published model, with Hugging Face's front matter.

    ``facts`` may hold ``sources`` {name: {files, bytes, digest, stage}}, ``stages`` {name: {digest, section}} from last
    to first, ``scores`` (scores.json of the evaluation) and ``costs`` (costs.json of the rounded forms); what it lacks
    is left out.
    """
    scores, costs = facts.get("scores") or {}, facts.get("costs") or {}
    row = max(scores.values(), key=lambda one: one.get("place", 0), default={})
    lines = [
        *_front(cfg, row, costs),
        f"# {cfg.title or 'A model of full-pipeline'}",
        "",
        f"{_shape(config, parameters)} Made by full-pipeline from raw text.",
        f"Licence: {cfg.licence}."
        if cfg.licence
        else "No licence is stated (`export.licence`): ask before you use it.",
        "",
        *_use(cfg, costs),
        *_exams(row),
        *_forms(costs),
        *_sources_table(facts.get("sources") or {}),
        *_stages_table(facts.get("stages") or {}),
        "## Limits",
        "",
        _LIMITS.format(window=config["max_position_embeddings"]),
        "",
    ]
    return "\n".join(lines)


def _front(cfg: ExportSection, row: Facts, costs: Facts) -> list[str]:
    languages = sorted({part for _, table in _tables(row) for part in table if _LANGUAGE.fullmatch(part)} - {"all"})
    tags = ["full-pipeline", *(["gguf"] if any(name.startswith("gguf-") for name in costs) else [])]
    return [
        "---",
        *([f"language: [{', '.join(languages)}]"] if languages else []),
        "library_name: transformers",
        "pipeline_tag: text-generation",
        f"tags: [{', '.join(tags)}]",
        *([f"license: {cfg.licence}"] if cfg.licence else []),
        "---",
        "",
    ]


def _use(cfg: ExportSection, costs: Facts) -> list[str]:
    files = [f"gguf-{kind}/model-{kind}.gguf" for kind in (n.removeprefix("gguf-") for n in costs if "gguf-" in n)]
    files += [f"model-{cfg.gguf}.gguf"] if cfg.gguf != "off" else []
    lines = [
        "## Use",
        "",
        "With transformers, in this folder:",
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
        "With vLLM, as an OpenAI-compatible server: `vllm serve .`",
        "",
    ]
    if own := [name for name in costs if name in ("int8", "int4")]:
        lines += [
            f"The folder{'s' if len(own) > 1 else ''} {' and '.join(f'`{name}`' for name in own)} of the rounded forms"
            " open the same way (transformers needs `compressed-tensors`).",
            "",
        ]
    if files:
        lines += [
            f"With llama.cpp: `llama-server -m {files[0]}`; from Python (`pip install cyllama`):",
            "",
            "```python",
            "from cyllama import chat",
            "",
            'question = [{"role": "user", "content": "什么是语言模型？"}]',
            f'print(chat(question, model_path="{files[0]}", temperature=0.0, max_tokens=64))',
            "```",
            "",
        ]
    if files and "/" in files[0]:
        lines += [f"With Ollama: `ollama create my-model -f {files[0].rpartition('/')[0]}/Modelfile`", ""]
    return lines


def _tables(row: Facts, prefix: str = "") -> Iterator[tuple[str, Facts]]:
    """Every table of shares in a model's scores, by name, whatever the exams are."""
    for name, value in row.items():
        if not isinstance(value, dict):
            continue
        if isinstance(value.get("all"), dict) and "share" in value["all"]:
            yield f"{prefix}{name}", value
        else:
            yield from _tables(value, f"{prefix}{name}, ")


def _exams(row: Facts) -> list[str]:
    """Scores with their 95 % intervals and what guessing gives."""
    rows = []
    for name, table in _tables(row):
        for part, cell in table.items():
            if isinstance(cell, dict) and cell.get("asked"):
                chance = f"{cell['chance']:.1%}" if cell.get("chance") is not None else ""
                what = name if part == "all" else f"{name}, {part}"
                interval = f"{cell['low']:.1%} to {cell['high']:.1%}"
                rows.append(f"| {what} | {cell['share']:.1%} | {interval} | {chance} | {cell['asked']} |")
    for name, exam in (row.get("exams") or {}).items():
        if own := (exam.get("measures") or {}).get(exam["headline"]):
            shots = f", {exam['shots']} examples" if exam["shots"] else ""
            chance = f"{exam['chance']:.1%}" if exam.get("chance") else ""
            interval = f"{own['low']:.1%} to {own['high']:.1%}"
            what = f"{name} ({exam['headline']}{shots})"
            rows.append(f"| {what} | {own['value']:.1%} | {interval} | {chance} | {exam['n']} |")
    bits = row.get("bits_per_byte")
    told = [f"Bits per byte of held-out text: {bits['value']:.4f}.", ""] if bits else []
    if not rows:
        return ["## Scores", "", *told] if told else []
    head = ["| exam | score | 95 % interval | by chance | items |", "|---|---:|---:|---:|---:|"]
    return ["## Scores", "", *told, *head, *rows, ""]


def _forms(costs: Facts) -> list[str]:
    if len(costs) < 2:
        return []
    told = "Against fp32 on the CPU that made them; exams: share, and points gained with a 95 % interval."
    return ["## Rounded forms", "", told, "", *forms_table(costs)]


def forms_table(costs: Facts) -> list[str]:
    """A Markdown table of what each form costs against the model in fp32."""
    exams = list(dict.fromkeys(name for cost in costs.values() for name in cost.get("exams", {})))
    head = ["form", "MB", "bits/byte", "KL (nats)", "same token", "tokens/s", *exams]
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for name, cost in sorted(costs.items(), key=lambda one: -one[1]["bytes"]):
        cells = [name, f"{cost['bytes'] / 1e6:.2f}"]
        for what, form in (
            ("bits_per_byte", "{:.4f}"), ("kl", "{:.5f}"), ("same_top", "{:.1%}"), ("tokens_per_second", "{:.0f}"),
        ):  # fmt: skip
            cells.append(form.format(cost[what]) if what in cost else "")
        cells += [_difference(cost.get("exams", {}).get(exam)) for exam in exams]
        lines.append(f"| {' | '.join(cells)} |")
    why = [f"Not measured: {name} ({cost['why']})." for name, cost in costs.items() if cost.get("why")]
    return [*lines, "", *([*why, ""] if why else [])]


def _difference(share: Facts | None) -> str:
    if share is None:
        return ""
    if "difference" not in share:
        return f"{share['share']:.1%}"
    low, middle, high = (f"{100 * share[part]:+.1f}" for part in ("low", "difference", "high"))
    return f"{share['share']:.1%} ({middle}, {low} to {high})"


def _shape(config: HfConfig, parameters: int) -> str:
    return (
        f"A {parameters / 1e6:.1f}M-parameter decoder ({config['architectures'][0]}: "
        f"{config['num_hidden_layers']} layers, width {config['hidden_size']}, "
        f"{config['num_attention_heads']} heads, vocabulary {config['vocab_size']})."
    )


def _sources_table(sources: dict[str, Facts]) -> list[str]:
    if not sources:
        return []
    rows = [
        f"| {name} | {s.get('stage', '')} | {s.get('files', '')} | {s.get('bytes', 0):,} |"
        f" `{str(s.get('digest', ''))[:12]}` |"
        for name, s in sorted(sources.items())
    ]
    return ["## Made from", "", "| source | read by | files | bytes | digest |", "|---|---|---:|---:|---|", *rows, ""]


def _stages_table(stages: dict[str, Facts]) -> list[str]:
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


def _settings(path: str, value: object) -> list[str]:
    """``section.key = value`` lines, the grammar that ``pipeline run`` takes."""
    if isinstance(value, dict):
        return [line for name, inner in value.items() for line in _settings(f"{path}.{name}", inner)]
    return [f"{path} = {json.dumps(value, ensure_ascii=False)}"]
