"""Exam forms: each data set's fields give its items, what could be read in two ways is refused, nothing is dropped."""

import pytest

from pipeline.evaluation.forms import guarded_text, recognise
from pipeline.evaluation.gold import NotAnItem

Q = {"question": "Which one floats?"}
FOUR = ["cork", "iron", "lead", "stone"]
COLUMNS = dict(zip("ABCD", FOUR, strict=True))
CHOICES = [
    (Q | {"choices": {"text": FOUR, "label": ["A", "B", "C", "D"]}, "answerKey": "A"}, 0),
    (Q | {"choices": {"text": FOUR, "label": ["1", "2", "3", "4"]}, "answerKey": "1"}, 0),
    (Q | {"choices": {"text": FOUR, "label": ["1", "2", "3", "4"]}, "answerKey": 4}, 3),
    (Q | {"choices": {"text": [*FOUR, "ice"], "label": list("ABCDE")}, "answerKey": "E"}, 4),
    (Q | {"choices": {"text": FOUR, "label": list("DCBA")}, "answerKey": "A"}, 3),
    ({"question": {"stem": "q?", "choices": [{"text": t, "label": t} for t in "12"]}, "answerKey": "2"}, 1),
    ({"question_stem": "q?", "choices": {"text": FOUR, "label": list("ABCD")}, "answerKey": "D", "fact1": "f"}, 3),
    (Q | {"choices": FOUR, "answer": 1, "subject": "physics"}, 1),
    (Q | {"choices": str(FOUR), "answer": "3", "subject": "physics"}, 3),
    (Q | {"options": FOUR, "answer": "C", "article": "On floating."}, 2),
    (Q | {"options": COLUMNS, "answer": "lead", "answer_idx": "C"}, 2),
    (Q | COLUMNS | {"answer": "B"}, 1),
    ({"": 0, "Question": "q?", **COLUMNS, "Answer": "d"}, 3),
    ({"input": "q?", **COLUMNS, "target": "C"}, 2),
    (Q | COLUMNS | {"answer": 2, "Category": "law", "Human Accuracy": 0.4}, 1),
    (Q | {"option_a": "x", "option_b": "y", "option_c": "", "answer": "(B)"}, 1),
    ({"ctx": "A man lifts", "activity_label": "Lifting", "endings": FOUR, "label": "2"}, 2),
    ({"goal": "open it", "sol1": "push", "sol2": "pull", "label": 1}, 1),
    ({"sentence": "The _ fell.", "option1": "cup", "option2": "sky", "answer": "1"}, 0),
    (Q | {"context": "c", "answerA": "x", "answerB": "y", "answerC": "z", "label": "3"}, 2),
    ({"premise": "p", "choice1": "x", "choice2": "y", "question": "cause", "label": 0}, 0),
    (Q | {"correct_answer": "w", "distractor1": "x", "distractor2": "y", "distractor3": "z", "support": "s"}, 3),
    (Q | {"passage": "p", "answer": True}, 1),
    (Q | {"mc1_targets": {"choices": FOUR, "labels": [0, 0, 1, 0]}}, 2),
    ({"sentence_good": "They fly.", "sentence_bad": "They flies.", "UID": "x"}, 0),
]  # fmt: skip


def one(row):
    ((kind, item),) = recognise(row, "here:1", "mine")
    return kind, item


@pytest.mark.parametrize(("row", "correct"), CHOICES)
def test_each_forms_right_choice_is_found(row, correct):
    kind, item = one(row)
    assert (kind, item["correct"], item["set"], item["id"]) == ("choices", correct, "mine", "here:1")
    assert len(item["choices"]) > correct and guarded_text(item)


