"""A sweep: shared upstream stages, failed children, the table, the page, and its place in MLflow."""

import sqlite3
from pathlib import Path

import pytest
from conftest import MICRO
from pages_helpers import EVIL, Page

from flows.sweep import Child, axes, default_metric, rank
from pipeline.pages.sweep.page import effect, page


def test_children_share_stages_and_a_failed_one_stops_no_other(lab, swept):
    assert [c["state"] for c in swept["children"]] == ["done", "done", "failed", "failed"]
    good, bad = swept["children"][:2], swept["children"][2:]
    assert all(c["values"]["ingest.sources"] == str(lab.good) and c["clean.docs_out"] > 0 for c in good)
    assert sorted(c["stages"]["ingest"] for c in good) == ["cached", "ran"] and {
        c["stages"]["clean"] for c in good
    } == {"ran"}
    assert all("max_bad_share" in c["error"] and c["clean.docs_out"] is None for c in bad)


def test_a_sweep_again_costs_nothing_and_shows_a_table(lab, swept):
    again = lab(
        "sweep",
        MICRO,
        f"ingest.sources={lab.good}",
        "clean.max_spam_density=0.5,1000",
        "--until",
        "clean",
        "--metric",
        "clean.docs_out",
    ).stdout
    assert again.count("0 ran, 2 from cache") == 2 and "clean.docs_out" in again
    html = Path(swept["page"]).read_text()
    assert "<svg" in html and "max_bad_share" in html and "http" not in html.replace("http://www.w3.org", "")


def test_mlflow_has_the_sweep_with_its_children_below(lab, swept):
    with sqlite3.connect(lab.path / "mlflow" / "mlflow.db") as database:
        query = (
            "select key, value, run_uuid from tags where run_uuid in (select run_uuid from tags where key = 'sweep' and"
            " value = ?)"
        )
        tags: dict[str, dict[str, str]] = {}
        for key, value, run in database.execute(query, [swept["sweep"]]):
            tags.setdefault(run, {})[key] = value
        numbers = database.execute("select run_uuid, value from metrics where key = 'clean.docs_out'").fetchall()
    parent = next(run for run, found in tags.items() if found["pipeline.part"] == "sweep")
    children = {run for run, found in tags.items() if found.get("mlflow.parentRunId") == parent}
    assert swept["mlflow"]["parent_run_id"] == parent and len(tags) == 5
    assert {c["run_id"] for c in swept["children"] if c["run_id"]} == {tags[run]["pipeline.run_id"] for run in children}
    assert children == {run for run, _ in numbers} & tags.keys()


def test_every_problem_is_told_before_anything_runs(lab):
    refused = lab(
        "sweep",
        MICRO,
        "pretrain.stpes=3,4",
        "clean.max_spam_density=wide,0.5",
        "nonsense",
        "--until",
        "nowhere",
        "--metric",
        "loss",
        code=2,
    )
    for word in ("did you mean steps", "max_spam_density", "nonsense", "nowhere", "--metric loss"):
        assert word in refused.stderr
    assert "Traceback" not in refused.stderr
    assert "nothing to compare" in lab("sweep", MICRO, "pretrain.steps=3", code=2).stderr
    assert "comes after" in lab("sweep", MICRO, "clean.max_spam_density=1,2", "--until", "clean", code=2).stderr


def test_values_are_parted_outside_brackets_and_quotes_only():
    assert axes(["a.b=1e-3,3e-3", 'c.d=["x,y", "z"],[]', "e.f='1,2'", "g.h={a = 1, b = 2}"]) == {
        "a.b": ["1e-3", "3e-3"],
        "c.d": ['["x,y", "z"]', "[]"],
        "e.f": ["'1,2'"],
        "g.h": ["{a = 1, b = 2}"],
    }


@pytest.mark.parametrize(
    ("overrides", "until", "metric"),
    [
        (["pretrain.optim.lr=1,2", "sft.epochs=2,4"], None, "sft.val_loss"),
        (["pretrain.steps=1,2", "sft.epochs=2"], None, "pretrain.val_loss"),
        (["clean.x=1,2"], None, "pretrain.val_loss"),
        (["pretrain.steps=1,2", "dpo.beta=1,2"], "sft", "pretrain.val_loss"),
    ],
)
def test_the_default_metric_is_of_the_last_swept_training_stage(overrides, until, metric):
    assert default_metric(overrides, until) == metric


def test_ranking_knows_which_way_is_better_and_puts_failures_last(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {i}, "val_loss": {3 / i}}}\n' for i in range(1, 9)))
    rows = [
        Child({"pretrain.optim.lr": lr, "pretrain.seed": seed}, "done", value, curve=str(tmp_path / "metrics.jsonl"))
        for lr, seed, value in (("1e-4", "1", 2.5), ("1e-2", "1", None), ("3e-3", "1", 2.0), ("1e-3", "<b>", 3.0))
    ]
    assert [c.value for c in rank(rows, "pretrain.val_loss")] == [2.0, 2.5, 3.0, None]
    assert [c.value for c in rank(rows, "evaluate.choices")] == [3.0, 2.5, 2.0, None]
    html = page("sweep", "pretrain.val_loss", rank(rows, "pretrain.val_loss"))
    Page(html).is_whole_and_alone()
    assert html.count("<circle") >= 3 and "log10" in html and html.count("<polyline") >= 3 and "&lt;b&gt;" in html
    assert effect([], [], "x") is None
    failed = [Child({"a.b": EVIL}, "failed", error=EVIL), Child({"a.b": "1"}, "not run")]
    Page(page(EVIL, EVIL, failed)).is_whole_and_alone()
