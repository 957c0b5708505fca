"""Files of MiniMind and GPT_teacher run as they are: a made file of each form, read by the stage that it is for."""

import json

import numpy as np
import pytest
from token_helpers import tokenizer_dir

from model.tokens.reply import parse_reply, well_formed
from pipeline.config.data import IngestSection
from pipeline.config.rl import RlSection
from pipeline.data.chat_records import read_chats
from pipeline.data.ingest import ingest
from pipeline.data.preference_records import read_preferences
from pipeline.data.problem_records import read_problems
from pipeline.data.records import Losses
from pipeline.problems.settings import ProblemSettings
from pipeline.sources import resolve
from pipeline.tokens.chats import encode_chats
from pipeline.tokens.problems import encode_problems

THINK = "<think>\n先数一数。\n</think>\n<answer>\n3\n</answer>"


def said(role, content, **more):
    return {"role": role, "content": content, **more}


def talk(*turns):
    return [said("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(turns)]


TOOLS = json.dumps([{"name": "add", "description": "加法", "parameters": {"type": "object"}}], ensure_ascii=False)
CALL = json.dumps([{"name": "add", "arguments": {"a": 1, "b": 2}}])
CHATS = {
    "sft_mini_512.jsonl": ({"conversations": talk("你好", "你好！", "再见", "再见。")}, None),
    "lora_medical.jsonl": ({"conversations": talk("枕头多高才好？", "八到十二厘米。")}, None),
    "lora_identity.jsonl": ({"conversations": talk("你叫什么名字？", "我是一个小模型。")}, None),
    "r1_mix_1024.jsonl": ({"conversations": talk("几个苹果？", THINK)}, None),
    "sft_t2t_mini.jsonl": (  # MiniMind-3: reasoning, tools and calls in fields of their own, null or empty elsewhere
        {
            "conversations": [
                said("system", "帮忙。", reasoning_content=None, tools=TOOLS, tool_calls=None),
                said("user", "1+2=?", reasoning_content="", tools="", tool_calls=""),
                said("assistant", "", reasoning_content="要调用。", tools=None, tool_calls=CALL),
                said("tool", "3"),
                said("assistant", "等于 3。", reasoning_content="得到了。"),
            ]
        },
        [
            said("user", "1+2=?"),
            said(
                "assistant",
                "<think>\n要调用。\n</think>\n\n<tool_call>\n"
                '{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>',
            ),
            said("tool", "3"),
            said("assistant", "<think>\n得到了。\n</think>\n\n等于 3。"),
        ],
    ),
    "gpt_teacher.jsonl": (
        {"prompt": "什么是注意力？\n助手:加权。\n用户:再说一次", "completion": "加权求和。"},
        talk("什么是注意力？", "加权。", "再说一次", "加权求和。"),
    ),
}


def file_of(tmp_path, name, *records):
    path = tmp_path / name
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    return [str(path)]


@pytest.mark.parametrize("name", CHATS)
def test_a_file_of_chats_is_read_whole_and_trained_on_its_answers(name, tmp_path):
    record, expected = CHATS[name]
    losses = Losses()
    records = list(read_chats(resolve(file_of(tmp_path, name, record), "chat"), losses=losses))
    assert not losses.dropped
    [messages] = [found["messages"] for found in records]
    if messages[0]["role"] == "system":
        assert "帮忙。" in messages[0]["content"] and "加法" in messages.pop(0)["content"]
    assert messages == (expected or record["conversations"])
    counts = encode_chats(records, tokenizer_dir(), tmp_path / "tokens", max_tokens=512, val_share=0, tags="whole")
    assert counts["dropped"] == 0 and counts["train_supervised"] > 0
    mask = np.fromfile(tmp_path / "tokens" / "train.mask.bin", np.uint8)
    assert (2 in mask) == any("<think>" in m["content"] for m in messages)


def test_a_distilled_answer_is_well_formed_and_comes_apart():
    assert well_formed(THINK, answer=True)
    assert parse_reply(THINK).reasoning == "先数一数。" and "3" in parse_reply(THINK).content


def test_pairs_are_whole_conversations_in_either_order_of_fields(tmp_path):
    chosen, rejected = talk("q0", "a0", "q", "好"), talk("q0", "a0", "q", "坏")
    files = file_of(
        tmp_path, "dpo.jsonl", {"chosen": chosen, "rejected": rejected}, {"rejected": rejected, "chosen": chosen}
    )
    losses = Losses()
    pairs = list(read_preferences(resolve(files, "preference"), losses=losses))
    assert not losses.dropped and len(pairs) == 2
    for pair in pairs:
        assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (chosen[:3], "好", "坏")


def test_text_to_pretrain_on_is_read_and_so_are_chats_as_text(tmp_path):
    texts = [{"text": f"第 {i} 篇文章讲一个小模型怎样学会说话。" * 3} for i in range(5)]
    names = file_of(tmp_path, "pretrain_hq.jsonl", *texts) + file_of(
        tmp_path, "gpt_teacher.jsonl", CHATS["gpt_teacher.jsonl"][0]
    )
    found = ingest(IngestSection(), resolve(names, "text"), tmp_path / "out")
    assert found["docs_out"] == 6


def test_prompts_for_reinforcement_learning_are_chats_whose_last_answer_is_missing(tmp_path):
    """Of rlaif-mini.jsonl; rewards of the model (or of the form and the language) judge their answers."""
    asked = [*talk("你好", "你好！", "第 {} 题？"), said("assistant", "空")]
    rows = [json.loads(json.dumps({"conversations": asked}).replace("{}", str(i))) for i in range(40)]
    sources = resolve(file_of(tmp_path, "rlaif-mini.jsonl", *rows), "problem")
    losses = Losses()
    records = list(read_problems(ProblemSettings((), (1,), 1, 200, 0), sources, losses=losses))
    assert not losses.dropped and [record["messages"] for record in records] == [
        row["conversations"][:3] for row in rows
    ]
    assert {record["answer"] for record in records} == {""} and {record["lang"] for record in records} == {"zh"}
    write = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (tmp_path / "records.jsonl").write_text(write, "utf-8")
    wanted = {"sources": ["rlaif-mini.jsonl"], "rewards": {"model": 1.0, "language": 0.1}}
    counts = encode_problems(tmp_path / "records.jsonl", tokenizer_dir(), tmp_path / "problems", RlSection(**wanted))
    assert counts["problems_train"] > counts["problems_val"] > 0 and "dropped" not in counts
