"""Problems for reinforcement learning: made by generators, read from files of any form, and nothing lost."""

import json
from itertools import islice

import pytest
from token_helpers import tokenizer_dir

from pipeline.config.cleaning import DecontaminateSection
from pipeline.config.rl import RlSection
from pipeline.config.tree import ConfigError, load
from pipeline.data.problem_records import read_problems
from pipeline.data.records import Losses
from pipeline.data.screen import screen
from pipeline.formats.bad import BadRecord
from pipeline.formats.problem import as_problem, final_answer
from pipeline.problems import generators
from pipeline.problems.arithmetic import arithmetic_chats, arithmetic_texts
from pipeline.problems.settings import ProblemSettings
from pipeline.sources import resolve
from pipeline.tokens.problems import encode_problems

USER = {"role": "user", "content": "What is 40 + 2?"}
ASK = [USER]

FORMS = {
    "question and answer": ({"question": "What is 40 + 2?", "answer": "42"}, ASK, "42"),
    "number": ({"question": "What is 40 + 2?", "answer": 42}, ASK, "42"),
    "gsm8k": ({"question": "What is 40 + 2?", "answer": "40 + 2 = <<40+2=42>>42\n#### 42"}, ASK, "42"),
    "MATH": ({"problem": "What is 40 + 2?", "solution": "So $\\boxed{\\frac{84}{2}}$."}, ASK, "\\frac{84}{2}"),
    "alpaca": (
        {"instruction": "Add.", "input": "40 2", "answer": "42"},
        [{"role": "user", "content": "Add.\n40 2"}],
        "42",
    ),
    "open-instruct": ({"messages": ASK, "ground_truth": "42", "dataset": "gsm8k"}, ASK, "42"),
    "verl": (
        {"prompt": ASK, "reward_model": {"style": "rule", "ground_truth": "42"}, "data_source": "x", "ability": "math"},
        ASK,
        "42",
    ),
    "TRL": ({"prompt": "What is 40 + 2?", "solution": "42"}, ASK, "42"),
    "chat without an answer": ({"messages": ASK}, ASK, ""),
    "sharegpt": ({"conversations": [{"from": "human", "value": "What is 40 + 2?"}], "answer": "42"}, ASK, "42"),
    "MiniMind, empty answer": ({"conversations": [USER, {"role": "assistant", "content": ""}]}, ASK, ""),
    "MiniMind, 无": ({"conversations": [USER, {"role": "assistant", "content": "无"}]}, ASK, ""),
    "system": (
        {"system": "Be brief.", "question": "What is 40 + 2?", "answer": "42"},
        [{"role": "system", "content": "Be brief."}, USER],
        "42",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_question_and_the_final_answer(name):
    record, messages, answer = FORMS[name]
    found = as_problem(record)
    assert (found["messages"], found["answer"], found["lang"]) == (messages, answer, "en")


def test_several_targets_are_keywords_and_so_are_given_ones():
    targets = as_problem({"conversations": [USER, {"role": "assistant", "content": ""}], "gt": ["42", "forty-two"]})
    assert targets["answer"] == "" and targets["keywords"] == [["42"], ["forty-two"]]
    assert as_problem({"question": "Name a fruit.", "keywords": [["apple", "pear"], "ripe"]})["keywords"] == [
        ["apple", "pear"],
        ["ripe"],
    ]
    assert as_problem({"question": "四十加二等于多少？", "answer": "42"})["lang"] == "zh"


BAD = {
    "answered": {"messages": [USER, {"role": "assistant", "content": "42"}]},
    "unknown_form": {"text": "42"},
    "not_an_object": ["42"],
    "a_pair": {"prompt": "a", "chosen": "b", "rejected": "c"},
    "tools": {"messages": ASK, "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
    "no_question": {"messages": [{"role": "system", "content": "Be brief."}]},
    "unused_field": {"question": "q?", "answer": "a", "passage": "It says that the answer is hidden here."},
    "wrong_type": {"question": "q?", "answer": {"value": 1}},
    "no_answer": {"question": "q?", "answer": "\\boxed{4"},
}


@pytest.mark.parametrize("reason", BAD)
def test_what_is_no_problem_is_refused_by_reason(reason):
    with pytest.raises(BadRecord) as error:
        as_problem(BAD[reason])
    assert error.value.reason == reason


def test_a_field_that_is_named_to_be_left_out_is():
    assert as_problem(BAD["unused_field"], ("passage",))["answer"] == "a"


def test_the_final_answer_of_a_worked_one_is_found():
    assert final_answer("a\n#### 1,000") == "1,000" and final_answer("\\boxed{1} then \\boxed{a_{2}}") == "a_{2}"
    assert final_answer(" 7 ") == "7"


SETTINGS = ProblemSettings(tuple(generators.TASKS), (1, 2), 40, 20, 3)


def test_made_problems_follow_from_the_seed_and_held_out_ones_are_in_no_training_data():
    rows = list(read_problems(SETTINGS, []))
    assert rows == list(read_problems(SETTINGS, []))
    assert rows != list(read_problems(ProblemSettings(SETTINGS.tasks, (1, 2), 40, 20, 4), []))
    asked = {split: {r["messages"][0]["content"] for r in rows if r["split"] == split} for split in ("train", "val")}
    assert len(asked["train"]) == 5 * 40 and len(asked["val"]) == 5 * 20 and not asked["train"] & asked["val"]
    chats = {chat["messages"][0]["content"] for chat in arithmetic_chats()}
    lines = [line for text in islice(arithmetic_texts(), 300) for line in text["text"].split("\n")]
    said = {line[: line.index(mark) + 1] for line in lines for mark in "？。" if f"{mark} " in line}
    assert len(said) > 1_000 and not asked["val"] & (chats | said)
    assert asked["train"] & chats
    assert {r["lang"] for r in rows} == {"zh", "en"}


@pytest.mark.parametrize("task", generators.TASKS)
def test_made_answers_are_right(task):
    for lang in generators.LANGS:
        for level in generators.LEVELS:
            for one in generators.made(task, lang, level, 10, 1, held=True):
                assert right(task, one.question, one.answer, lang), one


def right(task, question, answer, lang):
    """Whether an answer is right, found out in another way than it was made."""
    numbers = [int(n) for n in "".join(c if c.isdigit() else " " for c in question).split()]
    if task == "chain_sum":
        signs = [1] + [{"+": 1, "-": -1}[c] for c in question if c in "+-"]
        return sum(s * n for s, n in zip(signs, numbers, strict=True)) == int(answer)
    if task == "comparison":
        return int(answer) == (max if "largest" in question or "最大" in question else min)(numbers)
    if task == "sorting":
        down = "large to small" in question or "大到小" in question
        return [int(n) for n in answer.split()] == sorted(numbers, reverse=down)
    letters = answer.split()
    if task == "reverse":
        return " ".join(letters[::-1]) in question
    return "".join(letters) in question.split() or "".join(letters) in question


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_the_stage_keeps_counts_and_shows_every_record(tmp_path):
    rows = [{"question": f"What is {i} + {i}?", "answer": f"#### {2 * i}"} for i in range(60)]
    rows[7] = {"messages": [USER, {"role": "assistant", "content": "42"}]}
    sources = resolve([write(tmp_path / "gsm.jsonl", rows)], "problem")
    exam = {"set": "exam", "id": "1", "text": "What is 9 + 9?"}
    settings = ProblemSettings(("comparison",), (1,), 10, 6)

    def read(*given, **options):
        return read_problems(settings, *given, **options)

    counts = screen(DecontaminateSection(action="drop"), read, sources, [exam], tmp_path / "out")
    kept = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert counts["docs_out"] == len(kept) == 16 + 60 - 1 - 1
    assert "What is 9 + 9?" not in {row["messages"][0]["content"] for row in kept}
    dropped = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert {(row["rule"], row["line"]) for row in dropped} == {("answered", 8), ("contaminated", 10)}
    held = [row for row in kept if row["split"] == "val" and row["source"] == "gsm.jsonl"]
    assert 0 < len(held) <= 6 and {row["task"] for row in held} == {"gsm.jsonl"}


def test_a_source_of_mostly_bad_records_is_an_error(tmp_path):
    path = write(tmp_path / "bad.jsonl", [{"text": "x y"}] * 5 + [{"question": "q", "answer": "a"}] * 5)
    with pytest.raises(ValueError, match="5 of 10 records cannot be used as problem data"):
        list(read_problems(SETTINGS, resolve([path], "problem"), losses=Losses()))


def encoded(tmp_path, rows, **fields):
    cfg = RlSection(**{"tasks": ["comparison"], **fields})
    return encode_problems(
        type(tmp_path)(write(tmp_path / "records.jsonl", rows)), tokenizer_dir(), tmp_path / "data", cfg
    )


def record(question, answer="1", split="train", **more):
    place = {"source": "s", "path": "p", "line": 1, "id": "1"}
    return {"messages": [{"role": "user", "content": question}], "answer": answer, "lang": "en", "task": "t"} | (
        {"split": split, **place, **more}
    )


def test_problems_that_cannot_be_tried_are_left_out_and_counted(tmp_path):
    rows = [record("a?"), record("b?", split="val"), record("c " * 500), record("d?", answer="")]
    counts = encoded(tmp_path, rows)
    assert counts["problems_train"] == counts["problems_val"] == 1 and counts["dropped"] == 2
    assert counts["dropped_too_long"] == 1
    assert counts["notes"] == ["2 of 4 problems left out: 1 nothing_to_judge_by, 1 too_long"]
    assert len((tmp_path / "data" / "dropped.jsonl").read_text().splitlines()) == 2
    assert encoded(tmp_path, rows, rewards={"format": 1.0})["dropped"] == 1
    with pytest.raises(ValueError, match=r"2 of 4 problems cannot be tried: .*rl\.max_dropped"):
        encoded(tmp_path, rows, max_dropped=0.1)
    with pytest.raises(ValueError, match="no problems that are held out"):
        encoded(tmp_path, rows[:1])


WRONG = {
    'rl.tasks=["sums"]': "no task sums; tasks are chain_sum",
    "rl.rewards={ exakt = 1.0 }": "no reward exakt",
    "rl.rewards={ exact = 0.0 }": "every reward weighs 0",
    "rl.levels=[4]": "levels are 1, 2, 3",
    "rl.num_generations=1": "compares answers of one prompt",
    "rl.delta=1.1": "must exceed 1 \\+ epsilon",
    "rl.min_pass_rate=0.5": "need filter_samples",
    "rl.max_completion_length=5000": "more than the model reads \\(pretrain.model.max_seq_len = 512\\)",
    "rl.rewards={ gym = 1.0 }": "reasoning-gym alone",
    "rl.rewards={ model = 1.0 }": "rl.rewards  reward model needs the stage reward",
    "sft.sources=[]": "rl.tasks  problems are answered by a chat model",
}


@pytest.mark.parametrize("override", WRONG)
def test_what_is_wrong_is_said_before_anything_runs(override):
    from tasks.running.sources import asked

    with pytest.raises(ConfigError, match=WRONG[override]):
        asked("tiny", ['rl.tasks=["chain_sum"]', "dpo.sources=[]", override])


def test_a_file_of_another_kind_is_told_by_name(tmp_path):
    from tasks.running.sources import asked

    path = write(tmp_path / "chats.jsonl", [{"messages": [USER, {"role": "assistant", "content": "42"}]}] * 3)
    with pytest.raises(ConfigError, match=r"rl\.sources  chats\.jsonl: no record .* problems.*line 1: answered"):
        asked("tiny", [f"rl.sources={path}"])


def test_reasoning_gym_is_asked_for_by_its_install_line_where_it_is_absent(monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "reasoning_gym" else real(name, *a)
    )
    with pytest.raises(
        ConfigError, match=r"reasoning_gym:chain_sum needs .*pip install \"full-pipeline\[reasoning-gym\]\""
    ):
        load("tiny", ["rl.tasks=reasoning_gym:chain_sum"])


def test_a_run_that_does_not_ask_for_rl_has_neither_of_its_stages():
    from tasks.running.sources import given

    assert given(load("tiny")).problems is None
    inputs = given(load("tiny", ["rl.tasks=chain_sum,spelling"]))
    other = given(load("tiny", ["rl.tasks=chain_sum,spelling", "rl.heldout=7"]))
    assert inputs.problems and other.problems and inputs.problems.digest != other.problems.digest
    assert [source["name"] for source in inputs.problems.describe()] == ["chain_sum", "spelling"]
