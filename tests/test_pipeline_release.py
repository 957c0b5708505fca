"""Rounded forms with what they cost, as the quantize stage makes them, and the model card that tells of them."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from token_helpers import FACTS, documents, taught_dir, tokenizer_dir, write_shards

from model.quantized.load import open_model
from pipeline.config.evaluation import ExportSection
from pipeline.config.release import QuantizeSection
from pipeline.config.resources import Resources
from pipeline.config.tokens import EncodeSection
from pipeline.config.tree import ConfigError, load
from pipeline.release.export import export
from pipeline.release.forms import FORMS
from pipeline.tokens.encode import encode_text
from tasks.quantize import make_forms

WANTED = ["int8", "int4", "gguf:f16", "gguf:q8_0", "gguf:q4_k_m"]


class Notes:
    """A stage's report that keeps what it was told."""

    def __init__(self):
        self.lines = []

    def note(self, text):
        self.lines.append(text)

    def training(self, metrics):
        pass


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The taught model in WANTED forms: ``out``, ``metrics``, ``notes``."""
    root = tmp_path_factory.mktemp("forms")
    for split in ("train", "val"):
        write_shards(root / "shards", documents()[:6], split=split)
    encode_text(EncodeSection(), root / "shards", tokenizer_dir(), root / "tokens")
    exams = root / "exams"
    exams.mkdir()
    known = list(FACTS)
    answers = [
        {"id": q, "set": "heldout", "lang": "en", "question": q, "keywords": [[FACTS[q]]], "answer": FACTS[q]}
        for q in known
    ]
    choices = [
        {"id": q, "set": "c", "lang": "en", "question": q, "choices": [FACTS[q], FACTS[known[0]] + "x"], "correct": 0}
        for q in known
    ]
    for name, rows in (("answers", answers), ("choices", choices)):
        (exams / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cfg = QuantizeSection(forms=WANTED, calibration_tokens=512, bits_tokens=1000, kl_tokens=500, speed_tokens=8)
    notes = Notes()
    texts = {"tokens": str(root / "tokens"), "exams": str(exams)}
    out = root / "out"
    metrics = make_forms(cfg, taught_dir(), texts, on=Resources(workers=1, threads=1), out=out, report=notes)
    return SimpleNamespace(
        out=out, metrics=metrics, notes=notes.lines, costs=json.loads((out / "costs.json").read_text())
    )


def test_each_form_has_its_cost_beside_it(made):
    costs = made.costs
    assert set(costs) == {"fp32", "int8", "int4", "gguf-f16", "gguf-q8_0", "gguf-q4_k_m"}
    for name, cost in costs.items():
        assert cost["tokens_per_second"] > 0 and cost["exams"]["heldout"]["n"] == cost["exams"]["choices"]["n"] == 4
        assert cost["bits_per_byte"] == pytest.approx(costs["fp32"]["bits_per_byte"], rel=0.2)
        assert ("kl" in cost) == (name != "fp32")
    assert costs["gguf-f16"]["kl"] < 1e-5 < costs["int8"]["kl"] < costs["int4"]["kl"]
    assert costs["gguf-f16"]["kl"] < costs["gguf-q8_0"]["kl"] < costs["gguf-q4_k_m"]["kl"] < 1
    assert costs["int8"]["same_top"] > 0.9 and costs["gguf-f16"]["exams"]["heldout"]["difference"] == 0
    assert costs["int4"]["bytes"] < costs["int8"]["bytes"] < costs["fp32"]["bytes"] / 2
    assert made.metrics["int8.kl"] == costs["int8"]["kl"] and made.metrics["gguf-q8_0.heldout.difference"] == 0
    assert any("15 of 15 matrices do not divide into the blocks of q4_k_m" in line for line in made.notes)


def test_each_form_is_whole_and_nothing_else_is_left(made):
    names = {path.relative_to(made.out).as_posix() for path in made.out.rglob("*") if path.is_file()}
    assert {n for n in names if n.startswith("gguf-q8_0/")} == {"gguf-q8_0/model-q8_0.gguf", "gguf-q8_0/Modelfile"}
    assert not [n for n in names if n.endswith((".tmp", ".pt", ".bin", ".pkl"))]
    assert {"int8/model.safetensors", "int8/tokenizer.json", "int8/config.json", "costs.json"} <= names
    assert open_model(made.out / "int4").config.layers == 2


def test_where_llama_cpp_is_missing_its_columns_say_so(made, tmp_path):
    from model import measure

    sizes = {"bits_tokens": 60, "kl_tokens": 40, "seq_len": 16, "speed_tokens": 2, "max_new_tokens": 4, "batch": 2}
    sizes["exam_items"] = 0
    form = {"name": "gguf-q8_0", "path": str(made.out / "gguf-q8_0" / "model-q8_0.gguf"), "bytes": 7}
    spec = {"model": str(taught_dir()), "out": str(tmp_path), "text": str(tmp_path / "t.txt"), "forms": [form]}
    spec["settings"] = sizes
    (tmp_path / "t.txt").write_text("The tokenizer splits a text into pieces. 分词器把文本切成词元。" * 3)
    code = (
        "import sys, json; sys.modules['cyllama'] = None; sys.path.insert(0, '.');"
        "import importlib.util as u; find = u.find_spec;"
        "u.find_spec = lambda name, *a: None if name == 'cyllama' else find(name, *a);"
        f"from model import measure; measure.run(json.loads({json.dumps(json.dumps(spec))}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(measure.__file__).parent.parent)
    costs = json.loads((tmp_path / "costs.json").read_text())
    assert costs["gguf-q8_0"]["bytes"] == 7 and "full-pipeline[gguf-run]" in costs["gguf-q8_0"]["why"]
    assert set(costs["gguf-q8_0"]) == {"bytes", "why"} and costs["fp32"]["bits_per_byte"] > 0


def test_the_card_tells_scores_costs_and_how_to_run_it_and_its_snippets_run(made, tmp_path):
    cell = {"share": 0.5, "low": 0.3, "high": 0.7, "chance": 0.25, "asked": 40}
    row = {
        "place": 1,
        "bits_per_byte": {"value": 1.25},
        "choices": {"all": cell, "zh": cell},
        "answers": {"mine": {"all": cell}},
    }
    facts = {"scores": {"base": {"place": 0}, "dpo": row}, "costs": made.costs}
    (tmp_path / "gguf-f16").symlink_to(made.out / "gguf-f16")
    export(ExportSection(verify=False, max_new_tokens=8), taught_dir(), tmp_path, facts=facts)
    card = (tmp_path / "README.md").read_text()
    assert "| choices, zh | 50.0% | 30.0% to 70.0% | 25.0% | 40 |" in card and "1.2500" in card
    assert "language: [zh]" in card and "No licence is stated" in card and "license:" not in card
    assert re.search(r"\| gguf-q8_0 \| 0\.13 \| [\d.]+ \| [\d.]+ \| [\d.]+% \| \d+ \| 100\.0% \(\+0\.0, ", card)
    assert "vllm serve ." in card and "ollama create my-model -f gguf-f16/Modelfile" in card
    snippets = re.findall(r"```python\n(.*?)```", card, re.S)
    assert len(snippets) == 2
    for snippet in snippets:
        said = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True)
        assert said.returncode == 0 and said.stdout.strip(), said.stderr


def test_a_card_of_which_nothing_is_known_says_nothing(tmp_path):
    export(ExportSection(verify=False, licence="mit"), taught_dir(), tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "license: mit" in card
    assert not [word for word in ("## Scores", "## Rounded", "language:", "llama.cpp", "Ollama") if word in card]


def test_forms_that_cannot_be_made_are_told_before_anything_runs(tmp_path):
    assert load("tiny", ['quantize.forms=["int8", "gguf:q4_k_m"]']).quantize.forms == ["int8", "gguf:q4_k_m"]
    with pytest.raises(ConfigError, match=r"quantize\.forms\.0 .*'int8', 'int4', 'gguf:f32'"):
        load("tiny", ['quantize.forms=["q4_k_m"]'])
    with pytest.raises(ConfigError, match="int8 is there twice"):
        load("tiny", ['quantize.forms=["int8", "int8"]'])
    with pytest.raises(ConfigError, match="RoPE scaling yarn with beta_fast"):
        stretched = ["rope_factor=2", "rope_original_len=64", "rope_beta_fast=8"]
        load("tiny", ['quantize.forms=["gguf:f16"]', *(f"pretrain.model.{option}" for option in stretched)])
    with pytest.raises(ConfigError, match=r"rows of a multiple of 32, and this model has rows of 176; take gguf:f16"):
        load("tiny", ['quantize.forms=["gguf:f16", "gguf:q8_0"]', "pretrain.model.ffn=176"])
    assert set(QuantizeSection.model_json_schema()["properties"]["forms"]["items"]["enum"]) == set(FORMS)
