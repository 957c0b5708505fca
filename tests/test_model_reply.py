"""What a model said, taken apart: the parts come back as they were written, and no text is lost."""

import functools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from token_helpers import tokenizer_dir

from model.generation.fluency import look
from model.tokens.reply import Reply, ToolCall, parse_reply, well_formed

CALL = '<tool_call>\n{"name": "tide", "arguments": {"pier": 1}}\n</tool_call>'
TIDE = ToolCall("tide", '{"pier": 1}')


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("It is low.", Reply("It is low.")),
        ("<think>\nhm\n</think>\n\nIt is low.", Reply("It is low.", "hm")),
        ("<think>\n\n</think>\n\nIt is low.", Reply("It is low.")),
        ("hm\n</think>\n\nLow.", Reply("Low.", "hm")),  # the prompt ended in <think>
        ("<think>\nhm, and then", Reply("", "hm, and then")),  # cut off
        ("Say <think> twice.", Reply("Say <think> twice.")),
        (CALL, Reply("", "", (TIDE,))),
        (f"Let me look.\n{CALL}\n{CALL}", Reply("Let me look.", "", (TIDE, TIDE))),
        (f"<think>\nq\n</think>\n\n{CALL}", Reply("", "q", (TIDE,))),
        (f"<think>\n{CALL}\n</think>\n\nLow.", Reply("Low.", CALL)),  # a call that is only thought of
        (CALL.removesuffix("\n</tool_call>"), Reply("", "", (TIDE,))),
        ('<tool_call>{"name":"f"}</tool_call>', Reply("", "", (ToolCall("f", "{}"),))),
        ('<tool_call>{"name":"f","parameters":{"a":"é"}}</tool_call>', Reply("", "", (ToolCall("f", '{"a": "é"}'),))),
        (
            '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>',
            Reply("", "", (ToolCall("f", '{"a": 1}'),)),
        ),
        (
            '<tool_call>[{"name": "f"}, {"function": {"name": "g"}}]</tool_call>',
            Reply("", "", (ToolCall("f", "{}"), ToolCall("g", "{}"))),
        ),
        # not readable: it stays
        ('<tool_call>\n{"name": "tide", "arg', Reply('<tool_call>\n{"name": "tide", "arg')),
        ('a <tool_call>{"name": 3}</tool_call> b', Reply('a <tool_call>{"name": 3}</tool_call> b')),
        ('<tool_call>{"name": "f", "arguments": [1]}</tool_call>', None),
        ('<tool_call>{"name": "f", "arguments": "no"}</tool_call>', None),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", None),
        (f"<tool_call>broken</tool_call>\n{CALL}", Reply("<tool_call>broken</tool_call>", "", (TIDE,))),
    ],
)
def test_an_answer_comes_apart_and_what_cannot_be_read_stays_in_it(text, reply):
    assert parse_reply(text) == (reply or Reply(text))


SAID = st.text("ab 中\n\"'\\{}:é1\u2028😀", max_size=12)
CALLS = st.builds(
    lambda name, arguments: {"type": "function", "function": {"name": name, "arguments": arguments}},
    SAID.filter(bool),
    st.dictionaries(SAID, SAID | st.integers(-9, 9) | st.none(), max_size=2)
    | st.sampled_from(['{"a":1}', '{ "a" : [1,2] }', "{}"]),
)


@settings(max_examples=40, deadline=None)
@given(SAID, SAID, st.lists(CALLS, max_size=3))
def test_what_transformers_writes_with_our_template_comes_back_and_is_written_again(content, why, calls):
    theirs = _tokenizer()
    user = [{"role": "user", "content": "q"}]
    message = {"role": "assistant", "content": content, "reasoning_content": why, "tool_calls": calls}
    lead = theirs.apply_chat_template(user, tokenize=False, add_generation_prompt=True)
    written = theirs.apply_chat_template([*user, message], tokenize=False)
    said = written.removeprefix(lead).removesuffix("<|im_end|>\n")
    reply = parse_reply(said)
    assert (reply.content, reply.reasoning) == (content.strip(), why.strip())
    assert [call.name for call in reply.tool_calls] == [call["function"]["name"] for call in calls]
    for call, one in zip(reply.tool_calls, calls, strict=True):
        arguments = one["function"]["arguments"]
        assert json.loads(call.arguments) == (json.loads(arguments) if isinstance(arguments, str) else arguments)
    assert theirs.apply_chat_template([*user, reply.message()], tokenize=False) == written


@functools.cache
def _tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_dir())


PIECES = ["<think>", "</think>", "<tool_call>", "</tool_call>", '{"name": "f"}', "中", "\n", "{"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join) | st.text('中<>/thinktool_call{}\n" ', max_size=60))
def test_whatever_a_model_writes_is_taken_apart_without_an_error_or_a_loss(text):
    reply = parse_reply(text)
    assert (reply.content + reply.reasoning).count("中") == text.count("中")


@pytest.mark.parametrize(
    ("text", "tagged", "plain"),
    [
        ("<think>\nhm\n</think>\n<answer>\n4\n</answer>", True, True),
        ("<think>hm</think> <answer>4</answer>\n", True, True),
        ("<think>\nhm\n</think>\n\n4", False, True),
        ("<think>\n\n</think>\n<answer>\n4\n</answer>", False, False),
        ("<think>\nhm\n</think>\n<answer>\n\n</answer>", False, False),
        ("<think>\nhm\n</think>\n<answer>\n4\n</answer> and", False, False),
        ("<think>\nhm\n</think>\n<answer>\n4", False, False),
        ("<think>\nhm\n</think>\n<think>\nhm\n</think>\n<answer>\n4\n</answer>", False, False),
        ("<answer>\n4\n</answer>\n<think>\nhm\n</think>", False, False),
        ("hm</think><answer>4</answer>", False, False),
        ("<think>hm", False, False),
        ("4", False, False),
    ],
)
def test_an_answer_is_well_formed_when_it_reasons_once_and_then_answers(text, tagged, plain):
    assert (well_formed(text, answer=True), well_formed(text)) == (tagged, plain)


def test_evaluation_tells_how_many_answers_reason_and_how_many_of_these_are_well_formed():
    said = ["<think>a</think><answer>b</answer>", "<think>a</think>b", "<think>a", "b"]
    found = look([{"lang": "en"}] * 4, said, 0)
    assert found["tagged"]["value"] == 0.75 and found["well_formed"]["value"] == pytest.approx(2 / 3)
    assert not {"tagged", "well_formed"} & set(look([{"lang": "en"}], ["b"], 0))