def test_what_a_question_is_about_is_kept():
    for field in ("context", "passage", "article", "support", "fact1"):
        assert one(Q | {field: "The sea.", "choices": FOUR, "correct": 0})[1]["context"] == "The sea."
        assert one(Q | {field: "The sea.", "answer": "cork"})[1]["context"] == "The sea."
    assert one({"ctx": "A man lifts", "activity_label": "Lifting", "endings": FOUR, "label": 0})[1]["question"] == (
        "Lifting: A man lifts"
    )
    assert "context" not in one(Q | {"context": "", "answer": "cork"})[1]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (Q | {"choices": {"text": FOUR, "label": list("ABCD")}, "answerKey": 1}, "from 0 or from 1"),
        (Q | {"choices": {"text": FOUR, "label": list("ABCD")}, "answerKey": "E"}, "none of the labels"),
        (Q | {"choices": {"text": FOUR, "label": list("ABC")}, "answerKey": "A"}, "4 choices have the labels"),
        (Q | {"choices": FOUR, "answer": "1"}, "from 0 or from 1"),
        (Q | {"choices": ["1", "2", "3"], "answer": "2", "subject": "x"}, "several"),
        (Q | {"choices": ["B", "A", "C"], "answer": "A"}, "several"),
        (Q | {"choices": FOUR, "answer": 4}, "does the file count from 1"),
        (Q | {"choices": FOUR, "answer": "A", "correct": 2}, "different choices"),
        (Q | {"choices": FOUR, "answer": True}, "must name one"),
        (Q | {"choices": FOUR, "label": 2}, "from 0 or from 1"),
        (Q | {"options": FOUR, "answer": 2}, "from 0 or from 1"),
        (Q | {"options": FOUR, "gold": 2}, "from 0 or from 1"),
        (Q | {"choices": FOUR}, "no answer"),
        (Q | COLUMNS | {"answer": 2}, "from 0 or from 1"),
        (Q | COLUMNS, "C-Eval keeps"),
        (Q | {"A": "x", "B": "y", "D": "z", "answer": "A"}, "missing"),
        (Q | COLUMNS | {"B": " ", "answer": "A"}, "blank"),
        ({"What is 2 + 2?": "x", "1": "y", "4": "z", "b": "B"}, "no heading"),
        ({"ctx": "c", "endings": FOUR, "label": ""}, "no label"),
        ({"goal": "g", "sol1": "a", "sol2": "b", "label": -1}, "no label"),
        (Q | {"answer": "B"}, "letter"),
        (Q | {"answer": "x", "context": "a", "passage": "b"}, "leave one"),
        (Q | {"answer": "x", "system": "Be brief."}, "system would change"),
        (Q | {"answer": "x", "few_shot": ["q a"]}, "few_shot would change"),
        (Q | {"choices": FOUR, "correct": 0, "image": {"bytes": ""}}, "image would change"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "history": [["x", "y"]]}, "history would change"),
        ({"instruction": "i", "input": "", "output": "o"}, "sft.sources"),
        ({"instruction": "i", "response": "o"}, "sft.sources"),
        (Q | {"choices": FOUR, "correct": 0, "hint": "wood"}, "hint would change"),
        (Q | {"context": [["title", ["text"]]], "answer": "x y"}, "no text in context"),
        ({"messages": [{"role": "user", "content": "q"}]}, "sft.sources"),
        ({"premise": "p", "hypothesis": "h", "label": 0}, "fields hypothesis, label, premise"),
    ],
)  # fmt: skip
def test_what_could_be_read_in_two_ways_or_is_not_used_is_refused_by_name(row, why):
    with pytest.raises(NotAnItem, match=why):
        one(row)


def test_answers_come_as_texts_numbers_and_lists():
    assert one(Q | {"answer": "Cork has air.\n#### 1,200"})[1]["number"] == "1,200"
    assert one(Q | {"answer": 42})[1]["number"] == "42"
    assert one(Q | {"answer": "-3.5"})[1]["number"] == "-3.5"
    assert "number" not in one(Q | {"answer": "in 1984"})[1]
    assert one(Q | {"context": "c", "answers": {"text": ["cork", "a cork"], "answer_start": [1, 2]}})[1][
        "keywords"
    ] == [["a cork", "cork"]]
    assert one(Q | {"answer": {"value": "Paris", "aliases": ["paris", "City"]}})[1]["keywords"] == [
        ["City", "Paris", "paris"]
    ]
    assert one(Q | {"answer": "{not a list"})[1]["answer"] == "{not a list"
    assert one({"input": "1 + 1", "target": "2"})[1]["number"] == "2"
    assert one({"id": None, "question": "q", "answer": "a", "choices": None})[0] == "answers"  # tables pad with nulls
