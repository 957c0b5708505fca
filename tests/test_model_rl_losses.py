"""The formulas of reinforcement learning against TRL's own trainer: the same weights, the same sampled answers."""

import numpy as np
import pytest
import torch
from rl_helpers import answers, padded, rollout, spec
from token_helpers import new_model, tokenizer_dir

from model.network.weights import save_model
from model.objectives import policy
from model.objectives.reinforce import Policy, add_value_head
from model.objectives.sampled import log_probs

VARIANTS = {
    "grpo": ({}, {"loss_type": "grpo"}),
    "grpo with the initial model": (
        {"beta": 0.3, "num_iterations": 2},
        {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": True},
    ),
    "grpo, plain divergence, two-sided clip": (
        {"beta": 0.1, "use_bias_correction_kl": False, "delta": 1.5, "epsilon_high": 0.3},
        {"loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": False, "delta": 1.5, "epsilon_high": 0.3},
    ),
    "dr_grpo": ({"algorithm": "dr_grpo"}, {"loss_type": "dr_grpo"}),
    "dapo": ({"algorithm": "dapo"}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "cispo": ({"algorithm": "cispo", "beta": 0.1}, {"loss_type": "cispo", "epsilon_high": 5.0, "beta": 0.1}),
    "cispo that clips": ({"algorithm": "cispo", "epsilon_high": 1.1}, {"loss_type": "cispo", "epsilon_high": 1.1}),
    "gspo": (
        {"algorithm": "gspo", "beta": 0.2},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "beta": 0.2},
    ),
}


@pytest.fixture(scope="module")
def trl(tmp_path_factory):
    """TRL's trainer on a model directory of ours, and that model."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    path = tmp_path_factory.mktemp("rl")
    model = new_model()
    save_model(model, path / "model", tokenizer_dir())
    config = GRPOConfig(
        output_dir=str(path / "out"), use_cpu=True, report_to=[], bf16=False, beta=0.1, num_generations=2,
        per_device_train_batch_size=2, gradient_checkpointing=False, model_init_kwargs={"dtype": "float32"},
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": "a"}] * 4)
    trainer = GRPOTrainer(str(path / "model"), lambda completions, **_: [0.0] * len(completions), config, rows)
    return trainer, model


def theirs(trainer, options, sampled, made, known, longest):
    """TRL's loss and the gradient of the embedding for a rollout."""
    plain = {"beta": 0.0, "epsilon_high": 0.2, "importance_sampling_level": "token"}
    chosen = {**plain, "use_bias_correction_kl": True, "delta": None, **options}
    trainer.beta, trainer.loss_type = chosen["beta"], chosen["loss_type"]
    trainer.epsilon_low, trainer.epsilon_high = 0.2, chosen["epsilon_high"]
    trainer.importance_sampling_level = chosen["importance_sampling_level"]
    trainer.max_completion_length, trainer.current_gradient_accumulation_steps = longest, 1
    trainer.args.use_bias_correction_kl, trainer.args.delta = chosen["use_bias_correction_kl"], chosen["delta"]
    trainer.args.steps_per_generation = 1
    front = max(len(a.prompt) for a in sampled)
    prompt = torch.tensor([[0] * (front - len(a.prompt)) + list(a.prompt) for a in sampled])
    mask = padded(np.ones(int(made.begin[-1]), np.int64), made)
    inputs = {
        "prompt_ids": prompt,
        "prompt_mask": torch.tensor([[0] * (front - len(a.prompt)) + [1] * len(a.prompt) for a in sampled]),
        "completion_ids": padded(np.concatenate([a.tokens for a in sampled]), made),
        "completion_mask": mask,
        "advantages": torch.tensor(known.advantage[made.begin[:-1]]),
        "old_per_token_logps": padded(known.old, made),
        "ref_per_token_logps": padded(known.reference, made),
        "num_items_in_batch": mask.sum(),
    }
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    means = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return loss.item(), trainer.model.get_input_embeddings().weight.grad.clone(), means


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_the_one_of_trl(trl, name):
    trainer, model = trl
    own, options = VARIANTS[name]
    chosen = spec(importance_sampling_clip_max=0.0, seq_len=20, **own)
    sampled = answers()
    made, known = rollout(sampled, chosen)
    objective = Policy(model, chosen)
    everything = np.arange(made.rows)
    objective.known = known
    logp = torch.zeros(int(made.begin[-1]))
    batch = objective.batch(made.read(everything), 1.0, 16, "train")
    with torch.no_grad():
        values, _ = objective(batch, scores=True)  # near enough to the model that ratios are not all clipped
    there = batch.weight > 0
    logp[batch.token[there]] = values[there]
    known.old = (logp.numpy() + 0.2 * known.old).astype(np.float32)
    known.reference = (logp.numpy() + 0.2 * known.reference).astype(np.float32)
    expected, gradient, means = theirs(trainer, options, sampled, made, known, chosen.max_completion_length)
    model.zero_grad()
    total, sums = 0.0, 0
    for numbers in ([0, -1], *[[i] for i in everything[1:]]):
        loss, part = objective(objective.batch(made.read(np.array(numbers)), 1.0, 16, "train"))
        loss.backward()
        total, sums = total + loss.item(), sums + part
    assert total == pytest.approx(expected, abs=1e-5)
    assert torch.allclose(model.model.embed_tokens.weight.grad, gradient, atol=1e-5)
    assert float(sums[0]) == pytest.approx(expected, abs=1e-5)
    found = dict(zip(objective.names, (sums / sums[-1]).tolist(), strict=True))
    assert found["entropy"] == pytest.approx(means["entropy"], abs=1e-4)
    if chosen.beta:
        assert found["kl"] == pytest.approx(means["kl"], abs=1e-3) or chosen.use_bias_correction_kl
    if "clip_ratio/low_mean" in means and chosen.recipe.level == "token" and chosen.algorithm != "cispo":
        assert found["clip_low"] == pytest.approx(means["clip_ratio/low_mean"], abs=1e-6)
        assert found["clip_high"] == pytest.approx(means["clip_ratio/high_mean"], abs=1e-6)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_are_those_of_trl(scale):
    from trl.trainer.utils import nanstd

    rewards = torch.tensor([[1.0, 0.0, 0.5, 1.0], [0.0, 0.0, 0.0, 0.0], [2.0, 1.0, 0.0, 0.0]])
    expected = rewards - rewards.mean(1, keepdim=True)
    spread = {"group": nanstd(rewards, dim=1)[:, None], "batch": nanstd(rewards), "none": 1.0 - 1e-4}[scale]
    assert torch.allclose(policy.advantages(rewards, scale), expected / (spread + 1e-4), atol=1e-6)
    assert policy.varied(rewards).tolist() == [True, False, True]


def reference_gae(rewards, values, gamma, lam):
    """Generalised advantages by their definition: the sum of all later surprises, each discounted."""
    after = [*values[1:], 0.0]
    surprise = [r + gamma * n - v for r, n, v in zip(rewards, after, values, strict=True)]
    return [sum((gamma * lam) ** k * s for k, s in enumerate(surprise[t:])) for t in range(len(rewards))]


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 1.0), (0.99, 0.0)])
def test_generalised_advantages_follow_their_definition_up_to_each_answers_end(gamma, lam):
    rng = np.random.default_rng(0)
    rewards, values, lengths = rng.normal(size=(3, 6)), rng.normal(size=(3, 6)), [6, 1, 4]
    found = policy.gae(*(torch.tensor(x) for x in (rewards, values, lengths)), gamma, lam)
    for i, n in enumerate(lengths):
        expected = reference_gae(rewards[i, :n].tolist(), values[i, :n].tolist(), gamma, lam)
        assert found[i, :n].tolist() == pytest.approx(expected)
        assert found[i, n:].abs().sum() == 0


