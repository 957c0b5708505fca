"""int8 and int4 forms: what they compute, against the rule written down plainly and against transformers with
compressed-tensors."""

import json

import numba
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from token_helpers import FACTS, documents, new_model, taught_dir, tokenizer_dir

from model.generation import generator as engine
from model.generation.generator import Generator, complete, generate
from model.generation.kernels import matrices
from model.generation.kernels.matrices import INT8, panel_bytes, product, ready
from model.generation.kernels.tiles import PANEL
from model.generation.panels import fill, pad
from model.generation.scorer import Scorer
from model.generation.slots import SlotCache
from model.network.transformer import Linear, Transformer
from model.network.weights import load_model, save_model
from model.quantized.linear import Int4Linear, Int8Linear, exact_products, pack, unpack
from model.quantized.load import open_model
from model.quantized.rounding import int4_codes, int8_codes, restored
from model.quantized.scheme import Scheme
from model.quantized.write import METHODS, write_rounded
from model.tokens.chat import ChatTokenizer


def windows():
    """Calibration texts and the conversations of FACTS as ids."""
    chat = ChatTokenizer.load(taught_dir())
    talks = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in FACTS.items()]
    return [torch.tensor(chat.encode(text)[:120]) for text, _ in documents()[:8]], [
        torch.tensor(chat.chat(talk)[0]) for talk in talks
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The taught model as int8, and as int4 by each method."""
    out, texts = tmp_path_factory.mktemp("rounded"), [*windows()[0], *windows()[1]]
    write_rounded(taught_dir(), out / "int8", Scheme(8))
    for method in METHODS:
        write_rounded(taught_dir(), out / method, Scheme(4, 32), method=method, windows=texts)
    return out


@torch.no_grad()
def kl(model, other):
    """Mean KL divergence in nats of ``other`` from ``model`` over the conversations."""
    rows = []
    for ids in windows()[1]:
        own, theirs = (m(ids[None])[0].log_softmax(-1) for m in (model, other))
        rows.append((own.exp() * (own - theirs)).sum(-1).mean())
    return float(torch.stack(rows).mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_int8_matrix_computes_what_its_rule_says(dtype):
    torch.manual_seed(0)
    weight, x = torch.randn(33, 96), torch.randn(2, 5, 96).to(dtype)
    codes, scale = int8_codes(weight)
    assert codes.abs().max() == 127 and (restored(codes, scale) - weight).abs().max() <= scale.max() / 2 * 1.001
    matrix = Int8Linear(codes, scale)
    step = x.float().abs().amax(-1, keepdim=True) / 127
    expected = (x.float() / step).round().double() @ codes.double().t() * step.double() * scale.double().t()
    assert exact_products() and matrix(x).dtype == dtype
    assert (matrix(x).double() - expected).abs().max() < (1e-4 if dtype == torch.float32 else 0.15)
    assert torch.equal(matrix.weight, restored(codes, scale))
    assert not matrix(torch.zeros(1, 96)).any()


@pytest.mark.parametrize("outputs", [33, 64])
def test_an_int4_matrix_computes_what_its_rule_says(outputs):
    torch.manual_seed(0)
    weight, x = torch.randn(outputs, 96), torch.randn(2, 5, 96)
    codes, scale = int4_codes(weight, 32, "search")
    matrix = Int4Linear(codes, scale)
    expected = x.bfloat16().float() @ restored(codes, scale).t()
    assert (matrix(x) - expected).abs().max() < 0.01 * expected.abs().max()
    assert torch.equal(matrix.weight, restored(codes, scale)) and torch.equal(matrix.codes, codes)
    assert torch.equal(unpack(pack(codes), codes.shape), codes)


def test_a_row_s_result_does_not_depend_on_its_neighbours(folders):
    for form in ("int8", "gptq"):
        matrix = open_model(folders / form).model.layers[0].mlp.up_proj
        x = torch.randn(40, 64, generator=torch.Generator().manual_seed(1))
        assert torch.equal(matrix(x), torch.cat([matrix(row[None]) for row in x]))


def test_better_scales_lose_less_and_calibration_less_still(folders):
    exact = Transformer.from_dir(taught_dir()).eval()
    lost = {form: kl(exact, open_model(folders / form).eval()) for form in ("int8", *METHODS)}
    assert lost["int8"] < 0.005 < lost["gptq"] < lost["search"] < lost["nearest"] < 0.3
    sizes = {form: (folders / form / "model.safetensors").stat().st_size for form in lost}
    assert sizes["gptq"] < sizes["int8"] < (taught_dir() / "model.safetensors").stat().st_size / 2


@pytest.mark.parametrize("form, tolerance", [("int8", 0.25), ("search", 0.1)])
def test_transformers_opens_them_and_computes_the_same(form, tolerance, folders):
    from transformers import AutoModelForCausalLM

    own = open_model(folders / form).eval()
    theirs = AutoModelForCausalLM.from_pretrained(folders / form, dtype=torch.float32).eval()
    with torch.no_grad():
        for ids in windows()[1]:
            a, b = own(ids[None]), theirs(ids[None]).logits
            # activations are rounded by a scale of 127.5 there, and int4 sums are not rounded to bf16
            assert (a - b).abs().max() < tolerance * b.std()
            assert (a - b).abs().mean() < tolerance / 8 * b.std()


def test_a_rounded_model_answers_and_is_scored_like_any_other(folders):
    for form in ("int8", "gptq"):
        scorer = Scorer(str(folders / form), "cpu", "auto", 4, lambda _: None)
        assert scorer.answers(list(FACTS), 40) == list(FACTS.values())
        good, bad = scorer.likelihoods(
            [("什么是词元？", FACTS["什么是词元？"]), ("什么是词元？", FACTS["什么是损失？"])]
        )
        assert good[0] > -1 > bad[0]
        prompts = [scorer.tokenizer.prompt([{"role": "user", "content": q}]) for q in FACTS]
        together = generate(scorer.model, prompts, stop=(), max_new_tokens=20)
        assert together == [generate(scorer.model, [p], stop=(), max_new_tokens=20)[0] for p in prompts]


def said(model, prompts, **more):
    """Tokens and log-probabilities."""
    return [(own.tokens, own.logprobs) for (own,) in complete(model, prompts, stop=(), max_new_tokens=12, **more)]


def unrounded(model):
    """The same model with the matrices that its codes stand for."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Int8Linear | Int4Linear):
            exact = Linear(module.weight.shape[1], module.weight.shape[0])
            exact.weight = torch.nn.Parameter(module.weight)
            model.set_submodule(name, exact)
    return model


def test_compiled_products_are_those_of_the_rule_for_any_neighbours_and_threads(folders, monkeypatch):
    prompts = [ids[:n].tolist() for ids, n in zip(windows()[0], (1, 3, 7, 30, 2, 9, 41, 5), strict=True)]
    for form in ("int8", "search"):
        model = open_model(folders / form).eval()
        made = said(model, prompts)
        assert made == [said(model, [prompt])[0] for prompt in prompts] == said(model, prompts, slots=3)
        torch.set_num_threads(3)
        try:
            assert said(model, prompts) == made
        finally:
            torch.set_num_threads(1)
        if form == "search":  # to the bit: a code times its scale is a number that fp32 has
            assert made == said(unrounded(open_model(folders / form).eval()), prompts)
        else:
            monkeypatch.setattr(engine, "Packed", SlotCache)  # torch's integer products
            for (tokens, logprobs), (theirs, others) in zip(made, said(model, prompts), strict=True):
                assert tokens == theirs and logprobs == pytest.approx(others, abs=1e-4)
            monkeypatch.undo()


@pytest.mark.parametrize("outputs, inputs, rows", [(1, 1, 1), (33, 5, 13), (64, 130, 8)])
def test_compiled_int8_products_are_exact_for_any_shape(outputs, inputs, rows):
    torch.manual_seed(0)
    codes, scale = int8_codes(torch.randn(outputs, inputs))
    x = torch.randn(rows, inputs) * torch.logspace(-3, 3, rows)[:, None]
    panels = torch.zeros(pad(outputs) // PANEL, panel_bytes(INT8, 0, inputs), dtype=torch.uint8)
    fill(panels, INT8, (codes, scale))
    room, steps = np.zeros(rows * (inputs + 3), np.uint8), np.zeros(rows, np.float32)
    ready(INT8, x.numpy().reshape(-1), 0, inputs, rows, inputs, room, steps)
    out = np.ones((rows, pad(outputs)), np.float32)
    product(INT8, 0, x.numpy().reshape(-1), 0, inputs, room, steps, 0, rows, panels.numpy().reshape(-1), 0, inputs,
            out.reshape(-1), 0, pad(outputs), True, pad(outputs) // PANEL)  # fmt: skip
    assert np.array_equal(out[:, :outputs], (1 + Int8Linear(codes, scale)(x)).numpy())


def test_a_processor_without_integer_products_gets_the_same_sums(monkeypatch):
    monkeypatch.setattr(matrices, "_DOT", False)
    tile = matrices._tile(matrices._int8, 2, "aiaiaiiaii")

    @numba.njit
    def run(codes, steps, w, quads, out):
        tile(codes, 0, steps, 0, w, 0, quads, out, 0, PANEL, False)

    codes, scale = int8_codes(torch.randn(PANEL, 24, generator=torch.Generator().manual_seed(0)))
    panels, x = torch.zeros(1, panel_bytes(INT8, 0, 24), dtype=torch.uint8), torch.randn(2, 24)
    fill(panels, INT8, (codes, scale))
    room, steps, out = np.zeros(48, np.uint8), np.zeros(2, np.float32), np.zeros((2, PANEL), np.float32)
    ready(INT8, x.numpy().reshape(-1), 0, 24, 2, 24, room, steps)
    run(room, steps, panels.numpy().reshape(-1), 6, out.reshape(-1))
    assert np.array_equal(out, Int8Linear(codes, scale)(x).numpy())


def test_weights_that_bf16_holds_no_longer_are_read_again_as_they_are():
    model, prompts = new_model().eval(), [[3, 4, 5], [7]]
    exact = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.data = p.data.bfloat16().float()
    generator = Generator(model, slots=2)
    halves = said(generator, prompts)
    computing = new_model().eval()  # in bf16, with weights of more digits
    computing.model.embed_tokens.weight.data = model.model.embed_tokens.weight.data.clone()
    computing.compute_dtype = torch.bfloat16
    assert said(computing, prompts) == halves
    for name, p in model.named_parameters():
        p.data.copy_(exact[name])
    generator.refresh()
    assert halves != said(generator, prompts) == said(new_model().eval(), prompts)


def test_experts_are_rounded_and_their_router_is_not(tmp_path):
    save_model(new_model(experts=4, experts_per_token=2, expert_ffn=64), tmp_path / "model", tokenizer_dir())
    exact = Transformer.from_dir(tmp_path / "model").eval()
    for scheme, limit in ((Scheme(8), 0.005), (Scheme(4, 32), 0.2)):
        write_rounded(tmp_path / "model", tmp_path / str(scheme.bits), scheme)
        tensors = load_file(tmp_path / str(scheme.bits) / "model.safetensors")
        assert tensors["model.layers.0.mlp.gate.weight"].dtype == torch.float32
        assert "model.layers.1.mlp.experts.3.down_proj.weight_scale" in tensors
        own = open_model(tmp_path / str(scheme.bits)).eval()
        assert kl(exact, own) < limit
        assert said(own, [[3, 4, 5], [9] * 30]) == [said(own, [[3, 4, 5]])[0], said(own, [[9] * 30])[0]]


def test_the_same_bytes_come_out_again(folders, tmp_path):
    texts = [*windows()[0], *windows()[1]]
    write_rounded(taught_dir(), tmp_path / "again", Scheme(4, 32), method="gptq", windows=texts)
    for path in (folders / "gptq").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_what_cannot_be_rounded_trained_or_read_is_refused_by_name(folders, tmp_path):
    save_model(new_model(ffn=96), tmp_path / "model", tokenizer_dir())
    with pytest.raises(ValueError, match=r"64 does not fit matrices of 96 inputs; quantize\.group may be 32"):
        write_rounded(tmp_path / "model", tmp_path / "out", Scheme(4, 64))
    with pytest.raises(ValueError, match=r"quantization_config = .* is not supported"):
        load_model(folders / "int8")
    config = json.loads((folders / "int8" / "config.json").read_text())
    rounding = config["quantization_config"]
    group = rounding["config_groups"]["group_0"]
    for odd, said in (
        ({"quant_method": "gptq"}, "quant_method 'gptq' is not supported"),
        ({"config_groups": {}}, "one config group"),
        ({"config_groups": {"a": {**group, "input_activations": None}}}, "input_activations with num_bits None"),
        ({"config_groups": {"a": {**group, "weights": {**group["weights"], "num_bits": 3}}}}, "num_bits 3"),
        ({"config_groups": {"a": {**group, "weights": {**group["weights"], "symmetric": False}}}}, "symmetric False"),
    ):
        folder = tmp_path / said[:10].replace(" ", "-")
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {**rounding, **odd}}))
        with pytest.raises(ValueError, match=said):
            open_model(folder)
