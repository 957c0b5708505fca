import json

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from token_helpers import new_model, taught_dir, tokenizer_dir

from model.network.weights import save_model
from model.tokens.chat import ChatTokenizer
from model.tokens.template import CHAT_TEMPLATE, plain_template
from model.verify import compare, run
from pipeline.config.evaluation import ExportSection
from pipeline.release.export import export
from pipeline.release.weights import from_bf16, to_bf16

FACTS = {
    "sources": {"teaching": {"files": 4, "bytes": 12345, "digest": "ab" * 32, "stage": "ingest"}},
    "stages": {
        "sft": {"digest": "cd" * 32, "kind": "model", "section": {"optim": {"lr": 0.001}, "epochs": 3}},
        "pretrain": {"digest": "ef" * 32, "kind": "model", "section": {}},
    },
}


def files(path):
    return {p.name: p.read_bytes() for p in path.iterdir() if p.is_file()}


def test_rounding_to_bf16_is_torch_s():
    values = torch.cat(
        [
            torch.randn(5000) * 10.0 ** torch.randint(-38, 38, (5000,)),
            torch.tensor([0.0, -0.0, float("inf"), float("-inf"), 1.00390625]),
        ]
    )
    ours = to_bf16(values.numpy())
    assert np.array_equal(ours, values.bfloat16().view(torch.uint16).numpy())
    assert np.array_equal(from_bf16(ours), values.bfloat16().float().numpy())
    assert np.isnan(from_bf16(to_bf16(np.array([np.nan], np.float32)))).all()


def test_the_published_model_is_checked_against_transformers(tmp_path):
    metrics = export(ExportSection(), taught_dir(), tmp_path, facts=FACTS)
    assert metrics["verified_prompts"] == 3
    assert metrics["logit_difference"] < 2e-3
    found = load_file(tmp_path / "model.safetensors")
    for name, value in load_file(taught_dir() / "model.safetensors").items():
        assert torch.equal(found[name], value.bfloat16())
    assert metrics["parameters"] == sum(value.numel() for value in found.values())
    config = json.loads((tmp_path / "generation_config.json").read_text())
    assert (config["do_sample"], config["eos_token_id"], config["pad_token_id"]) == (False, [2, 0], 0)


def test_a_model_that_transformers_reads_otherwise_does_not_pass(tmp_path):
    save_model(new_model(), tmp_path / "model", tokenizer_dir())
    config = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    (tmp_path / "model" / "tokenizer_config.json").write_text(
        json.dumps({**config, "additional_special_tokens": ["词元"]})  # which tokenizer.json knows nothing of
    )
    problem = run({"model": str(tmp_path / "model"), "prompts": ["什么是词元？"], "out": str(tmp_path)})
    assert "differs in template_equal" in problem
    assert not json.loads((tmp_path / "_run" / "result.json").read_text())["template_equal"]


@pytest.mark.parametrize("shape", [{"qk_norm": False, "tied": False}, {"rope_factor": 4.0, "rope_original_len": 32}])
def test_other_layouts_open_in_transformers_too(shape, tmp_path):
    save_model(new_model(**shape), tmp_path / "model", tokenizer_dir())
    export(ExportSection(dtype="fp32", verify=False), tmp_path / "model", tmp_path / "out")
    found = compare(tmp_path / "out", ["什么是词元？"], 8)
    assert found["logit_difference"] < 2e-3
    assert found["greedy_equal"] and found["template_equal"]


def test_the_card_says_what_it_was_made_from_and_bytes_are_stable(tmp_path):
    for name in ("a", "b"):
        export(
            ExportSection(verify=False, gguf="f16", licence="mit", title="My model"),
            taught_dir(),
            tmp_path / name,
            facts=FACTS,
        )
    assert files(tmp_path / "a") == files(tmp_path / "b")
    card = (tmp_path / "a" / "README.md").read_text()
    for part in (
        "license: mit",
        "# My model",
        "| teaching | ingest | 4 | 12,345 | `abababababab` |",
        "sft.optim.lr = 0.001",
        "Qwen3ForCausalLM",
    ):
        assert part in card
    assert card.index("| pretrain |") < card.index("| sft |")


def test_sampling_asked_for_is_in_the_generation_config(tmp_path):
    export(ExportSection(verify=False, temperature=0.7, top_p=0.9), taught_dir(), tmp_path)
    config = json.loads((tmp_path / "generation_config.json").read_text())
    assert (config["do_sample"], config["temperature"], config["top_p"], config["max_new_tokens"]) == (
        True,
        0.7,
        0.9,
        256,
    )


def test_llama_cpp_s_reader_takes_the_gguf(tmp_path):
    export(ExportSection(verify=False, gguf="bf16"), taught_dir(), tmp_path)
    reader = gguf.GGUFReader(tmp_path / "model-bf16.gguf")
    value = lambda name: reader.fields[name].contents()  # noqa: E731
    chat = ChatTokenizer.load(taught_dir())
    assert (value("general.architecture"), value("tokenizer.ggml.model"), value("tokenizer.ggml.pre")) == (
        "qwen3",
        "gpt2",
        "qwen2",
    )
    assert (
        value("tokenizer.ggml.bos_token_id"),
        value("tokenizer.ggml.eos_token_id"),
        value("tokenizer.ggml.padding_token_id"),
    ) == (1, 2, 0)
    assert value("tokenizer.ggml.tokens") == [chat.backend.id_to_token(i) for i in range(chat.vocab_size)]
    assert value("tokenizer.chat_template") == plain_template(CHAT_TEMPLATE)
    assert (
        value("qwen3.block_count"),
        value("qwen3.attention.head_count"),
        value("qwen3.attention.head_count_kv"),
    ) == (2, 4, 2)
    tensors = {t.name: t for t in reader.tensors}
    weights = load_file(taught_dir() / "model.safetensors")
    stored = gguf.quants.dequantize(tensors["blk.1.ffn_down.weight"].data, tensors["blk.1.ffn_down.weight"].tensor_type)
    assert np.array_equal(stored, weights["model.layers.1.mlp.down_proj.weight"].bfloat16().float().numpy())
    assert len(tensors) == len(weights)


def test_llama_s_heads_are_put_in_llama_cpp_s_order(tmp_path):
    save_model(new_model(qk_norm=False), tmp_path / "model", tokenizer_dir())
    export(ExportSection(verify=False, gguf="f32"), tmp_path / "model", tmp_path / "out")
    tensors = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "out" / "model-f32.gguf").tensors}
    given = load_file(tmp_path / "model" / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"].numpy()
    head = given[:16]  # rows 0 and 8 of a head turn together: llama.cpp wants them side by side
    assert np.array_equal(tensors["blk.0.attn_q.weight"][:16], np.stack([head[:8], head[8:]], 1).reshape(16, -1))


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no model\*\.safetensors"):
        export(ExportSection(), tmp_path, tmp_path / "out")
    model = tmp_path / "model"
    save_model(new_model(), model, tokenizer_dir())
    spec = json.loads((model / "tokenizer.json").read_text())
    spec["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\w+|\W"}
    (model / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(ValueError, match="would tokenise differently"):
        export(ExportSection(gguf="f16"), model, tmp_path / "out")
