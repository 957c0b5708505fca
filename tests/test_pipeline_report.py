import json
from html.parser import HTMLParser

import pytest

from model.generation.judge import share
from pipeline.pages.report import pick_samples, write_report
from pipeline.pages.svg import bars, lines

EVIL = '<script>alert("x")</script> | pipe'


def preference(right, margin):
    return {
        **share([True] * right + [False] * (40 - right), 0.5),
        "margin": margin,
        "margin_low": margin - 1,
        "margin_high": margin + 1,
    }


def model(place, right, bits):
    return {
        "place": place,
        "bits_per_byte": {"value": bits, "bytes": 1000, "tokens": 300},
        "answers": {
            "training": {
                "all": share([True] * right + [False] * (40 - right)),
                "zh": share([True] * 5),
                "en": share([False] * 5),
            }
        },
        "choices": {
            name: share([True] * right + [False] * (40 - right), 0.25) for name in ("all", "overlap.in_distribution")
        },
        "preferences": {name: preference(right, 0.5) for name in ("all", "overlap.clean", "overlap.overlapping")},
    }


@pytest.fixture
def scored(tmp_path):
    scores = {
        "sft": model(1, 30, 2.5),
        "base": model(0, 10, 2.0),
        "dpo": {**model(2, 34, 2.25), "against_reference": {"all": preference(22, 3.0)}},
    }
    said = {"base": "", "sft": "词元是单位", "dpo": EVIL}
    right = {"base": False, "sft": True, "dpo": False}
    answers = [
        {
            "id": f"{i}",
            "set": s,
            "lang": lang,
            "question": f"问 {i} <b>",
            "answer": "a",
            "keywords": [],
            "said": said,
            "right": right,
        }
        # fmt: skip
        for i, (s, lang) in enumerate([("training", "zh"), ("heldout", "zh"), ("heldout", "en"), ("heldout", "en")])
    ]
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(a) + "\n" for a in answers))
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 3.5}\n{"step": 2, "loss": 2.5}\n{"step": 3, "val_loss": 2}\n{broken\n'
    )
    write_report(
        tmp_path,
        title="A & B",
        facts={"preset": "tiny"},
        curves={"pretrain": tmp_path / "metrics.jsonl", "sft": tmp_path / "none.jsonl"},
        samples=2,
    )
    return tmp_path


class Balance(HTMLParser):
    """Fails on tags that do not close each other, and collects addresses."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.scripts = [], [], 0

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_fetches_and_runs_nothing(scored):
    page = (scored / "report.html").read_text()
    check = Balance()
    check.feed(page)
    assert (check.open, check.links, check.scripts) == ([], [], 0)
    assert "<title>A &amp; B</title>" in page
    assert "prefers-color-scheme: dark" in page
    assert page.count("<svg") == 2  # bars, and the one curve that exists


def test_models_stand_in_order_with_differences_and_chance(scored):
    text = (scored / "report.md").read_text()
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:5]]
        for line in text.splitlines()
        if line.startswith("| ")
    }
    assert rows[""] == ["base", "sft", "dpo"]
    assert rows["Bits per byte of held-out text"][1].startswith("2.500 (+0.500)")
    assert rows["Multiple choice (in-distribution)"][0].startswith("25.0%, at chance")
    assert rows["Multiple choice (in-distribution)"][1].startswith("75.0% (+50.0) <sub>")
    assert rows["Preference accuracy"][0].startswith("25.0%, below chance")
    assert rows["Reward accuracy against the sft model"] == ["–", "–", rows["Reward accuracy against the sft model"][2]]
    assert "at chance" in rows["Reward accuracy against the sft model"][2]
    assert rows["Reward margin against the sft model (nats)"][2].startswith("+3.00 <sub>+2.00 to +4.00")
    page = (scored / "report.html").read_text()
    assert page.index(">base<") < page.index(">sft<") < page.index(">dpo<")
    assert "at chance" in page
    assert '<span class="down">+0.500</span>' in page  # more bits are worse
    assert '<span class="up">+50.0</span>' in page


def test_the_same_scores_give_the_same_bytes(scored):
    before = [(scored / name).read_bytes() for name in ("report.html", "report.md")]
    write_report(
        scored,
        title="A & B",
        facts={"preset": "tiny"},
        curves={"pretrain": scored / "metrics.jsonl", "sft": scored / "none.jsonl"},
        samples=2,
    )
    assert before == [(scored / name).read_bytes() for name in ("report.html", "report.md")]


def test_samples_are_held_out_and_of_every_language():
    answers = [
        {"set": s, "lang": lang, "n": i}
        for i, (s, lang) in enumerate([("training", "zh")] + [("heldout", "zh")] * 3 + [("heldout", "en")] * 9)
    ]
    chosen = pick_samples(answers, 4)
    assert [a["lang"] for a in chosen] == ["zh", "zh", "en", "en"]
    assert all(a["set"] == "heldout" for a in chosen)
    assert pick_samples(answers[:1], 4) == answers[:1]
    assert pick_samples([], 4) == []


def test_plots_take_what_is_missing_or_not_finite():
    assert lines([("a", [(0, float("nan"))])], "t", "x") == ""
    assert "polyline" in lines([("a", [(0, 1.0), (1, 1.0), (2, float("inf"))])], "t", "x")
    drawn = bars([("a <b>", [None, (0.5, 0.4, 0.6)], 0.25)], ["one", "two"], "t")
    assert drawn.count("<rect") == 1
    assert "a &lt;b&gt;" in drawn


def test_scores_say_how_their_questions_overlap_with_training(scored):
    rows = [
        line.split("|")[1].strip() for line in (scored / "report.md").read_text().splitlines() if line.startswith("|")
    ]
    assert "Multiple choice (in-distribution)" in rows
    at = rows.index("Preference accuracy")
    assert rows[at + 1 : at + 3] == ["&nbsp;&nbsp;clean", "&nbsp;&nbsp;overlapping"]
