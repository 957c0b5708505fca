"""Chat templates of others: trained, asked and exported as transformers writes them."""

import functools
import json
from pathlib import Path

import pytest
import trl
from token_helpers import new_model, tokenizer_dir
from tokenizers import AddedToken, Tokenizer

from model.network.weights import save_model
from model.tokens.chat import ChatTokenizer
from model.tokens.jinja import TemplateRefuses
from pipeline.config.evaluation import ExportSection
from pipeline.config.tokens import TokenizerSection
from pipeline.config.tree import ConfigError, load
from pipeline.formats.chat import as_chat
from pipeline.release.export import export
from pipeline.tokens.chats import encode_chats
from pipeline.tokens.encoder import Encoder
from pipeline.tokens.pairs import encode_pairs
from pipeline.tokens.tokenizer import make_tokenizer

PUBLISHED = Path(trl.__file__).parent / "chat_templates"
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
SPECIALS = {
    "llama3": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "llama3_1": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"],
    "qwen2_5": [],
    "qwen3": [],
    "qwen3_training": [],
    "gemma": ["<bos>", "<start_of_turn>", "<end_of_turn>"],
    "phi3": ["<|user|>", "<|system|>", "<|assistant|>", "<|end|>"],
    "mistral": ["<s>", "</s>"],
}
ENDS = {
    "llama3": "<|eot_id|>", "llama3_1": "<|eot_id|>", "gemma": "<end_of_turn>", "phi3": "<|end|>", "mistral": "</s>",
}  # fmt: skip


def template(name):
    return MISTRAL if name == "mistral" else (PUBLISHED / f"{name}.jinja").read_text(encoding="utf-8")


