"""What an answer earns, and what cannot be earned by breaking something else."""

import math
from itertools import combinations

import pytest

from model.rewards.functions import REWARDS, Said, answer_of, pass_at, rewards, total


def problem(answer="42", question="What is 40 + 2?", lang="en", **more):
    messages = [{"role": "user", "content": question}]
    return {"messages": messages, "answer": answer, "lang": lang, "task": "t", "id": "1", **more}


def said(text, ended=True, tokens=10, limit=0):
    return Said(text, tokens, ended, 100, limit)


def earned(name, text, of=None, **how):
    return REWARDS[name](of or problem(), said(text, **how))


@pytest.mark.parametrize(
    "text, answer, right",
    [
        ("42", "42", 1), ("The answer is 42.", "42", 1), ("40 + 2 = 42", "42", 1), ("43", "42", 0), ("", "42", 0),
        ("<think>40+2=41</think><answer>42</answer>", "42", 1), ("<think>42</think><answer>41</answer>", "42", 0),
        ("<answer>41</answer><answer>42</answer>", "42", 0), ("<answer>42", "42", 0), ("42</answer>", "42", 0),
        ("<think>it is 42", "42", 0), ("half of 84\n#### 42", "42", 1), ("#### 1,042", "1042", 1), ("-5", "-5", 1),
        ("5", "-5", 0), ("3.50", "3.5", 1), ("pmal", "pmal", 1), ("Pmal.", "pmal", 1), ("pmal lamp", "pmal", 0),
        ("Answer: pmal", "pmal", 1), ("答案：果苹", "果苹", 1), ("果苹", "苹果", 0), ("l-a-m-p", "l-a-m-p", 1),
        ("1 2 3", "1 2 3", 1), ("1  2\n3", "1 2 3", 1), ("3 2 1", "1 2 3", 0), ("anything", "", 0),
    ],
)  # fmt: skip
def test_only_the_right_answer_is_exact(text, answer, right):
    assert earned("exact", text, problem(answer)) == right


@pytest.mark.parametrize("name", ["exact", "format", "language", "keywords"])
def test_an_answer_that_was_cut_off_or_forges_a_turn_earns_nothing(name):
    of = problem(keywords=[["42"]])
    good = "<think>40 and 2</think><answer>42</answer>"
    assert earned(name, good, of) == 1
    assert earned(name, good, of, ended=False) == 0
    assert earned(name, good + "<|im_start|>", of) == 0


@pytest.mark.parametrize(
    "text, well",
    [
        ("<think>a</think><answer>b</answer>", 1), ("<think>\na\n</think>\n<answer>\nb\n</answer>\n", 1),
        ("<answer>b</answer>", 0), ("<think>a</think>b", 0), ("<think></think><answer>b</answer>", 0),
        ("<think>a</think><answer></answer>", 0), ("x<think>a</think><answer>b</answer>", 0),
        ("<think>a</think><answer>b</answer>x", 0), ("<think>a</think><answer>b</answer><answer>b</answer>", 0),
        ("<answer>b</answer><think>a</think>", 0), ("<think>a<answer>b</answer></think>", 0), ("", 0),
    ],
)  # fmt: skip
def test_the_form_has_each_tag_once_and_nothing_beside(text, well):
    assert earned("format", text) == well


def test_length_is_free_up_to_the_limit_and_falls_to_minus_one():
    of = problem()
    at = [REWARDS["length"](of, said("x", tokens=n, limit=60)) for n in (1, 60, 80, 100, 130)]
    assert at == [0, 0, -0.5, -1, -1]
    assert REWARDS["length"](of, said("x", tokens=100)) == 0 and REWARDS["length"](of, said("x", ended=False)) == -1


@pytest.mark.parametrize(
    "question, lang, answer, text, own",
    [
        ("四十加二等于多少？", "zh", "42", "42", 1),
        ("四十加二等于多少？", "zh", "42", "答案是42", 1),
        ("四十加二等于多少？", "zh", "42", "the answer is 42", 0),
        ("四十加二等于多少？", "zh", "42", "<think>四十加二</think><answer>42</answer>", 1),
        ("四十加二等于多少？", "zh", "42", "<think>forty and two</think><answer>42</answer>", 0),
        ("把单词 lamp 倒过来写。", "zh", "pmal", "pmal", 1),
        ("把单词 lamp 倒过来写。", "zh", "pmal", "倒过来是 pmal", 1),
        ("把单词 lamp 倒过来写。", "zh", "pmal", "reversed it reads pmal", 0),
        ("What is 40 + 2?", "en", "42", "It is 42", 1),
        ("What is 40 + 2?", "en", "42", "答案是42", 0),
        ("What is 40 + 2?", "en", "42", "It is 42 对", 0),
        ("What does 苹果 mean?", "en", "apple", "苹果 is an apple", 1),
        ("What is 40 + 2?", "en", "42", "  ", 0),
    ],
)  # fmt: skip
def test_an_answer_is_in_the_questions_language(question, lang, answer, text, own):
    assert earned("language", text, problem(answer, question, lang)) == own


def test_keywords_of_the_question_are_no_achievement():
    of = problem("", "Name a fruit and a colour, not red.", keywords=[["apple", "pear"], ["red"], ["blue", "green"]])
    assert earned("keywords", "An APPLE is green", of) == 1
    assert earned("keywords", "red red pear", of) == 0.5
    assert earned("keywords", of["messages"][0]["content"], of) == 0
    assert earned("keywords", "<think>apple green</think>nothing", of) == 0
    assert earned("keywords", "x") == 0


def test_rewards_add_up_with_their_weights():
    weights = {"exact": 1.0, "format": 0.25, "length": 0.5}
    parts = rewards(problem(), Said("<think>a</think><answer>42</answer>", 80, True, 100, 60), weights)
    assert parts == {"exact": 1.0, "format": 1.0, "length": -0.5} and total(parts, weights) == 1.0


def test_no_format_is_worth_more_than_a_right_answer_in_a_broken_one_loses():
    """With the usual weights the best that can be had without the right answer is below what the right answer has."""
    weights = {"exact": 1.0, "format": 0.1, "language": 0.1}
    wrong = ["<think>a</think><answer>41</answer>", "41", "答案是41", "<answer>42</answer>" * 9, "42 " * 60 + "41"]
    best = max(total(rewards(problem(), said(text), weights), weights) for text in wrong)
    assert best < total(rewards(problem(), said("42"), weights), weights)


@pytest.mark.parametrize("right, of, k", [(0, 8, 4), (1, 8, 4), (3, 8, 4), (8, 8, 4), (3, 8, 8), (5, 8, 1)])
def test_pass_at_k_is_the_share_of_all_choices_of_k_answers(right, of, k):
    chosen = list(combinations([True] * right + [False] * (of - right), k))
    assert math.isclose(pass_at(k, right, of), sum(map(any, chosen)) / len(chosen), abs_tol=1e-12)


def test_an_answer_without_marks_is_all_that_was_said():
    assert answer_of("<think>hm</think>\n\n7") == "7" and answer_of("so\n#### 7 apples") == "7 apples"
