"""The decoder against stock transformers, packed rows against separate ones, and the cache against the full pass."""

from __future__ import annotations

import pytest
import torch

from model.network.transformer import QUERIES, Transformer, attend, initialize
from model.network.weights import from_hf, load_model, save_model, to_hf
from model.specs.shape import ModelConfig

SHAPE = dict(vocab_size=101, dim=32, layers=2, heads=4, kv_heads=2, ffn=48, max_seq_len=64)
KINDS = {
    "qwen3": ModelConfig(**SHAPE),
    "llama": ModelConfig(**SHAPE, qk_norm=False, tied=False, rope_theta=5e5),
    "wide_heads": ModelConfig(**SHAPE, head_dim=16, tied=False),
    "qwen3_moe": ModelConfig(**SHAPE, experts=5, experts_per_token=2, expert_ffn=24),
    "yarn": ModelConfig(**SHAPE, rope_factor=4.0, rope_original_len=16),
}


def make(config: ModelConfig, seed: int = 0) -> Transformer:
    model = Transformer(config)
    initialize(model, seed)
    with torch.no_grad():  # no zero outputs, no unit norms: every weight must count
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.1)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_saved_directory_opens_in_transformers_with_equal_logits(kind: str, tmp_path) -> None:
    from transformers import AutoModelForCausalLM

    model = make(KINDS[kind])
    save_model(model, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(theirs).__name__ == to_hf(model.config)["architectures"][0]
    ids = torch.randint(0, 101, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=2e-5, rtol=1e-4)
    back = load_model(tmp_path)
    assert back.config == from_hf(to_hf(model.config)) and all(
        torch.equal(a, b) for a, b in zip(back.parameters(), model.parameters(), strict=True)
    )


@pytest.mark.parametrize("attention", ["sdpa", "manual"])
def test_documents_packed_in_a_row_do_not_see_each_other(attention: str) -> None:
    model = make(KINDS["qwen3"])
    model.attention = attention
    first, second = torch.arange(1, 12)[None], torch.arange(40, 60)[None]
    doc = torch.tensor([[0] * 11 + [1] * 20])
    with torch.no_grad():
        packed = model(torch.cat((first, second), 1), doc)
        torch.testing.assert_close(packed[:, :11], model(first), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(packed[:, 11:], model(second), atol=1e-5, rtol=1e-4)


def test_attention_in_blocks_of_queries_is_torchs_also_in_the_gradient() -> None:
    length = QUERIES + QUERIES // 2
    g = torch.Generator().manual_seed(4)
    ours = [torch.randn(2, heads, length, 8, generator=g).requires_grad_() for heads in (4, 2, 2)]
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    doc = torch.arange(length)[None] // (QUERIES - 10)
    mask = (torch.ones(length, length, dtype=torch.bool).tril() & (doc[:, :, None] == doc[:, None, :]))[:, None].expand(
        2, -1, -1, -1
    )
    weight = torch.randn(2, 4, length, 8, generator=g)
    (attend(*ours, (mask,)) * weight).sum().backward()
    (attend(*theirs, mask) * weight).sum().backward()
    torch.testing.assert_close(attend(*ours, (mask,)), attend(*theirs, mask))
    torch.testing.assert_close([x.grad for x in ours], [x.grad for x in theirs])


def test_cache_gives_the_logits_of_the_full_pass_also_for_padded_prompts() -> None:
    model = make(KINDS["qwen3"])
    ids = torch.randint(1, 101, (2, 20), generator=torch.Generator().manual_seed(2))
    pad = torch.tensor([0, 6])
    cache = model.cache(2, 20, pad)
    with torch.no_grad():
        parts = [
            model(ids[:, :9], cache=cache),
            *(model(ids[:, i : i + 1], cache=cache, last=True) for i in range(9, 20)),
        ]
        cached = torch.cat(parts, 1)
        torch.testing.assert_close(cached[:1], model(ids[:1]), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(cached[1:, 6:], model(ids[1:, 6:]), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="20 slots"):
        model(ids[:, :1], cache=cache)


def test_weights_that_do_not_fit_are_named(tmp_path) -> None:
    save_model(make(KINDS["qwen3"]), tmp_path)
    config = (tmp_path / "config.json").read_text().replace('"intermediate_size": 48', '"intermediate_size": 64')
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=r"down_proj.weight is .*not"):
        load_model(tmp_path)


def test_parameter_count_is_the_models() -> None:
    for config in KINDS.values():
        assert config.parameters() == sum(p.numel() for p in Transformer(config).parameters())


def test_experts_get_gradients_and_balance_is_their_number_a_token_when_even() -> None:
    model = make(KINDS["qwen3_moe"])
    with torch.no_grad():
        for block in model.model.layers:
            block.mlp.gate.weight.zero_()
    ids = torch.randint(1, 101, (2, 20), generator=torch.Generator().manual_seed(2))
    model(ids).logsumexp(-1).sum().backward()
    assert model.balance().item() == pytest.approx(model.config.router_aux * model.config.experts_per_token, rel=1e-4)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


SCALINGS = {
    "yarn of MiniMind": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.0},
    "yarn with bounds": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 8, "beta_slow": 2},
    "yarn not truncated": {"rope_type": "yarn", "factor": 4.0, "truncate": False},
    "yarn with mscale": {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.6},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
}


@pytest.mark.parametrize("name", SCALINGS)
def test_a_scaling_of_positions_computes_what_transformers_computes_and_is_saved(name: str, tmp_path) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    scaling = SCALINGS[name] | ({} if name == "linear" else {"original_max_position_embeddings": 16})
    values = to_hf(ModelConfig(**SHAPE, qk_norm=False)) | {"rope_scaling": scaling}
    model = make(from_hf(values))
    plain = make(ModelConfig(**SHAPE, qk_norm=False))
    theirs = LlamaForCausalLM(LlamaConfig(**values)).eval()
    theirs.load_state_dict(model.state_dict(), strict=False)
    save_model(model, tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.randint(0, 101, (2, 60), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = model(ids)
        for other in (theirs, saved, load_model(tmp_path)):
            logits = other(ids)
            torch.testing.assert_close(ours, getattr(logits, "logits", logits), atol=2e-5, rtol=1e-4)
        assert (ours - plain(ids)).abs().max() > 0.01


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attention_bias", True),
        ("mlp_bias", True),
        ("hidden_act", "gelu"),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("use_sliding_window", True),
        ("partial_rotary_factor", 0.5),
        ("final_logit_softcapping", 30.0),
        ("embedding_multiplier", 12.0),
        ("quantization_config", {"bits": 4}),
        ("auto_map", {"AutoModel": "code.Model"}),
        ("rope_scaling", {"rope_type": "dynamic", "factor": 2.0}),
        ("rope_scaling", {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0]}),
        ("rope_scaling", {"rope_type": "linear", "factor": 2.0, "attention_factor": 1.5}),
        ("rope_scaling", {"rope_type": "yarn", "factor": 1.0, "attention_factor": 1.5}),
        ("rope_scaling", {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}),
        ("head_dim", None),
        ("hidden_size", "64"),
        ("rope_scaling", {"rope_type": "yarn", "factor": "4"}),
        ("rope_scaling", "yarn"),
        ("model_type", "gpt2"),
    ],
)
def test_what_an_imported_config_asks_for_and_is_not_computed_is_named(field: str, value) -> None:
    values = to_hf(ModelConfig(**SHAPE))
    from_hf(values)
    with pytest.raises(ValueError, match=r"c\.json: .*" + field.replace("rope_scaling", "RoPE")):
        from_hf({**values, field: value}, "c.json")
