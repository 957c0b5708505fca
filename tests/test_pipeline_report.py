"""The evaluation report: what it says, what it marks, and that nothing in it is fetched, run or taken for markup."""

import json

import pytest
from pages_helpers import EVIL, Page

from model.generation.judge import share
from pipeline.pages.parts.charts import Group, Interval, bars, histogram, lines
from pipeline.pages.parts.curves import read_curves
from pipeline.pages.report.page import write_report
from pipeline.pages.report.preferences import judging
from pipeline.pages.report.scores import comparison, pick_samples


def preference(right, margin):
    low, high = margin - 1, margin + 1
    return {
        **share([True] * right + [False] * (40 - right), 0.5),
        "margin": margin,
        "margin_low": low,
        "margin_high": high,
    }


def model(place, right, bits):
    whole = [True] * right + [False] * (40 - right)
    answers = {"all": share(whole), "zh": share([True] * 5), "en": share([False] * 5)}
    return {
        "place": place,
        "bits_per_byte": {"value": bits, "bytes": 1000, "tokens": 300},
        "answers": {"training": answers},
        "choices": {name: share(whole, 0.25) for name in ("all", "overlap.in_distribution")},
        "preferences": {name: preference(right, 0.5) for name in ("all", "overlap.clean", "overlap.overlapping")},
    }


@pytest.fixture
def scored(tmp_path):
    scores = {
        "sft": model(1, 30, 2.5),
        "base": model(0, 10, 2.0),
        "dpo": {**model(2, 34, 2.25), "against_reference": {"all": preference(22, 3.0)}},
    }
    said, right = {"base": "", "sft": "词元是单位", "dpo": EVIL + "\ud800"}, {"base": False, "sft": True, "dpo": False}
    sets = [("training", "zh"), ("heldout", "zh"), ("heldout", "en"), ("heldout", "en")]
    answers = [
        {
            "id": f"{i}",
            "set": s,
            "lang": lang,
            "question": f"问 {i} {EVIL}",
            "answer": EVIL,
            "said": said,
            "right": right,
        }
        for i, (s, lang) in enumerate(sets)
    ]
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(a) + "\n" for a in answers))
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 3.5}\n{"step": 2, "loss": 2.5}\n{"step": 2, "val_loss": 2}\n{broken\n'
    )
    write(tmp_path)
    return tmp_path


def write(place):
    curves = {"pretrain": place / "metrics.jsonl", "sft": place / "none.jsonl"}
    return write_report(place, place, title="A & B", curves=curves, samples=2)


def cells(place):
    """The Markdown table: cells by label."""
    lines = [line for line in (place / "report.md").read_text().splitlines() if line.startswith("| ")]
    return {line.split(" | ")[0].strip("| "): line.rstrip(" |").split(" | ")[1:] for line in lines}


def test_the_page_is_whole_and_fetches_and_runs_nothing(scored):
    page = Page((scored / "report.html").read_text())
    page.is_whole_and_alone()
    assert "<title>A &amp; B</title>" in page.text
    assert page.tags.count("polyline") == 2  # training and held-out loss of the one stage that has a curve
    assert "pretrain" in page.text and page.words.count(EVIL.split()[0]) >= 2


def test_what_models_said_is_text_in_markdown_too(scored):
    text = (scored / "report.md").read_text()
    assert "<script" not in text.replace("\\<script", "") and "\\<script\\>" in text


def test_models_stand_in_order_with_differences_and_how_many_were_asked(scored):
    rows = cells(scored)
    assert rows[""] == ["base", "sft", "dpo"]
    assert rows["Bits per byte of held-out text"][1] == "2.500 (+0.500) <sub>1,000 bytes</sub>"
    assert rows["Multiple choice (in-distribution)"][1].startswith("75.0 % (+50.0) <sub>")
    assert rows["Multiple choice (in-distribution)"][1].endswith(", n = 40</sub>")
    page = (scored / "report.html").read_text()
    assert page.index(">base<") < page.index(">sft<") < page.index(">dpo<")
    assert '<span class="down">+0.500</span>' in page  # more bits are worse
    assert '<span class="up">+50.0</span>' in page


def test_every_percentage_says_of_how_many(scored):
    for label, row in cells(scored).items():
        assert all("n = " in cell for cell in row if "%" in cell), label
    page = Page((scored / "report.html").read_text())
    assert page.text.count("n = 40") >= 3 * 3


def test_scores_no_better_than_guessing_are_marked(scored):
    rows = cells(scored)
    assert rows["Multiple choice (in-distribution)"][0].startswith("25.0 %, no better than guessing")
    assert rows["Preference accuracy"][0].startswith("25.0 %, worse than guessing")
    reward = rows["Reward accuracy against the sft model"]
    assert reward[:2] == ["–", "–"] and "no better than guessing" in reward[2]
    assert rows["Reward margin against the sft model (nats)"][2].startswith("+3.00 <sub>+2.00 to +4.00, n = 40")
    assert "no better than guessing" not in rows["Multiple choice (in-distribution)"][1]
    assert '<span class="badge warn">no better than guessing</span>' in (scored / "report.html").read_text()


def test_scores_say_how_their_questions_overlap_with_training(scored):
    rows = list(cells(scored))
    assert "Multiple choice (in-distribution)" in rows
    at = rows.index("Preference accuracy")
    assert rows[at + 1 : at + 3] == ["&nbsp;&nbsp;clean", "&nbsp;&nbsp;overlapping"]