def test_ppo_is_clipped_policy_plus_clipped_value_over_all_tokens():
    """The formulas of TRL 0.19's PPOTrainer (masked means of maxima), written out token by token."""
    chosen = spec(algorithm="ppo", epsilon=0.2, importance_sampling_clip_max=0.0, ppo={"vf_coef": 0.3})
    sampled = answers()
    made, known = rollout(sampled, chosen)
    model = new_model()
    add_value_head(model)
    torch.nn.init.normal_(model.value_head, std=0.1, generator=torch.Generator().manual_seed(0))
    objective = Policy(model, chosen)
    objective.known = known
    batch = objective.batch(made.read(np.arange(made.rows)), 1.0, 16, "train")
    logp, value = objective(batch, scores=True)
    there = batch.weight > 0
    known.old[batch.token[there].numpy()] = logp[there].detach().numpy() + 0.3 * known.reference[: there.sum()]
    batch = objective.batch(made.read(np.arange(made.rows)), 1.0, 16, "train")
    loss, sums = objective(batch)
    gains, misses = [], []
    for i in there.nonzero()[:, 0].tolist():
        ratio, a = float(torch.exp(logp[i] - batch.old[i])), float(batch.advantage[i])
        gains.append(max(-a * ratio, -a * min(max(ratio, 0.8), 1.2)))
        v, old, wanted = float(value[i]), float(batch.value[i]), float(batch.returns[i])
        near = min(max(v, old - 0.2), old + 0.2)
        misses.append(max((v - wanted) ** 2, (near - wanted) ** 2))
    expected = np.mean(gains) + 0.3 * 0.5 * np.mean(misses)
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    assert float(sums[0]) == pytest.approx(expected, abs=1e-5)
    assert float(sums[6] / sums[-1]) == pytest.approx(0.5 * np.mean(misses), abs=1e-5)
    loss.backward()
    assert model.value_head.grad.abs().sum() > 0


