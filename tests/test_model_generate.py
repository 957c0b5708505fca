import io
import subprocess
import sys

import pytest
import torch
from token_helpers import FACTS, new_model, taught_dir

from model import chat as chat_module
from model.chat import Chat, converse
from model.generation.generator import generate, stream
from model.generation.sampling import Sampling

PROMPTS = [[5, 6, 7], [100, 200, 300, 400, 410, 42], [9]]
STOP = {0, 2}


@pytest.fixture(scope="module")
def model():
    return new_model().eval()


def without_cache(model, prompt, count):
    ids = list(prompt)
    for _ in range(count):
        token = int(model(torch.tensor([ids]))[0, -1].argmax())
        if token in STOP:
            break
        ids.append(token)
    return ids[len(prompt) :]


def test_the_cache_changes_nothing_and_neither_do_neighbours(model):
    together = generate(model, PROMPTS, stop=STOP, max_new_tokens=20)
    assert together == [without_cache(model, prompt, 20) for prompt in PROMPTS]
    assert together == [generate(model, [prompt], stop=STOP, max_new_tokens=20)[0] for prompt in PROMPTS]


def test_a_sequence_that_ends_leaves_the_others_alone(model):
    free = generate(model, PROMPTS, stop=set(), max_new_tokens=20)
    stop = {free[0][3]}
    cut = [row[: next((i for i, token in enumerate(row) if token in stop), 20)] for row in free]
    assert generate(model, PROMPTS, stop=stop, max_new_tokens=20) == cut
    assert len(cut[0]) <= 3


@pytest.mark.parametrize(
    "shape", [{}, {"experts": 4, "experts_per_token": 2}, {"rope_factor": 4.0, "rope_original_len": 32}]
)
@pytest.mark.parametrize("draw", [Sampling(), Sampling(temperature=0.8, top_k=30, repetition_penalty=1.2, seed=5)])
def test_a_neighbour_takes_neither_room_nor_luck(shape, draw):
    own = new_model(**shape).eval()
    prompts = [[5, 6, 7], [1] * 120, [9], [11] * 127, [5, 6, 8]]
    alone = [generate(own, [p], stop={3}, max_new_tokens=40, sampling=draw)[0] for p in prompts]
    assert generate(own, prompts, stop={3}, max_new_tokens=40, sampling=draw) == alone
    assert generate(own, prompts[::-1], stop={3}, max_new_tokens=40, sampling=draw) == alone[::-1]
    assert [len(row) for row in generate(own, prompts, stop=set(), max_new_tokens=40)] == [40, 8, 40, 1, 40]


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


def test_draws_have_the_frequencies_of_the_distribution(model):
    wanted = torch.softmax(model(torch.tensor([PROMPTS[0]]))[0, -1], -1).detach()
    drawn = torch.tensor(
        generate(model, PROMPTS[:1] * 4000, stop=set(), max_new_tokens=1, sampling=Sampling(temperature=1.0))
    ).flatten()
    found = torch.bincount(drawn, minlength=len(wanted)) / len(drawn)
    top = wanted.topk(5).indices
    assert torch.allclose(found[top], wanted[top], atol=0.03)


def test_a_penalty_keeps_tokens_from_coming_back(model):
    said = generate(model, PROMPTS[:1], stop=set(), max_new_tokens=30, sampling=Sampling(repetition_penalty=1e6))[0]
    assert len(set(said)) == len(said)
    assert not set(said) & set(PROMPTS[0])


def test_what_cannot_be_generated_is_said(model):
    with pytest.raises(ValueError, match="max_seq_len"):
        generate(model, [[1] * 128], stop=STOP)
    with pytest.raises(ValueError, match="empty"):
        generate(model, [[]], stop=STOP)
    with pytest.raises(ValueError, match="top_p"):
        Sampling(top_p=0)
    assert [len(row) for row in generate(model, [[1] * 120, [2]], stop=set(), max_new_tokens=50)] == [8, 50]


def test_chat_prints_the_answer_and_nothing_else():
    command = [sys.executable, "-m", "flows.cli", "chat"]
    told = ["--prompt", "什么是词元？", "--temperature", "1", "--top-k", "1", "--top-p", "0.9"]
    done = subprocess.run([*command, str(taught_dir()), *told], capture_output=True, text=True, check=True)
    assert done.stdout == FACTS["什么是词元？"] + "\n" and str(taught_dir()) in done.stderr
    for wrong in (
        ["no-such-directory"],
        [str(taught_dir()), "--top-k", "3"],
        [str(taught_dir()), "--temperature", "-1"],
    ):
        refused = subprocess.run([*command, *wrong, "--prompt", "x"], capture_output=True, text=True)
        assert refused.returncode == 2 and "error: " in refused.stderr and "Traceback" not in refused.stderr


def test_a_conversation_has_commands_and_help(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("/help\n/nonsense\n/quit\n"))
    converse(Chat(taught_dir()))
    said = capsys.readouterr()
    assert said.err.count("/new   start over") == 2 and "/nonsense is no command" in said.err


def test_the_conversation_streams_and_starts_over(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("什么是损失？\n/new\nWhat is loss?\n/quit\n"))
    converse(Chat(taught_dir()))
    said = capsys.readouterr().out
    assert FACTS["什么是损失？"] in said
    assert FACTS["What is loss?"] in said


def test_old_turns_are_forgotten_when_the_window_is_full():
    chat = Chat(taught_dir())
    turns = [{"role": role, "content": "so many words " * 8} for role in ("user", "assistant")] * 3
    assert chat.answer([*turns, {"role": "user", "content": "什么是词元？"}])
    with pytest.raises(ValueError, match="reads at most"):
        chat.answer([{"role": "user", "content": "word " * 500}])
    assert chat_module.generation_defaults(taught_dir()) == {}
