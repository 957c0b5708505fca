"""The report is a stage of its own: rewording it costs no evaluation, and it is made from what was published."""

import json
import tomllib

from conftest import ROOT
from pages_helpers import Page

from flows import dag
from model.generation.judge import share
from pipeline.config.evaluation import ReportSection
from pipeline.config.resources import Resources
from storage.store import Artifact, Store
from tasks.report import report
from tasks.running.inputs import several
from tasks.running.seeds import siblings
from tasks.running.stage import Stage


def test_the_pages_are_in_the_key_of_the_report_alone():
    stages = [value for value in vars(dag).values() if isinstance(value, Stage)]
    reaching = {stage.name for stage in stages if any(path.startswith("pipeline/pages/") for path in stage.code())}
    assert len(stages) > 12 and reaching == {"report"}


def test_a_report_reaches_no_page_but_its_own():
    assert {path.split("/")[2] for path in report.code() if path.startswith("pipeline/pages/")} == {"report", "parts"}


def test_every_file_that_a_page_needs_is_shipped():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["pipeline"]
    shipped = {path for pattern in patterns for path in (ROOT / "pipeline").glob(pattern)}
    needed = {
        path for path in (ROOT / "pipeline" / "pages").rglob("*") if path.suffix in (".j2", ".css", ".html", ".md")
    }
    assert len(needed) > 8 and needed <= shipped


def test_it_is_made_from_the_scores_and_the_models_training(tmp_path):
    def artifact(stage, **files):
        path = tmp_path / stage
        (path / "_run").mkdir(parents=True)
        for name, text in files.items():
            (path / name.replace("__", "/")).with_suffix(".jsonl" if name != "scores" else ".json").write_text(text)
        return Artifact(stage, "k", "d", path)

    asked = {"set": "heldout", "lang": "en", "question": "What is a token?", "answer": "a unit"}
    row = {"place": 0, "bits_per_byte": None, "answers": {"heldout": {"all": share([True, False])}}, "choices": {}}
    scores = json.dumps({"base": {**row, "preferences": {}}})
    answers = json.dumps({**asked, "said": {"base": "a unit"}, "right": {"base": True}})
    scored = artifact("evaluate", scores=scores, answers=answers)
    base = artifact("pretrain", _run__metrics='{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n')
    out = tmp_path / "out"
    out.mkdir()
    found = report.fn(ReportSection(samples=1), scored, several(base), on=Resources(), out=out, report=None)
    assert found == {"models": 1, "scores": 1, "samples": 1}
    page = Page((out / "report.html").read_text())
    page.is_whole_and_alone()
    assert "What is a token?" in page.words and page.words.count("pretrain") == 1 and "50.0 %" in page.words
    assert "What is a token?" in (out / "report.md").read_text()


def test_runs_that_differ_by_training_seeds_alone_are_siblings(tmp_path):
    store = Store(tmp_path)

    def publish(stage, key, kind, section, inputs=(), **metrics):
        store.partial(stage, key)
        given = [{"name": "x", "stage": one.stage, "key": one.key, "digest": one.digest} for one in inputs]
        facts = {"kind": kind, "metrics": metrics, "identity": {"section": section, "code": {}, "libs": {}}}
        record = {"inputs": given, "sources": [], "created": "2026", "run": "r", **facts}
        return store.publish(stage, key, record)

    def scored(key, choices, seed=0, steps=9, items=0):
        base = publish("pretrain", key * 32, "model", {"steps": steps, "seed": seed})
        return publish("evaluate", key * 32, "scores", {"seed": items}, [base], **{"base.choices": choices})

    one, *_ = scored("a", 0.5), scored("b", 0.6, seed=1), scored("c", 0.9, steps=8), scored("d", 0.9, items=1)
    found = siblings(store, one)
    assert found and [run["base.choices"] for run in found.scores] == [0.5, 0.6] and found.digest
    assert siblings(store, scored("e", 0.7, seed=2)).digest != found.digest  # one run more: another page
    assert siblings(store, Artifact("evaluate", "c" * 32, "d", tmp_path)) is None
    assert siblings(store, Artifact("evaluate", "f" * 32, None, tmp_path)).digest is None