def test_whitened_advantages_have_mean_0_and_variance_1_over_what_is_inside():
    values, inside = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), torch.ones(3, 5, dtype=torch.bool)
    inside[0, 2:] = inside[1, 4:] = False
    found = policy.whitened(values, inside)
    assert float(found[inside].mean()) == pytest.approx(0, abs=1e-6)
    assert float(found[inside].var()) == pytest.approx(1, abs=1e-5) and found[~inside].abs().sum() == 0


@pytest.mark.parametrize(
    "temperature, top_k, top_p", [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.3, 5, 1.0), (0.9, 0, 0.8), (1.0, 7, 0.6)]
)
def test_log_probabilities_are_of_the_distribution_that_is_sampled_from(temperature, top_k, top_p):
    rng = torch.Generator().manual_seed(0)
    h = torch.randn(300, 8, generator=rng, requires_grad=True)
    head = torch.randn(40, 8, generator=rng, requires_grad=True)
    logits = h @ head.t() / temperature
    ranked = logits.sort(-1, descending=True)
    inside = torch.arange(40) < (top_k or 40)
    weights = ranked.values.masked_fill(~inside, float("-inf")).softmax(-1)
    stay = (weights.cumsum(-1) - weights < top_p) & inside
    targets = ranked.indices[torch.arange(300), torch.arange(300) % stay.sum(-1)]  # some that can be drawn
    plain = torch.zeros_like(logits).scatter(1, ranked.indices, torch.where(stay, ranked.values, float("-inf")))
    expected = torch.log_softmax(plain, -1)
    logp, entropy = log_probs(h, head, targets, temperature, top_k, top_p)
    own = expected.gather(1, targets[:, None])[:, 0]
    assert torch.allclose(logp, own, atol=1e-5)
    assert torch.allclose(entropy, torch.distributions.Categorical(probs=expected.exp()).entropy(), atol=1e-4)
    slope = torch.randn(300, generator=rng)
    found = torch.autograd.grad((logp * slope).sum(), (h, head))
    wanted = torch.autograd.grad((own * slope).sum(), (h, head))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found, wanted, strict=True))
