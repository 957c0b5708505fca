"""Every record form that the field's projects document comes out in one normal form; what cannot is refused with a
reason."""

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.formats.bad import BadRecord
from pipeline.formats.chat import as_chat
from pipeline.formats.kinds import kind_of
from pipeline.formats.preference import as_preference

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
    record = {
        "conversations": [
            {"role": "system", "content": "", "tools": '[{"name": "f"}]'},
            user("q"),
            {"role": "assistant", "content": "", "tool_calls": '[{"name": "f", "arguments": {"x": 1}}]'},
            {"role": "tool", "content": "3"},
            assistant("a"),
        ]
    }
    system, *turns = as_chat(record)["messages"]
    assert system["role"] == "system" and '<tools>\n{"name": "f"}\n</tools>' in system["content"]
    assert turns[1] == assistant('<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>')
    assert turns[2] == {"role": "tool", "content": "3"}
    openai = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]
    assert (
        as_chat({"messages": [user("q"), {"role": "assistant", "content": None, "tool_calls": openai}]})["messages"][1]
        == turns[1]
    )
    sharegpt = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "a"},
    ]
    assert as_chat({"conversations": sharegpt})["messages"] == turns


def calling(arguments, **more):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call], **more}


CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
TOOL = {"role": "tool", "content": "3"}


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([calling({"x": 1}), TOOL], [CALL]),
        ([calling('{"x": 1}', content="look"), TOOL], ["look\n" + CALL]),
        ([calling(""), TOOL], [CALL.replace('{"x": 1}', "{}")]),
        ([{**assistant("hm"), "function_call": {"name": "f", "arguments": '{"x": 1}'}}, TOOL], ["hm\n" + CALL]),
        ([{"role": "function_call", "content": '[{"name": "f", "arguments": {"x": 1}}]'}, TOOL], [CALL]),
        ([assistant("hm"), {"role": "tool_call", "content": '{"name": "f", "arguments": {"x": 1}}'}], ["hm\n" + CALL]),
        ([{"role": "tool_call", "name": "f", "arguments": {"x": 1}}] * 2, [CALL + "\n" + CALL]),
        ([assistant(CALL), user("<tool_response>\n3\n</tool_response>")], [CALL]),
        ([assistant(CALL), {"role": "tool", "content": "<tool_response>\n3\n</tool_response>"}], [CALL]),
        ([{**calling({"x": 1}), "reasoning": "so"}, TOOL], ["<think>\nso\n</think>\n\n" + CALL]),
    ],
)
def test_calls_of_every_dialect_are_part_of_the_answer(turns, said):
    messages = as_chat({"messages": [user("q"), *turns]})["messages"]
    assert [m["content"] for m in messages if m["role"] == "assistant"] == said
    assert messages[2:] in ([TOOL], [])


def test_results_that_come_in_another_order_than_their_calls_are_refused():
    calls = {"role": "assistant", "tool_calls": [{"id": i, "function": {"name": i}} for i in "ab"]}
    results = [{"role": "tool", "tool_call_id": i, "content": i} for i in "ab"]
    assert len(as_chat([user("q"), calls, *results])["messages"]) == 4
    with pytest.raises(BadRecord, match="result_order: the result of call 'b'"):
        as_chat([user("q"), calls, *reversed(results)])


def test_hermes_records_list_their_tools_once():
    system = {"from": "system", "value": "Call <tools>\n[{'name': 'f'}]\n</tools>"}
    record = {"conversations": [system, *QA], "tools": '[{"name": "f"}]', "category": "a b", "task": "c d"}
    assert as_chat(record)["messages"][0]["content"] == system["value"]


