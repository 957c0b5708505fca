from itertools import chain

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from token_helpers import new_model

from model.generation import generator as engine
from model.generation.generator import Generator, complete, generate, stream
from model.generation.sampling import GREEDY, Sampling, draws
from model.generation.slots import SlotCache
from model.network.lora import add_lora, merge
from model.network.weights import save_model
from model.specs.tune import LoraConfig

PROMPTS = [[5, 6, 7], [100, 200, 300, 400, 410, 42], [9]]
STOP = {0, 2}
SHAPES = {
    "qwen3": {},
    "llama, untied, odd sizes": {
        "qk_norm": False,
        "tied": False,
        "head_dim": 40,
        "heads": 4,
        "kv_heads": 2,
        "ffn": 100,
    },
    "experts": {"experts": 4, "experts_per_token": 2},
    "yarn": {"rope_factor": 4.0, "rope_original_len": 32},
}
DRAWS = {
    "greedy": GREEDY,
    "plain": Sampling(temperature=1.0, seed=3),
    "top-k": Sampling(temperature=0.7, top_k=20, seed=1),
    "nucleus": Sampling(temperature=1.2, top_p=0.8, seed=2),
    "all": Sampling(0.9, 60, 0.9, 0.02, 1.2, 0.4, 0.3, 5),
    "penalties alone": Sampling(repetition_penalty=1.3, presence_penalty=-0.5, frequency_penalty=0.7),
}


@pytest.fixture(scope="module")
def model():
    return new_model().eval()


