"""The text of answers while they are made: whole characters, stop strings, and their parts."""

import random

import pytest
from token_helpers import tokenizer_dir

from model.serving.parts import Content, Parts, Reasoning
from model.serving.text import Reader, Spelling
from model.tokens.chat import ChatTokenizer
from model.tokens.reply import ToolCall, parse_reply

ANSWERS = [
    "<think>\nhm, ok\n</think>\n\nHello  world",
    "plain <b> text, 1 < 2",
    "<thin",
    'Let me.\n<tool_call>\n{"name": "f", "arguments": {"a": "<x>"}}\n</tool_call>\n'
    '<tool_call>{"name": "g"}</tool_call>',
    '<tool_call>{"name":"f", "arguments": {}}',
    '<tool_call>[{"name": "f"}, {"name": "g", "arguments": {"b": 1}}]</tool_call>',
    "<tool_call>no call</tool_call> tail",
    "a <tool",
    "<think>cut off",
    "<think></think>x",
    '<think>\n<tool_call>{"name": "no"}</tool_call>\n</think>\n\nyes',
]


@pytest.fixture(scope="module")
def tokenizer():
    return ChatTokenizer.load(tokenizer_dir())


def read(tokenizer, ids, stop=()):
    reader, pieces = Reader(tokenizer, stop), []
    for token in ids:
        pieces.append(reader.push(token))
        if reader.stopped:
            return pieces
    return [*pieces, reader.end()]


@pytest.mark.parametrize("text", ["词元是文本的最小单位。", "naïve 👩‍👩‍👧 family", " a\n\tb ", "𝒳𝒴 \u200b"])
def test_pieces_are_whole_characters_and_make_the_text(tokenizer, text):
    pieces = read(tokenizer, tokenizer.encode(text))
    assert "".join(pieces) == text and not any("\ufffd" in piece for piece in pieces)
    half = read(tokenizer, tokenizer.encode("词" + text)[:1])
    assert "\ufffd" not in "".join(half)


def test_whatever_bytes_a_model_says_the_pieces_make_what_the_tokenizer_decodes(tokenizer):
    draw = random.Random(3)
    for _ in range(300):
        ids = [draw.randrange(3, 450) for _ in range(draw.randrange(1, 60))]
        said, whole = "".join(read(tokenizer, ids)), tokenizer.decode(ids)
        assert whole.startswith(said) and not whole[len(said) :].strip("\ufffd"), (said, whole)


def test_no_part_of_a_stop_string_is_shown_wherever_tokens_cut_it(tokenizer):
    draw = random.Random(4)
    for _ in range(300):
        text = "".join(draw.choice("ab词 ") for _ in range(30))
        stop = ["".join(draw.choice("ab词 ") for _ in range(draw.randrange(1, 5))) for _ in range(2)]
        first = next((i for i in range(31) if any(text[:i].endswith(word) for word in stop)), None)
        longest = max((len(word) for word in stop if first and text[:first].endswith(word)), default=0)
        wanted = text if first is None else text[: first - longest]
        ids = [token for character in text for token in tokenizer.encode(character)]
        assert "".join(read(tokenizer, ids, stop)) == wanted, (text, stop)


def test_tokens_are_spelt_by_their_bytes(tokenizer):
    spelling, text = Spelling(tokenizer), "词元 mixed 😀\n"
    assert b"".join(bytes(spelling(token)[1]) for token in tokenizer.encode(text)).decode() == text
    assert spelling(tokenizer.eos_id)[0] == "<|im_end|>"


@pytest.mark.parametrize("text", ANSWERS)
def test_an_answer_in_pieces_comes_apart_as_the_whole_one_does(text):
    reply = parse_reply(text)
    for size in (1, 2, 3, 7, 1000):
        parts = Parts(tools=True)
        found = [part for at in range(0, len(text), size) for part in parts.push(text[at : at + size])] + parts.end()
        assert "".join(p.text for p in found if isinstance(p, Reasoning)) == reply.reasoning
        assert "".join(p.text for p in found if isinstance(p, Content)).strip() == reply.content
        assert tuple(p for p in found if isinstance(p, ToolCall)) == reply.tool_calls


def test_without_tools_a_call_is_text():
    parts = Parts(tools=False)
    assert parts.push(ANSWERS[4]) + parts.end() == [Content(ANSWERS[4])]
