"""Every record form that the field's projects document comes out in one normal form; what cannot is refused with a
reason."""

import json

import pytest

from pipeline.formats import BadRecord, as_chat, as_preference, kind_of, own_id, text_of

FIELDS = ("text", "content")


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


QA = [user("q"), assistant("a")]
CHATS = {
    "messages": ({"messages": QA}, QA),
    "bare array": (QA, QA),
    "sharegpt": ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, QA),
    "sharegpt system": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
        [{"role": "system", "content": "s"}, *QA],
    ),
    "minimind": ({"conversations": QA}, QA),
    "minimind reasoning": (
        {"conversations": [user("q"), {**assistant("a"), "reasoning_content": "why"}]},
        [user("q"), assistant("<think>\nwhy\n</think>\n\na")],
    ),
    "alpaca": ({"instruction": "i", "input": "x", "output": "a"}, [user("i\nx"), assistant("a")]),
    "alpaca history": (
        {"instruction": "q", "input": "", "output": "a", "system": "s", "history": [["q0", "a0"]]},
        [{"role": "system", "content": "s"}, user("q0"), assistant("a0"), *QA],
    ),
    "alpaca beside its rendering": ({"instruction": "q", "input": "", "output": "a", "text": "Below is…"}, QA),
    "gpt_teacher": ({"prompt": "q", "completion": "a"}, QA),
    "gpt_teacher folded": (
        {"prompt": "q0\n助手:a0\n用户:q", "completion": "a"},
        [user("q0"), assistant("a0"), *QA],
    ),
    "gpt_teacher full-width colon": (
        {"prompt": "q0\n助手：a0\n用户：q", "completion": "a"},
        [user("q0"), assistant("a0"), *QA],
    ),
    "trl conversational": ({"prompt": [user("q")], "completion": [assistant("a")]}, QA),
    "gsm8k": ({"question": "q", "answer": "a"}, QA),
    "parts": ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, assistant("a")]}, QA),
    "table cell": ({"messages": json.dumps(QA)}, QA),
}


@pytest.mark.parametrize("name", CHATS)
def test_chat_forms(name):
    record, expected = CHATS[name]
    assert kind_of(record, FIELDS) == "chat"
    assert as_chat(record)["messages"] == expected


def test_tools_are_folded_into_contents():
    record = {"conversations": [
        {"role": "system", "content": "", "tools": '[{"name": "f"}]'},
        user("q"),
        {"role": "assistant", "content": "", "tool_calls": '[{"name": "f", "arguments": {"x": 1}}]'},
        {"role": "tool", "content": "3"},
        assistant("a"),
    ]}  # fmt: skip
    system, *turns = as_chat(record)["messages"]
    assert system["role"] == "system" and '<tools>\n{"name": "f"}\n</tools>' in system["content"]
    assert turns[1] == assistant('<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>')
    assert turns[2] == {"role": "tool", "content": "3"}
    openai = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]
    assert (
        as_chat({"messages": [user("q"), {"role": "assistant", "content": None, "tool_calls": openai}]})["messages"][1]
        == turns[1]
    )
    sharegpt = [{"from": "human", "value": "q"}, {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                {"from": "observation", "value": "3"}, {"from": "gpt", "value": "a"}]  # fmt: skip
    assert as_chat({"conversations": sharegpt})["messages"] == turns


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


@pytest.mark.parametrize(("record", "reason"), [
    ({"messages": [user("q")]}, "no_answer"),
    ({"messages": [user(""), assistant("a")]}, "empty_message"),
    ({"messages": [{"role": "wizard", "content": "q"}, assistant("a")]}, "unknown_role"),
    ({"messages": [user(3), assistant("a")]}, "wrong_type"),
    ({"messages": ["q", "a"]}, "wrong_type"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, assistant("a")]}, "not_text"),
    ({"instruction": "q", "output": "a", "history": ["q0"]}, "wrong_type"),
    ([], "no_answer"),
])  # fmt: skip
def test_bad_chats_say_why(record, reason):
    with pytest.raises(BadRecord) as error:
        as_chat(record)
    assert error.value.reason == reason


@pytest.mark.parametrize(("record", "reason"), [
    ({"prompt": "q", "chosen": "c", "rejected": "c "}, "same_answers"),
    ({"prompt": "q", "chosen": "", "rejected": "r"}, "empty_message"),
    ({"chosen": "yes", "rejected": "no"}, "no_prompt"),
    ({"prompt": "q", "chosen": 1, "rejected": "r"}, "wrong_type"),
    ({"chosen": [user("q"), assistant("c"), user("x"), assistant("y")], "rejected": [user("q"), assistant("r")]}, "not_one_answer"),
])  # fmt: skip
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