@pytest.mark.parametrize("field", ["weight", "train", "training", "loss", "loss_mask", "trainable", "learn"])
@pytest.mark.parametrize("no", [0, 0.0, False, "false"])
def test_a_turn_that_is_not_to_be_learnt_is_context(field, no):
    turns = [user("q"), {**assistant("bad"), field: no}, user("r"), {**assistant("good"), field: True}]
    unlearnt = {**assistant("bad"), "learn": False}
    assert as_chat({"messages": turns})["messages"] == [user("q"), unlearnt, user("r"), assistant("good")]
    listed = {"messages": [user("q"), assistant("bad"), user("r"), assistant("good")], field: [0, no, 0, 1]}
    assert as_chat(listed)["messages"][1] == unlearnt
    prompt = {"messages": turns[:3], "chosen": "a b", "rejected": "c d"}
    assert as_preference(prompt)["prompt"] == [user("q"), assistant("bad"), user("r")]


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        ({"system_prompt": "s"}, [{"role": "system", "content": "s"}, *QA]),
        ({"system": "s", "system_prompt": "s"}, [{"role": "system", "content": "s"}, *QA]),
        ({"system": None, "system_prompt": ""}, QA),
        ({"context": "A boat."}, [user("A boat.\n\nq"), assistant("a")]),
        ({"instruction": "q", "question": None, "context": "A boat."}, [user("q\nA boat."), assistant("a")]),
        ({"history": [user("q0"), assistant("a0")]}, [user("q0"), assistant("a0"), *QA]),
        ({"question": "\n\nHuman: q0\n\nAssistant: a0\n\nHuman: q\n\nAssistant:"}, [user("q0"), assistant("a0"), *QA]),
        ({"question": "Human: q\n\nAssistant:"}, QA),
        ({"reasoning_content": "why so"}, [user("q"), assistant("<think>\nwhy so\n</think>\n\na")]),
        ({"id": 3, "source": "a b", "score": 0.5, "Category": "x y", "seen": True, "path": "a/b c"}, QA),
        ({"note": "q", "hash": "0f", "url2": "http://x/y", "other": {"n": [1, None, "word"]}}, QA),
        ({"label": True}, QA),
        ({"mask": "User"}, QA),
        ({"weight": 1}, QA),
    ],
)
def test_what_an_answer_depends_on_is_part_of_the_prompt_and_metadata_is_not(change, messages):
    record = {"question": "q", "answer": "a"} | change
    assert as_chat(record)["messages"] == messages


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"passage": "A boat lies here."}, "unused_field"),
        ({"passage": "船停在北边的码头旁边。"}, "unused_field"),
        ({"notes": [{"a": ["two words"]}]}, "unused_field"),
        ({"query": "another question"}, "unused_field"),
        ({"mask_history": True}, "unused_field"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "unused_field"),
        ({"system": "be kind", "system_prompt": "be brief"}, "two_values"),
        ({"images": ["a.png"]}, "not_text"),
        ({"label": False}, "disliked_answer"),
        ({"kto_tag": "false"}, "disliked_answer"),
        ({"label": 0}, "disliked_answer"),
        ({"weight": 0}, "not_to_learn"),
        ({"weight": 0.5}, "turn_weight"),
        ({"mask": "Assistant"}, "turn_weight"),
        ({"loss_scale": 0.1}, "turn_weight"),
        ({"loss_mask": [1]}, "turn_weight"),
        ({"context": ["A boat."]}, "wrong_type"),
        ({"question": "\n\nHuman: q\n\nAssistant: Well,"}, "begun_answer"),
        ({"history": "q0 a0"}, "wrong_type"),
        ({"system": ["a", "b"]}, "wrong_type"),
    ],
)
def test_what_is_neither_used_nor_metadata_is_refused_by_name(change, reason):
    record = {"question": "q", "answer": "a"} | change
    with pytest.raises(BadRecord) as error:
        as_chat(record)
    assert error.value.reason == reason and (reason == "begun_answer" or next(iter(change)) in error.value.detail)
    if reason in ("unused_field", "disliked_answer"):
        assert as_chat(record, ignored=tuple(change))["messages"] == QA


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({**assistant("a"), "weight": 0.5}, "turn_weight"),
        ({**assistant("a"), "weight": 1, "train": False}, "turn_weight"),
        ({**user("a"), "train": True}, "turn_weight"),
        ({**assistant("a"), "mask": 1}, "turn_weight"),
        ({**assistant("a"), "train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]}, "turn_weight"),
        ({**assistant("a"), "weight": 0}, "not_to_learn"),
        ({**assistant("a"), "refusal": "I cannot say that."}, "unused_field"),
        ({**assistant("a"), "train_on_turn": False}, "unused_field"),
        ({**assistant("a"), "compute_loss": 0}, "unused_field"),
        ({**assistant("a"), "ignore": True}, "unused_field"),
        (
            {"role": "assistant", "content": [{"type": "image", "text": "alt"}, {"type": "text", "text": "a"}]},
            "not_text",
        ),
        ({**user("a"), "tool_calls": [{"name": "f", "arguments": {}}]}, "unused_field"),
        ({**assistant("a"), "value": "another"}, "two_values"),
        ({**assistant("a"), "from": "human"}, "two_values"),
        (calling("{'x': 1}"), "bad_call"),
        ({**assistant("a"), "rationale": "since it is"}, "unused_field"),
        ({**assistant("a"), "tool_calls": [{"name": "f", "parameters": {"x": 1}}]}, "bad_call"),
        ({**assistant("a"), "reasoning": "b c", "reasoning_content": "d e"}, "two_values"),
    ],
)
def test_a_turn_that_says_what_cannot_be_used_is_refused_by_name(turn, reason):
    with pytest.raises(BadRecord) as error:
        as_chat({"messages": [user("q"), turn]})
    assert error.value.reason == reason


