import json
from types import SimpleNamespace

import pytest

from pipeline.config.evaluation import EvaluateSection
from pipeline.evaluation.exams import exam_items, read_exams, sample, write_exams
from pipeline.sources import resolve

FACT = {
    "questions": ["什么是词元？", "词元指什么？", "解释词元。", "词元有什么用？"],
    "heldout": ["一句话说明词元。", "谈谈词元。"],
    "answer": "词元是文本的最小单位。",
    "keywords": [["最小"], ["单位"]],
    "rejected": "词元是一种优化器。",
    "reason": "wrong_fact：不是优化器",
    "choices": ["优化器", "文本的最小单位", "层", "损失"],
    "correct": 1,
}


def source(path, *rows, name="mine"):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    )
    return SimpleNamespace(name=name, files=[SimpleNamespace(relpath=path.name, location=str(path))])


def test_a_fact_gives_questions_choices_and_a_preference(tmp_path):
    items, skipped = read_exams([source(tmp_path / "f.jsonl", {"id": "tok-1", "topic": "t", "zh": FACT, "en": FACT})])
    assert not skipped
    assert [a["set"] for a in items["answers"]] == (["training"] * 4 + ["heldout"] * 2) * 2
    assert items["choices"][0]["correct"] == 1
    assert (items["preferences"][0]["prompt"], items["preferences"][0]["reason"]) == ("一句话说明词元。", "wrong_fact")
    assert len({item["id"] for kind in items.values() for item in kind}) == 16


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "choices": ["a", "b", "c"], "correct": 2},
        {"question": "q", "choices": ["a", "b", "c"], "answer": "C"},
        {"question": "q", "choices": {"text": ["x", "y", "z"], "label": ["A", "B", "C"]}, "answerKey": "C"},
        {"prompt": "q", "choices": ["a", "b", "right"], "answer": "right"},
    ],
)
def test_the_right_choice_may_be_named_in_many_ways(row, tmp_path):
    items, _ = read_exams([source(tmp_path / "f.jsonl", row)])
    assert items["choices"][0]["correct"] == 2
    assert items["choices"][0]["set"] == "mine"


def test_users_questions_and_preferences_are_read(tmp_path):
    items, _ = read_exams([source(tmp_path / "f.jsonl", {"prompt": "问", "completion": "答案"}, {"question": "q", "keywords": ["a", ["b", "c"]]},
                                  {"prompt": "p", "chosen": "a", "rejected": "b", "lang": "fr"})])  # fmt: skip
    assert [(a["lang"], a["keywords"], a["answer"]) for a in items["answers"]] == [
        ("zh", [], "答案"),
        ("en", [["a"], ["b", "c"]], ""),
    ]
    assert items["preferences"][0]["lang"] == "fr"


def test_what_is_no_item_is_skipped_with_its_line(tmp_path):
    bad = [
        "{broken",
        "[1]",
        {"question": "q"},
        {"question": "", "answer": "a"},
        {"question": "q", "choices": ["a"], "correct": 0},
        {"question": "q", "choices": ["a", "b"], "correct": 7},
        {"question": "q", "keywords": [[]]},
        {"prompt": "p", "chosen": "a", "rejected": 3},
        # fmt: skip
        {"zh": {"questions": 3}},
        {"question": "q", "choices": ["a", "b"], "answer": None},
        "[" * 100_000,
    ]
    given = source(tmp_path / "f.jsonl", *bad, {"question": "q", "answer": "fine"})
    counts = write_exams(EvaluateSection(), [given], tmp_path / "out")
    assert counts == {"choices": 0, "answers": 1, "preferences": 0, "skipped": len(bad)}
    lines = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [line["line"] for line in lines] == list(range(1, len(bad) + 1))
    assert all(line["why"] and line["path"] == "f.jsonl" for line in lines)
    with pytest.raises(ValueError, match=r"f\.jsonl:1"):
        write_exams(EvaluateSection(), [source(tmp_path / "f.jsonl", *bad)], tmp_path / "out")


def test_a_sample_keeps_order_and_does_not_change():
    items = [{"id": f"i{i}"} for i in range(50)]
    one = sample(items, 10, 0)
    assert one == sample(list(items), 10, 0)
    assert len(one) == 10
    assert one == [item for item in items if item in one]
    assert one != sample(items, 10, 1)
    assert set(map(str, sample(items, 5, 0))) < set(map(str, one))
    assert sample(items, 0, 0) == []


def test_the_teaching_set_is_complete_and_asks_decontaminate_only_what_was_not_taught():
    sources = resolve(["teaching"], "exam")
    items, skipped = read_exams(sources)
    assert not skipped
    assert len(items["choices"]) >= 100
    held = exam_items(sources)
    taught = {item["question"] for item in items["answers"] if item["set"] == "training"}
    assert held
    assert not taught & {item["text"] for item in held}