def test_a_score_that_no_model_has_is_left_out():
    lone = {**model(0, 20, 2.0), "bits_per_byte": None, "preferences": {}, "choices": {}, "answers": {}}
    assert comparison([lone]) == []
    lone["answers"] = {"odd": {"all": share([True])}}
    assert [row.label for row in comparison([lone])] == ["Questions of “odd” answered correctly"]


def test_the_same_scores_give_the_same_bytes(scored):
    before = [(scored / name).read_bytes() for name in ("report.html", "report.md")]
    assert write(scored) == {"models": 3, "scores": 10, "samples": 2}
    assert before == [(scored / name).read_bytes() for name in ("report.html", "report.md")]


def test_samples_are_held_out_and_of_every_language():
    kinds = [("training", "zh")] + [("heldout", "zh")] * 3 + [("heldout", "en")] * 9
    answers = [{"set": s, "lang": lang, "n": i} for i, (s, lang) in enumerate(kinds)]
    chosen = pick_samples(answers, 4)
    assert [a["lang"] for a in chosen] == ["zh", "zh", "en", "en"]
    assert all(a["set"] == "heldout" for a in chosen)
    assert pick_samples(answers[:1], 4) == answers[:1]
    assert pick_samples([], 4) == []


def test_curves_take_what_is_torn_repeated_or_no_number(tmp_path):
    lines = [
        '{"step": 2, "loss": 9}',
        '{"step": 1, "loss": 3}',
        "[]",
        '{"step": 2, "loss": 2}',
        '{"step": 3, "loss": NaN}',
    ]
    lines += ['{"step": true, "loss": 1}', '{"step": 4}', '{"step": 5, "lo']
    (tmp_path / "metrics.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xff\n")
    assert read_curves(tmp_path / "metrics.jsonl", ("loss", "val_loss")) == {"loss": [(1, 3), (2, 2)], "val_loss": []}
    assert read_curves(tmp_path / "none.jsonl", ("loss",)) == {"loss": []}


def test_charts_take_what_is_missing_or_not_finite():
    assert lines([("a", [(0, float("nan"))])], "t", "x") is None
    drawn = lines([("a", [(0, 1.0), (1, 1.0), (2, float("inf"))])], "t", "x")
    assert drawn is not None and len(drawn.curves[0].points.split()) == 2
    half = Interval(0.5, 0.4, 0.6, 5, 10)
    marks = bars([Group("a", [None, half], 0.25)], ["one", "two"], "t").marks
    assert [mark.shape for mark in marks].count("rect") == 1 and any("5 of 10" in mark.tip for mark in marks)
    assert histogram([0, 0.5, 1], [0, 0], 0.5, "t", "pairs").marks


def test_the_page_tells_how_answers_were_judged_and_shows_pairs(scored):
    own = scored / "own"
    share = {"share": 0.75, "low": 0.6, "high": 0.86, "n": 40}
    (own / "_run").mkdir(parents=True)
    (own / "_run" / "accuracy.json").write_text(json.dumps({"accuracy": share, "longer_wins": share | {"share": 0.5}}))
    (own / "stats.json").write_text(json.dumps({"docs_in": 1200, "docs_out": 300, "dropped": {"tie": 900}}))
    pair = {"prompt": [{"role": "user", "content": "q?"}], "chosen": "right", "rejected": EVIL, "scores": [1.0, -0.25]}
    (own / "records.jsonl").write_text(json.dumps(pair) + "\n" + json.dumps(pair | {"chosen": "second"}) + "\n")
    assert judging(None, None, 3) is None
    write_report(scored, own, curves={}, samples=1, judged=judging(own, own, 1))
    page = Page((own / "report.html").read_text())
    page.is_whole_and_alone()
    for told in ("length alone", "75.0%", "left out: tie", "1,200", "better 1", "worse -0.25"):
        assert told in page.words, told
    assert "second" not in page.words
    text = (own / "report.md").read_text()
    assert "better answer scores higher" in text and "## Preferences" in text
    assert "Preferences" not in (scored / "report.md").read_text()


def test_it_tells_what_forms_cost_and_how_far_seeds_move_scores(scored):
    exam = {"n": 40, "share": 0.5}
    lost = {**exam, "difference": -0.1, "low": -0.15, "high": -0.05}
    costs = {
        "fp32": {"bytes": 4_000_000, "bits_per_byte": 2.0, "tokens_per_second": 100.0, "exams": {"cmmlu": exam}},
        "int4": {"bytes": 1_000_000, "bits_per_byte": 2.01, "kl": 0.02, "same_top": 0.9, "exams": {"cmmlu": lost}},
        "gguf-q8_0": {"bytes": 2_000_000, "why": "llama.cpp is not installed"},
    }
    (scored / "costs.json").write_text(json.dumps(costs))
    seeds = [{"sft.bits_per_byte": 2.0 + i / 10, "sft.choices": 0.5, "sft.choices.chance": 0.25} for i in range(3)]
    write_report(scored, scored, curves={}, costs=scored / "costs.json", seeds=seeds)
    page = Page((scored / "report.html").read_text())
    page.is_whole_and_alone()
    rows = cells(scored)
    assert rows["int4"][:2] == ["1.00 <sub>25%</sub>", "2.0100 <sub>+0.0100</sub>"]
    assert rows["int4"][-1] == "50.0 % (-10.0) <sub>-15.0 to -5.0, n = 40</sub>"
    assert '<span class="down">-10.0</span>' in page.text and "llama.cpp is not installed" in page.words
    assert rows["Bits per byte of held-out text"][1] == "2.100 <sub>2.000 to 2.200, ± 0.100, 3 runs</sub>"
    assert rows["Multiple choice"] == ["–", "50.0 % <sub>50.0 to 50.0, ± 0.0, 3 runs</sub>", "–"]