def test_null_keys_are_absent_keys():
    turns = [
        {"role": None, "from": "human", "content": None, "value": "q", "weight": None, "tool_calls": None},
        {"role": "assistant", "from": None, "content": "a", "value": None, "reasoning_content": ""},
    ]
    assert as_chat({"messages": turns, "tools": None, "system": None, "label": None})["messages"] == QA
    union = {"messages": QA, "chosen": None, "rejected": None, "weight": float("nan")}
    assert kind_of(union, FIELDS) == "chat" and as_chat(union)["messages"] == QA
    cells = {"prompt": "q", "completion": "a", "weight": "", "label": "", "history": "", "tools": "[]", "system": " "}
    assert as_chat(cells)["messages"] == QA


WORDS = st.integers(0, 10**6).map(lambda n: f"the words {n}")
ASKED = st.dictionaries(
    st.sampled_from(
        [
            "instruction",
            "input",
            "output",
            "prompt",
            "completion",
            "question",
            "answer",
            "response",
            "context",
            "system",
            "system_prompt",
            "history",
            "query",
            "passage",
            "hint",
            "text",
            "title",
            "chosen",
            "rejected",
            "document",
            "reasoning_content",
        ]
    ),
    WORDS,
    min_size=2,
)


@settings(max_examples=300, deadline=None)
@given(ASKED)
def test_no_text_of_a_record_is_lost_without_a_word(record):
    for read in (as_chat, as_preference):
        try:
            found = read(record)
        except BadRecord:
            continue
        begins = os.path.commonprefix([record.get("chosen", ""), record.get("rejected", "")])  # noqa: RUF071 - an implicit prompt
        words = [text for name, text in record.items() if name != "title"]  # beside turns it is metadata
        assert all(text.removeprefix(begins) in json.dumps(found) for text in words)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["system", "user", "assistant", "tool", "function_call"]),
            WORDS,
            st.sampled_from([None, 0, 1]),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_the_normal_form_is_read_as_itself(turns):
    given = [
        {"role": role, "content": said} | ({"weight": weight} if role == "assistant" else {})
        for role, said, weight in turns
    ]
    try:
        once = as_chat(given)["messages"]
    except BadRecord:
        return
    text = json.dumps(once)
    assert all(said in text for _, said, _ in turns)
    again = [{k: v for k, v in m.items() if k != "learn"} | ({"weight": 0} if "learn" in m else {}) for m in once]
    assert as_chat({"messages": again})["messages"] == once
