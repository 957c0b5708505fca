"""Preference forms, bad records of every kind, and texts."""

import pytest
from test_pipeline_formats import FIELDS, assistant, user

from pipeline.formats.bad import BadRecord
from pipeline.formats.chat import as_chat
from pipeline.formats.ids import own_id
from pipeline.formats.kinds import kind_of, text_of
from pipeline.formats.preference import as_preference


def test_a_prompt_that_only_mentions_the_roles_stays_whole():
    prompt = "把下面的对话翻译成英文\n用户:你好\n助手:你好"
    assert as_chat({"prompt": prompt, "completion": "a"})["messages"][0] == user(prompt)


PAIR = {"prompt": [user("q")], "chosen": "c", "rejected": "r"}
PREFERENCES = {
    "minimind": ({"chosen": [user("q"), assistant("c")], "rejected": [user("q"), assistant("r")]}, PAIR),
    "llama-factory alpaca": ({"instruction": "q", "input": "", "chosen": "c", "rejected": "r"}, PAIR),
    "llama-factory old": ({"instruction": "q", "input": "", "output": ["c", "r"]}, PAIR),
    "llama-factory sharegpt": (
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "c"},
            "rejected": {"from": "gpt", "value": "r"},
        },
        PAIR,
    ),
    "trl strings": ({"prompt": "q", "chosen": "c", "rejected": "r"}, PAIR),
    "trl conversational": ({"prompt": [user("q")], "chosen": [assistant("c")], "rejected": [assistant("r")]}, PAIR),
    "ultrafeedback": (
        {"prompt": "q", "chosen": [user("q"), assistant("c")], "rejected": [user("q"), assistant("r")]},
        PAIR,
    ),
    "hh-rlhf": ({"chosen": "\n\nHuman: q\n\nAssistant: c", "rejected": "\n\nHuman: q\n\nAssistant: r"}, PAIR),
    "hh-rlhf with its prompt": (
        {"prompt": "\n\nHuman: q0\n\nAssistant: a0\n\nHuman: q\n\nAssistant:", "chosen": " c", "rejected": " r"},
        {"prompt": [user("q0"), assistant("a0"), user("q")], "chosen": " c", "rejected": " r"},
    ),
    "orca": (
        {"system_prompt": "s", "question": "q", "chosen": "c", "rejected": "r", "chosen_rating": 5},
        {**PAIR, "prompt": [{"role": "system", "content": "s"}, user("q")]},
    ),
    "implicit strings": (
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        {"prompt": [user("The sky is")], "chosen": "blue.", "rejected": "green."},
    ),
}


@pytest.mark.parametrize("name", PREFERENCES)
def test_preference_forms(name):
    record, expected = PREFERENCES[name]
    assert kind_of(record, FIELDS) == "preference"
    assert as_preference(record) == expected


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": [user("q")]}, "no_answer"),
        ({"messages": [user(""), assistant("a")]}, "empty_message"),
        ({"messages": [{"role": "wizard", "content": "q"}, assistant("a")]}, "unknown_role"),
        ({"messages": [user(3), assistant("a")]}, "wrong_type"),
        ({"messages": ["q", "a"]}, "wrong_type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, assistant("a")]},
            "not_text",
        ),
        ({"instruction": "q", "output": "a", "history": ["q0"]}, "wrong_type"),
        ([], "no_answer"),
    ],
)
def test_bad_chats_say_why(record, reason):
    with pytest.raises(BadRecord) as error:
        as_chat(record)
    assert error.value.reason == reason


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "the sea", "chosen": "the sea is", "rejected": "the sea was"}, "prompt_in_answers"),
        ({"prompt": "q", "completion": "a", "label": True}, "unpaired_answer"),
        ({"prompt": "q", "chosen": "c", "rejected": "r", "passage": "A boat lies here."}, "unused_field"),
        (
            {"prompt": "q", "chosen": [user("q1"), assistant("c")], "rejected": [user("q1"), assistant("r")]},
            "two_prompts",
        ),
        ({"prompt": "q", "chosen": [{**assistant("c"), "weight": 0}], "rejected": "r"}, "not_to_learn"),
        ({"prompt": "q", "chosen": "c", "rejected": "c "}, "same_answers"),
        ({"prompt": "q", "chosen": "c", "rejected": "r", "label": 0}, "two_values"),
        ({"prompt": "q", "chosen": "c", "rejected": "r", "margin": -1}, "two_values"),
        ({"prompt": "q", "chosen": "", "rejected": "r"}, "empty_message"),
        ({"chosen": "yes", "rejected": "no"}, "no_prompt"),
        ({"prompt": "q", "chosen": 1, "rejected": "r"}, "wrong_type"),
        (
            {"chosen": [user("q"), assistant("c"), user("x"), assistant("y")], "rejected": [user("q"), assistant("r")]},
            "not_one_answer",
        ),
    ],
)
def test_bad_preferences_say_why(record, reason):
    with pytest.raises(BadRecord) as error:
        as_preference(record)
    assert error.value.reason == reason


def test_texts_and_what_is_none():
    assert kind_of({"text": "x", "url": "u"}, FIELDS) == "text" and text_of({"content": "x"}, FIELDS) == "x"
    assert kind_of({"text": "x", "answer": "a"}, FIELDS) == "text"
    for record, reason in (
        ({"title": "x"}, "unknown_form"),
        (3, "not_an_object"),
        (None, "not_an_object"),
        ({"prompt": "q"}, "unknown_form"),
    ):
        with pytest.raises(BadRecord) as error:
            kind_of(record, FIELDS)
        assert error.value.reason == reason
    for record, reason in (
        ({"text": 3}, "wrong_type"),
        ({"text": " \n"}, "empty_text"),
        ({"text": None}, "empty_text"),
    ):
        with pytest.raises(BadRecord) as error:
            text_of(record, FIELDS)
        assert error.value.reason == reason


def test_own_id_takes_strings_and_integers():
    assert own_id({"id": 7}, ("id",)) == "7" and own_id({"uid": "a"}, ("id", "uid")) == "a"
    assert (
        own_id({"id": None}, ("id",)) is None and own_id({"id": True}, ("id",)) is None and own_id([], ("id",)) is None
    )