@torch.no_grad()
def from_scratch(model, prompt, sample, count, sampling, stop=()):
    """Tokens and log-probabilities by whole forward passes, the processors of transformers and the same random
    numbers."""
    made = transformers.LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        made.append(transformers.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    warpers = transformers.LogitsProcessorList()
    if sampling.temperature:
        warpers.append(transformers.TemperatureLogitsWarper(sampling.temperature))
        warpers += [transformers.TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
        warpers += [transformers.TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
        warpers += [transformers.MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
    uniform = draws(prompt, sampling.seed, sample, count)
    ids, logprobs = list(prompt), []
    for step in range(min(count, model.config.max_seq_len - len(prompt))):
        logits = made(torch.tensor([ids]), model(torch.tensor([ids]))[:, -1])[0]
        said = torch.bincount(torch.tensor(ids[len(prompt) :], dtype=torch.long), minlength=len(logits))
        logits = logits - sampling.frequency_penalty * said - sampling.presence_penalty * (said > 0)
        logits = warpers(torch.tensor([ids]), logits[None])[0]
        token = int(logits.argmax())
        if sampling.temperature:
            cumulative = torch.softmax(logits.double(), -1).cumsum(-1)
            token = int(torch.searchsorted(cumulative, torch.tensor(uniform[step]) * cumulative[-1], right=True))
        ids.append(token)
        logprobs.append(float(torch.log_softmax(logits, -1)[token]))
        if token in stop:
            break
    return ids[len(prompt) :], logprobs


def flat(answer):
    """All tokens of a completion with their log-probabilities, the stop token last."""
    ends = [answer.stop] if answer.stop else []
    return [*zip(answer.tokens, answer.logprobs, strict=True), *ends]


def agree(answer, tokens, logprobs, tolerance=1e-4):
    said = flat(answer)
    assert [token for token, _ in said] == tokens
    np.testing.assert_allclose([value for _, value in said], logprobs, atol=tolerance, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_answers_are_those_of_transformers(shape, tmp_path):
    own = new_model(**SHAPES[shape]).eval()
    save_model(own, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    said = generate(own, PROMPTS, stop=STOP, max_new_tokens=40)
    for prompt, answer in zip(PROMPTS, said, strict=True):
        ids = torch.tensor([prompt])
        full = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40, eos_token_id=[0, 2],
            pad_token_id=0,
        )  # fmt: skip
        assert answer == [token for token in full[0, len(prompt) :].tolist() if token not in STOP]


@pytest.mark.parametrize("drawn", DRAWS)
def test_draws_and_their_probabilities_are_those_of_transformers_processors(model, drawn):
    answers = complete(model, PROMPTS, stop=STOP, max_new_tokens=25, sampling=DRAWS[drawn], samples=2)
    for prompt, own in zip(PROMPTS, answers, strict=True):
        for sample, answer in enumerate(own):
            agree(answer, *from_scratch(model, prompt, sample, 25, DRAWS[drawn], STOP))


@pytest.mark.parametrize("drawn", ["greedy", "all", "nucleus"])
def test_the_path_for_other_devices_says_the_same(model, drawn, monkeypatch):
    mixed = new_model(**SHAPES["experts"]).eval()
    packed = [
        complete(m, PROMPTS, stop=STOP, max_new_tokens=30, sampling=DRAWS[drawn], samples=2) for m in (model, mixed)
    ]
    monkeypatch.setattr(engine, "Packed", SlotCache)
    for m, wanted in zip((model, mixed), packed, strict=True):
        found = complete(m, PROMPTS, stop=STOP, max_new_tokens=30, sampling=DRAWS[drawn], samples=2)
        for a, b in zip(chain(*found), chain(*wanted), strict=True):
            agree(a, *map(list, zip(*flat(b), strict=True)))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_what_a_sequence_says_depends_on_no_neighbour_no_slot_and_no_order(model, data):
    base = [7, 8, 9] * 25
    prompts = [base[:70], base[:71], [*base[:40], 3], [9], base[:64], [5, 6, 7]]
    wanted = {}
    running = Generator(model, slots=data.draw(st.integers(1, 4), "slots"))
    said, whose = {}, {}
    for _ in range(data.draw(st.integers(1, 6), "requests")):
        prompt, drawn = data.draw(st.integers(0, 5), "prompt"), data.draw(st.sampled_from(sorted(DRAWS)), "sampling")
        samples = data.draw(st.integers(1, 3), "samples")
        for i, id in enumerate(
            running.add(prompts[prompt], stop={3}, max_new_tokens=9, sampling=DRAWS[drawn], samples=samples)
        ):
            whose[id], said[id] = (prompt, drawn, i), []
        for _ in range(data.draw(st.integers(0, 5), "steps")):
            for token in running.step():
                said[token.id].append((token.token, token.logprob))
        if data.draw(st.integers(0, 3), "cancel") == 0:
            gone = data.draw(st.sampled_from(sorted(whose)), "whom")
            running.cancel(gone)
            whose.pop(gone)
    while running.busy:
        for token in running.step():
            said[token.id].append((token.token, token.logprob))
    for id, (prompt, drawn, sample) in whose.items():
        if (prompt, drawn) not in wanted:
            own = complete(
                model, [prompts[prompt]], stop={3}, max_new_tokens=9, sampling=DRAWS[drawn], samples=3, slots=1
            )
            wanted[prompt, drawn] = [flat(answer) for answer in own[0]]
        assert said[id] == wanted[prompt, drawn][sample]  # to the bit


def test_threads_change_no_bit(model):
    alone = complete(model, PROMPTS, stop=STOP, max_new_tokens=20, sampling=DRAWS["plain"])
    mixed = new_model(**SHAPES["experts"]).eval()
    other = complete(mixed, PROMPTS, stop=STOP, max_new_tokens=20)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert complete(model, PROMPTS, stop=STOP, max_new_tokens=20, sampling=DRAWS["plain"]) == alone
        assert complete(mixed, PROMPTS, stop=STOP, max_new_tokens=20) == other
    finally:
        torch.set_num_threads(before)


def test_a_neighbour_takes_no_room(model):
    prompts = [[5, 6, 7], [1] * 120, [9], [11] * 127, [5, 6, 8]]
    answers = complete(model, prompts, stop=set(), max_new_tokens=40)
    assert [len(own[0].tokens) for own in answers] == [40, 8, 40, 1, 40]
    assert {own[0].finish for own in answers} == {"length"} and answers[3][0].stop is None


def test_a_long_prompt_does_not_stall_those_who_answer():
    own = new_model(max_seq_len=1024).eval()
    running = Generator(own, slots=2)
    first = running.add([5, 6, 7], stop=set(), max_new_tokens=60)[0]
    running.step()
    second = running.add([4] * 900, stop=set(), max_new_tokens=1)[0]
    steps = [[token.id for token in running.step()] for _ in range(20)]
    assert all(first in step for step in steps), "each step brings a token of the answer"
    assert [second in step for step in steps].index(True) > 5, "while the prompt is read in parts"


def test_weights_that_changed_are_read_again_and_training_goes_on(model):
    own = new_model().eval()
    running = Generator(own, slots=2)
    before = complete(running, PROMPTS, stop=STOP, max_new_tokens=10)
    optimizer = torch.optim.SGD(own.parameters(), lr=0.5)
    own(torch.tensor([PROMPTS[0]])).square().mean().backward()
    optimizer.step()
    running.refresh()
    after = complete(running, PROMPTS, stop=STOP, max_new_tokens=10)
    assert after != before and after == complete(own, PROMPTS, stop=STOP, max_new_tokens=10)
    agree(after[0][0], *from_scratch(own, PROMPTS[0], 0, 10, GREEDY, STOP))
    running.add(PROMPTS[1], stop=set(), max_new_tokens=6)
    halves = [running.step()[0].token for _ in range(3)]
    running.refresh()
    while running.busy:
        halves += [token.token for token in running.step()]
    assert halves == generate(own, PROMPTS[1:2], stop=set(), max_new_tokens=6)[0]


def test_an_adapter_counts_as_if_it_were_merged():
    config = LoraConfig(rank=4)
    tuned, merged = new_model().eval(), new_model().eval()
    add_lora(tuned, config, seed=1)
    for name, p in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.05, generator=torch.Generator().manual_seed(len(name)))
    merge(merged, {name: p.detach() for name, p in tuned.named_parameters() if "lora_" in name}, config)
    wanted = complete(merged, PROMPTS, stop=STOP, max_new_tokens=20)
    for found, other in zip(complete(tuned, PROMPTS, stop=STOP, max_new_tokens=20), wanted, strict=True):
        agree(found[0], *map(list, zip(*flat(other[0]), strict=True)))
    assert generate(tuned, PROMPTS, stop=STOP) != generate(new_model().eval(), PROMPTS, stop=STOP)


def test_a_model_in_bf16_has_the_probabilities_of_its_weights_in_full_precision():
    half = new_model().eval().to(torch.bfloat16)
    half.compute_dtype = torch.bfloat16
    full = new_model().eval()
    full.load_state_dict(half.state_dict())
    found = complete(half, PROMPTS, stop=STOP, max_new_tokens=1)
    wanted = complete(full, PROMPTS, stop=STOP, max_new_tokens=1)
    for a, b in zip(found, wanted, strict=True):
        agree(a[0], *map(list, zip(*flat(b[0]), strict=True)), tolerance=3e-2)


def test_the_likeliest_tokens_are_the_models_own_whatever_is_drawn(model):
    running = Generator(model, slots=1)
    running.add(PROMPTS[0], stop=set(), max_new_tokens=1, sampling=DRAWS["all"], top_logprobs=5)
    (token,) = running.step()
    raw = torch.log_softmax(model(torch.tensor([PROMPTS[0]]))[0, -1], -1).detach()
    assert [id for id, _ in token.top[:5]] == raw.topk(5).indices.tolist()
    np.testing.assert_allclose([value for _, value in token.top[:5]], raw.topk(5).values, atol=1e-4)
    assert dict(token.top)[token.token] == pytest.approx(float(raw[token.token]), abs=1e-4)


def test_samples_of_a_prompt_read_it_once_and_those_that_come_later_begin_where_it_ends(model, monkeypatch):
    read = []
    running = Generator(model, slots=4)
    own = running._cache.read
    monkeypatch.setattr(
        running._cache, "read", lambda pieces, wanted: read.append(len(pieces.ids)) or own(pieces, wanted)
    )
    running.add([7, 8] * 40, stop=set(), max_new_tokens=1, samples=4)
    while running.busy:
        running.step()
    assert sum(read) == 80 + 3, "the others read its last token alone"
    read.clear()
    running.add([7, 8] * 40 + [5, 5], stop=set(), max_new_tokens=1)
    running.step()
    assert read == [2]


def test_slots_are_freed_at_once_and_what_was_cancelled_is_not_heard_of_again(model):
    running = Generator(model, slots=1)
    first, second, third = (running.add([5 + i], stop=set(), max_new_tokens=20)[0] for i in range(3))
    running.step()
    assert (running.running, running.waiting) == (1, 2)
    running.cancel(second)
    running.cancel(first)
    running.cancel(first)
    assert [token.id for token in running.step()] == [third]
    assert (running.running, running.waiting, running.busy) == (1, 0, True)
    running.cancel(third)
    assert not running.busy and running.step() == []


def test_a_sequence_that_ends_leaves_the_others_alone(model):
    free = generate(model, PROMPTS, stop=set(), max_new_tokens=20)
    stop = {free[0][3]}
    cut = [row[: next((i for i, token in enumerate(row) if token in stop), 20)] for row in free]
    answers = complete(model, PROMPTS, stop=stop, max_new_tokens=20)
    assert [own[0].tokens for own in answers] == cut and len(cut[0]) <= 3
    assert answers[0][0].finish == "stop" and answers[0][0].stop[0] in stop and answers[0][0].stop[1] < 0


def test_equal_prompts_draw_apart(model):
    draw = Sampling(temperature=1.0, seed=3)
    first, second = generate(model, [PROMPTS[0]] * 2, stop=STOP, max_new_tokens=12, sampling=draw)
    assert first != second
    assert generate(model, PROMPTS[:1], stop=STOP, max_new_tokens=12, sampling=draw) == [first]


def test_sampling_follows_its_seed_and_not_the_batch(model):
    draw = Sampling(temperature=1.0, top_k=40, top_p=0.9, seed=3)
    one = generate(model, PROMPTS, stop=STOP, max_new_tokens=12, sampling=draw)
    assert one == generate(model, PROMPTS, stop=STOP, max_new_tokens=12, sampling=draw)
    assert one != generate(model, PROMPTS, stop=STOP, max_new_tokens=12, sampling=Sampling(temperature=1.0, seed=4))
    assert (
        list(stream(model, PROMPTS[0], stop=STOP, max_new_tokens=12, sampling=draw))
        == generate(model, PROMPTS[:1], stop=STOP, max_new_tokens=12, sampling=draw)[0]
    )


@pytest.mark.parametrize(
    "narrow", [Sampling(temperature=1.0, top_k=1), Sampling(temperature=1.0, top_p=1e-6), Sampling(temperature=1e-4)]
)
def test_the_narrowest_sampling_is_greedy(model, narrow):
    assert generate(model, PROMPTS, stop=STOP, max_new_tokens=8, sampling=narrow) == generate(
        model, PROMPTS, stop=STOP, max_new_tokens=8
    )


def test_a_penalty_keeps_tokens_from_coming_back(model):
    said = generate(model, PROMPTS[:1], stop=set(), max_new_tokens=30, sampling=Sampling(repetition_penalty=1e6))[0]
    assert len(set(said)) == len(said)
    assert not set(said) & set(PROMPTS[0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1}, {"temperature": float("nan")}, {"temperature": 1e-9}, {"temperature": True},
        {"top_k": -1}, {"top_k": 1.5}, {"top_p": 0}, {"top_p": 1.1}, {"min_p": 2}, {"repetition_penalty": 0},
        {"presence_penalty": 3}, {"frequency_penalty": -2.5}, {"frequency_penalty": float("inf")}, {"seed": "x"},
    ],
)  # fmt: skip
def test_sampling_that_means_nothing_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_what_cannot_be_generated_is_said(model):
    with pytest.raises(ValueError, match="max_seq_len"):
        generate(model, [[1] * 128], stop=STOP)
    with pytest.raises(ValueError, match="empty"):
        generate(model, [[]], stop=STOP)
    with pytest.raises(ValueError, match="450"):
        generate(model, [[1, 450]], stop=STOP)
    with pytest.raises(ValueError, match="max_new_tokens"):
        generate(model, [[1]], stop=STOP, max_new_tokens=0)
    with pytest.raises(ValueError, match="slots"):
        Generator(model, slots=0)
    broken = new_model().eval()
    torch.nn.init.constant_(broken.model.norm.weight, float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        generate(broken, [[1]], stop=STOP)
    assert generate(model, [], stop=STOP) == []
