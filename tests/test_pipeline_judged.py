"""Answers with a verdict become pairs: KTO's rows, and lists of answers with scores."""

import json

import pytest

from pipeline.data.preference_records import read_preferences
from pipeline.data.records import Losses
from pipeline.formats.bad import BadRecord
from pipeline.formats.kto import as_judged
from pipeline.formats.preference import as_preference
from pipeline.running.peek import peek
from pipeline.sources import resolve


def turn(role, content):
    return {"role": role, "content": content}


def written(path, *rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return resolve([str(path)], "preference")


def row(answer, label, prompt="q"):
    return {"prompt": prompt, "completion": answer, "label": label}


@pytest.mark.parametrize(
    "record",
    [
        row("a", True),
        {"prompt": [turn("user", "q")], "completion": [turn("assistant", "a")], "label": True},
        {"messages": [turn("user", "q"), turn("assistant", "a")], "kto_tag": "true"},
        {"instruction": "q", "input": "", "output": "a", "kto_tag": 1},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "label": True},
    ],
    ids=["trl", "trl turns", "llama-factory openai", "llama-factory alpaca", "sharegpt"],
)
def test_every_form_of_a_judged_answer_has_one_normal_form(record):
    assert as_judged(record) == {"prompt": [turn("user", "q")], "answer": "a", "label": True}


def test_good_and_bad_answers_of_a_prompt_become_pairs_and_the_rest_is_counted(tmp_path):
    rows = [
        *[row("good 1", True), row("lone", True, "other"), row("bad 1", False), row("bad 2", False), row("bad 3", 0)],
        *[row("good 2", "true"), row("never", False, "third"), row("same", True, "4"), row("same", False, "4")],
        {"prompt": "q", "chosen": "c", "rejected": "r"},
        row("x", "perhaps"),
    ]
    losses, sources = Losses(), written(tmp_path / "kto.jsonl", *rows)
    assert peek(sources, "preference", 0.1) == []
    pairs = list(read_preferences(sources, max_bad_share=0.5, losses=losses))
    assert [(p["chosen"], p["rejected"], p["line"]) for p in pairs] == [
        ("c", "r", 10),
        ("good 1", "bad 1", 1),
        ("good 2", "bad 2", 6),
        ("good 1", "bad 3", 1),
    ]
    assert all(p["prompt"] == [turn("user", "q")] and "label" not in p for p in pairs)
    assert losses.dropped == {"unpaired_answer": 2, "same_answers": 1, "turn_weight": 1} and losses.seen == 11
    told = {s["line"]: s["why"] for s in losses.samples if s["rule"] == "unpaired_answer"}
    assert told[2] == "labelled true, and its prompt has no answer labelled false" and "labelled false" in told[7]


def test_answers_of_one_source_never_meet_those_of_another(tmp_path):
    sources = [*written(tmp_path / "a.jsonl", row("good", True)), *written(tmp_path / "b.jsonl", row("bad", False))]
    losses = Losses()
    assert list(read_preferences(sources, losses=losses)) == [] and losses.dropped == {"unpaired_answer": 2}


def answers(field, *scores):
    return [{"response": f"a{i}", field: score, "critique": "…", "model": "m"} for i, score in enumerate(scores)]


def test_the_best_and_the_worst_of_a_scored_list_are_a_pair_with_their_margin():
    ultra = {"source": "evol", "instruction": "q", "models": ["m"] * 3, "correct_answers": ["None"]}
    made = as_preference({**ultra, "completions": answers("overall_score", 6.0, 8.5, 3.0)})
    assert made == {"prompt": [turn("user", "q")], "chosen": "a1", "rejected": "a2", "margin": 5.5}
    assert as_preference({"prompt": "q", "completions": answers("rating", "4", "5")})["chosen"] == "a1"
    for wrong, reason in (
        (answers("overall_score", 2, 2), "tie"),
        (answers("rating", "N/A", "5"), "no_scores"),
        ([{"rating": 1, "response": " "}, {"rating": 2, "response": "a"}], "empty_message"),
    ):
        with pytest.raises(BadRecord) as error:
            as_preference({"prompt": "q", "completions": wrong})
        assert error.value.reason == reason