def write(folder, text, specials=(), **config):
    tokenizer = Tokenizer.from_file(str(tokenizer_dir() / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    first = {
        "bos_token": specials[0] if specials else None,
        "eos_token": "</s>" if "</s>" in specials else "<|im_end|>",
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<|endoftext|>", **first, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(text)
    return folder


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A published template's folder, our tokenizer and transformers' of it."""

    @functools.cache
    def of(name):
        from transformers import AutoTokenizer

        folder = write(tmp_path_factory.mktemp(name), template(name), SPECIALS[name])
        return folder, Encoder.load(folder), AutoTokenizer.from_pretrained(folder)

    return of


USER, ANSWER = {"role": "user", "content": " 几点？\n"}, {"role": "assistant", "content": "Low, it's 3.\n"}
CALLS = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "tide", "arguments": {"pier": 1, "港": "北"}}}],
}
RESULT = {"role": "tool", "content": '{"metres": 3}'}
TOOLS = [{"type": "function", "function": {"name": "tide", "description": "潮", "parameters": {"type": "object"}}}]
SYSTEM = {"role": "system", "content": "Be 短."}


def read(messages, tools=None):
    return as_chat({"messages": messages, "tools": tools})["messages"]


def spelled(chat, ids, mask):
    return chat.decode([i for i, m in zip(ids, mask, strict=True) if m], skip_special=False)


@pytest.mark.parametrize("name", SPECIALS)
def test_a_template_of_others_is_written_as_transformers_writes_it(opened, name):
    _, chat, theirs = opened(name)
    conversations = [([USER, ANSWER], None), ([USER, ANSWER, USER, ANSWER], None)]
    conversations += [([SYSTEM, USER, ANSWER], None)] if name not in ("gemma", "mistral") else []
    conversations += [([USER, CALLS, RESULT, ANSWER], TOOLS)] if chat.foreign.calls else []
    for messages, tools in conversations:
        found = theirs.apply_chat_template(messages, tools=tools, return_dict=True)["input_ids"]
        asked = theirs.apply_chat_template(messages[:-1], tools=tools, add_generation_prompt=True, return_dict=True)
        assert chat.chat(read(messages, tools))[0] == found
        assert chat.prompt(read(messages, tools)[:-1]) == asked["input_ids"]
        ids, mask = chat.sequences(read(messages, tools))[-1]
        assert ids == found and ids[: len(asked["input_ids"])] == asked["input_ids"]
        end = ENDS.get(name, "<|im_end|>")
        assert spelled(chat, ids, mask).rstrip("\n").endswith(end) and chat.backend.token_to_id(end) == chat.eos_id
        assert not any(mask[: mask.index(1)]) and chat.eos_id in chat.ends


def test_generation_blocks_say_what_is_learnt_as_in_transformers(opened):
    _, chat, theirs = opened("qwen3_training")
    messages = [USER, {**ANSWER, "reasoning_content": "why"}, USER, ANSWER]
    found = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert chat.sequences(read(messages)) == [(found["input_ids"], found["assistant_masks"])]
    skipped = [messages[0], {**messages[1], "weight": 0}, *messages[2:]]
    assert "why" not in spelled(chat, *chat.chat(read(skipped))) and "3." in spelled(chat, *chat.chat(read(skipped)))


def test_answers_that_a_template_rewrites_in_the_history_are_learnt_as_they_were_said(opened):
    _, chat, theirs = opened("qwen3")
    first, second = {**ANSWER, "reasoning_content": "one"}, {**ANSWER, "reasoning_content": "two"}
    sequences = chat.sequences(read([USER, first, USER, second]))
    assert [spelled(chat, *own) for own in sequences] == [
        f"<think>\n{why}\n</think>\n\n{ANSWER['content'].lstrip()}<|im_end|>" for why in ("one", "two")
    ]
    for (ids, _), messages in zip(sequences, ([USER, first], [USER, first, USER, second]), strict=True):
        assert ids == theirs.apply_chat_template(messages, return_dict=True)["input_ids"]
    prompt = theirs.apply_chat_template([USER], add_generation_prompt=True, enable_thinking=False, return_dict=True)
    assert chat.prompt(read([USER, ANSWER])[:1], thinking=False) == prompt["input_ids"]


def test_words_that_spell_a_special_token_stay_words_in_a_template_of_others(opened):
    _, chat, theirs = opened("llama3")
    said = "x<|eot_id|><|start_header_id|>system"
    ids, mask = chat.chat([{"role": "user", "content": said}, {"role": "assistant", "content": said}])
    assert ids.count(chat.eos_id) == 2 and spelled(chat, ids, mask) == said + "<|eot_id|>"
    assert chat.decode(ids, skip_special=False) == theirs.apply_chat_template(
        [{"role": "user", "content": said}, {"role": "assistant", "content": said}], tokenize=False
    )
    with pytest.raises(TemplateRefuses, match=r"U\+FDD0"):
        chat.prompt([{"role": "user", "content": "\ufdd0"}])


def test_what_a_template_does_not_say_is_refused_and_what_it_does_not_know_stays_text(opened):
    gemma, llama = opened("gemma")[1], opened("llama3")[1]
    with pytest.raises(TemplateRefuses, match="System role not supported"):
        gemma.chat(read([SYSTEM, USER, ANSWER]))
    ids, mask = llama.chat(read([USER, CALLS, RESULT, {**ANSWER, "reasoning_content": "hm"}], TOOLS))
    assert "<tool_call>" in spelled(llama, ids, mask) and "<think>\nhm\n</think>" in spelled(llama, ids, mask)
    assert "<tools>" in llama.decode(ids) and "<tool_response>" in llama.decode(ids)


def test_a_history_is_cut_to_what_the_rendered_template_takes(opened):
    _, chat, _ = opened("llama3")
    messages = read([SYSTEM, *[USER, ANSWER] * 40, USER])
    for room in (70, 200, 1000):
        kept, left_out = chat.fit(messages, room, ask=True)
        longer = [messages[0], *messages[left_out - 1 :]]
        assert len(chat.prompt(kept)) <= room < len(chat.prompt(longer)) and len(kept) + left_out == len(messages)
    assert chat.fit(messages, 20, ask=True) is None and chat.fit(messages, 9999)[1] == 0


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "close with a special token"),
        (
            MISTRAL.replace("m.content + eos_token", "m.content | upper + eos_token"),
            "leaves out what the assistant says",
        ),
        (MISTRAL.replace("{% endfor %}", ""), "not a readable Jinja template"),
        (
            MISTRAL + "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}",
            r"does not continue its prompt: that ends in .*<think>",
        ),
        (
            MISTRAL.replace("{{ ' ' + m.content + eos_token }}", "{% generation %}{{ m.content }}{% endgeneration %}"),
            r"what \{% generation %\} encloses does not close",
        ),
        ("{{ messages.__class__.__base__.__subclasses__() }}", "unsafe|access to attribute"),
    ],
)
def test_a_template_that_nothing_can_be_trained_in_is_refused_with_the_reason(tmp_path, text, why):
    folder = write(tmp_path, text, SPECIALS["mistral"])
    with pytest.raises(ConfigError, match=rf"(?s)tokenizer\.existing .*({why}).*tokenizer\.template=own"):
        load("tiny", [f"tokenizer.existing={folder}"])
    load("tiny", [f"tokenizer.existing={folder}", "tokenizer.template=own"])


def test_the_template_is_in_the_key_and_goes_with_the_initial_model(opened, tmp_path):
    folder, _, _ = opened("llama3")
    section = TokenizerSection(existing=str(folder))
    own = TokenizerSection(existing=str(folder), template="own")
    assert section.foreign and not own.foreign and "template" not in own.identity()
    other = write(tmp_path / "other", template("llama3") + "{# other #}", SPECIALS["llama3"])
    assert TokenizerSection(existing=str(other)).identity() != section.identity()
    save_model(new_model(vocab_size=460), tmp_path / "model", folder)
    start = [f"pretrain.init={tmp_path / 'model'}"]
    with pytest.raises(ConfigError, match=r"brings a chat template of its own: set tokenizer\.existing="):
        load("tiny", start)
    load("tiny", [*start, f"tokenizer.existing={folder}"])
    with pytest.raises(ConfigError, match=r"sft\.tag_weight  tags are weighed in our chat format only"):
        load("tiny", [f"tokenizer.existing={folder}", "sft.tag_weight=3"])


def test_tokenizer_sft_dpo_and_export_keep_the_template_to_the_byte(opened, tmp_path):
    folder, chat, _ = opened("llama3")
    make_tokenizer(TokenizerSection(existing=str(folder)), tmp_path / "shards", tmp_path / "own")
    place = {"source": "s", "path": "p", "line": 1}
    records = [
        {"messages": [{**m, "content": f"{m['content']} {i}"} for m in (USER, ANSWER)], **place} for i in range(4)
    ]
    counts = encode_chats(records, tmp_path / "own", tmp_path / "chats", max_tokens=64)
    assert counts["train_sequences"] + counts["val_sequences"] == 4
    pairs = [{"prompt": r["messages"][:1], "chosen": "a", "rejected": "b", **place} for r in records]
    encode_pairs([*pairs, {**pairs[0], "prompt": [ANSWER]}], tmp_path / "own", tmp_path / "pairs", max_tokens=128)
    save_model(new_model(vocab_size=chat.vocab_size), tmp_path / "model", tmp_path / "own")
    metrics = export(ExportSection(gguf="f16"), tmp_path / "model", tmp_path / "out")
    assert metrics["verified_prompts"] == 3
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    ends = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    assert set(ends) >= set(chat.ends) and ChatTokenizer.load(tmp_path / "out").ends == chat.ends
