"""PPO's pieces, the same in all scripts, by hand."""

import math

import numpy as np
import pytest
import toppo_mt50 as toppo
import torch
import vanilla_mtppo as vanilla
from scripts import every_script
from torch import nn


@every_script
def test_defaults_are_those_of_table_b1(module):
    args = module.Args()
    assert args.gamma == 0.99
    assert args.gae_lambda == 0.97
    assert args.num_steps == 10_000
    assert args.update_epochs == 16
    assert args.num_minibatches == 32
    assert args.learning_rate == 3e-4
    assert args.clip_coef == 0.2
    assert args.clip_vloss
    assert args.vf_coef == 0.001
    assert args.ent_coef == 0.005
    assert args.max_grad_norm == 1.0
    assert args.hidden_sizes == (400, 400, 400)
    assert args.eval_episodes == 50
    # Our choices, which the README lists
    assert args.bootstrap_truncation
    assert args.adam_eps == 1e-5


@pytest.mark.parametrize("bootstrap", [True, False])
def test_gae_is_a_mixture_of_n_step_advantages(bootstrap):
    """Weighted by lambda and cut off at the episode's end, which is a truncation."""
    args = vanilla.Args(gamma=0.95, gae_lambda=0.8, bootstrap_truncation=bootstrap)
    rng = np.random.default_rng(0)
    steps = 17
    rewards = rng.normal(size=(2, 3, steps))
    values = rng.normal(size=(2, 3, steps + 1))
    expected = np.zeros_like(rewards)
    for k, e, t in np.ndindex(rewards.shape):
        r = rewards[k, e]
        v = np.append(values[k, e, :-1], bootstrap * values[k, e, -1])
        n_step = []
        for n in range(1, steps - t + 1):
            discounted = sum(0.95**i * r[t + i] for i in range(n))
            n_step.append(discounted + 0.95**n * v[t + n] - v[t])
        shares = [0.2 * 0.8**i for i in range(len(n_step))]
        shares[-1] = 0.8 ** (len(n_step) - 1)
        expected[k, e, t] = np.dot(shares, n_step)

    given = torch.from_numpy(values.copy())
    advantages, returns = vanilla.gae(torch.from_numpy(rewards), given, args)
    np.testing.assert_allclose(advantages, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(returns, expected + values[..., :-1], rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(given, values)  # the caller still needs them


@pytest.mark.parametrize(
    ("num_tasks", "num_steps", "num_minibatches", "sizes"),
    [
        (10, 10_000, 32, {3_120, 3_130}),  # MT10: 312 or 313 of each task
        (50, 10_000, 32, {15_600, 15_650}),  # MT50
        (3, 500, 500, {3}),
        (4, 500, 1, {2_000}),
    ],
)
def test_stratified_minibatches(num_tasks, num_steps, num_minibatches, sizes):
    args = vanilla.Args(num_steps=num_steps, num_minibatches=num_minibatches)
    rng = np.random.default_rng(0)
    minibatches = vanilla.stratified_minibatches(num_tasks, args, rng, "cpu")
    assert len(minibatches) == num_minibatches
    assert all(len(index) == num_tasks for index in minibatches)  # as many of each task
    assert {index.numel() for index in minibatches} == sizes
    dealt = torch.cat(minibatches, dim=1)
    everyone = torch.arange(num_steps).expand(num_tasks, -1)
    assert torch.equal(dealt.sort(dim=1).values, everyone)  # each sample once
    assert not torch.equal(dealt[0], dealt[1])  # each task in an order of its own
    again = vanilla.stratified_minibatches(num_tasks, args, rng, "cpu")
    assert not torch.equal(dealt, torch.cat(again, dim=1))


# --- One task's losses, of a net whose outputs are its weights: sample i is the i-th unit vector


def policy_by_hand(args, ratios, advantages, log_std):
    """policy_loss where sample i has the given ratio. Returns loss, metrics and gradients."""
    n = len(ratios)
    torch.manual_seed(0)
    mean = torch.randn(n, 4)
    actions = torch.randn(n, 4)
    log_probs = -(((actions - mean) / log_std.exp()) ** 2) / 2 - log_std
    log_probs = (log_probs - math.log(2 * math.pi) / 2).sum(1)
    mb = {
        "obs": torch.eye(n),
        "actions": actions,
        "old_log_probs": log_probs - torch.tensor(ratios).log(),
        "advantages": torch.tensor(advantages),
    }
    shared = {"weight": mean.T.clone().requires_grad_()}
    own = {"log_std": log_std.clone().requires_grad_()}
    loss, metrics = vanilla.policy_loss(shared, own, mb, nn.Linear(n, 4, bias=False), args)
    d_mean, d_log_std = torch.autograd.grad(loss, [shared["weight"], own["log_std"]])
    slope = (actions - mean) / log_std.exp() ** 2  # of a log-probability in its mean
    return loss, metrics, d_mean.T / slope, d_log_std


def test_ratio_clip_by_hand():
    """min(rho A, clip(rho, 0.8, 1.2) A): a clipped sample has no gradient, another rho A / n."""
    loss, metrics, slopes, _ = policy_by_hand(
        vanilla.Args(clip_coef=0.2, ent_coef=0.0),
        ratios=[1.5, 0.5, 1.1, 1.5, 0.5, 0.9],
        advantages=[1.0, 1.0, 1.0, -1.0, -1.0, -1.0],  # normalised as they are
        log_std=torch.tensor([0.0, -0.5, 0.3, 0.1]),
    )
    surrogate = [1.2, 0.5, 1.1, -1.5, -0.8, -0.9]
    assert loss.item() == pytest.approx(-sum(surrogate) / 6, rel=1e-5)
    expected = -torch.tensor([0.0, 0.5, 1.1, -1.5, 0.0, -0.9]) / 6
    torch.testing.assert_close(slopes, expected[:, None].expand(6, 4), rtol=1e-4, atol=1e-5)
    assert metrics["losses/policy"] == loss
    assert metrics["losses/ratio_clip_fraction"] == pytest.approx(4 / 6)
    kl = np.mean([r - 1 - math.log(r) for r in (1.5, 0.5, 1.1, 1.5, 0.5, 0.9)])
    assert metrics["losses/approx_kl"].item() == pytest.approx(kl, rel=1e-4)


def test_entropy_bonus_by_hand():
    """Of a diagonal Gaussian: sum of log(sigma sqrt(2 pi e)), with slope 1 in each log-std."""
    log_std = torch.tensor([0.0, -0.5, 0.3, 0.1])
    entropy = sum(log_std.tolist()) + 4 * math.log(math.sqrt(2 * math.pi * math.e))
    (without, _, _, slope_without), (loss, metrics, _, slope) = (
        policy_by_hand(vanilla.Args(ent_coef=ent_coef), [1.0, 0.9], [1.0, -1.0], log_std)
        for ent_coef in (0.0, 0.25)
    )
    assert metrics["losses/entropy"].item() == pytest.approx(entropy, rel=1e-6)
    assert (loss - without).item() == pytest.approx(-0.25 * entropy, rel=1e-5)
    torch.testing.assert_close(slope - slope_without, torch.full((4,), -0.25))


def test_advantages_are_normalised_within_the_tasks_slice():
    args = vanilla.Args(ent_coef=0.0)
    ratios = [0.85, 0.9, 1.05, 1.15]
    advantages = np.array([3.0, -1.0, 0.0, 8.0])
    deviations = advantages - advantages.mean()
    normalised = deviations / math.sqrt((deviations**2).mean())  # variance 1: divided by n
    expected = -np.dot(ratios, normalised) / 4
    for scale, shift in ((1.0, 0.0), (1e3, -500.0), (1e-3, 0.25)):
        given = (scale * advantages + shift).tolist()
        loss = policy_by_hand(args, ratios, given, torch.zeros(4))[0]
        assert loss.item() == pytest.approx(expected, rel=1e-3)
    same = policy_by_hand(args, [0.9] * 7, [123.456] * 7, torch.zeros(4))[0]
    assert same.item() == 0  # where rounding of the mean in fp32 would give -0.9


@pytest.mark.parametrize("module", [vanilla, toppo])
@pytest.mark.parametrize("clip", [True, False])
def test_value_clip_by_hand(module, clip):
    """Old value 0: the clipped one is held to [-0.2, 0.2]; the larger squared error counts."""
    args = module.Args(clip_coef=0.2, clip_vloss=clip, vf_coef=0.1)
    mb = {
        "obs": torch.eye(4),
        "old_values": torch.zeros(4),
        "returns": torch.tensor([0.5, 2.0, 0.5, -3.0]),
    }
    shared = {"weight": torch.tensor([[0.1, 1.0, 1.0, -1.0]], requires_grad=True)}
    heads = {"scale": torch.tensor(1.0), "bias": torch.tensor(0.0)}  # TOPPO's
    loss, metrics = module.value_loss(shared, heads, mb, nn.Linear(4, 1, bias=False), args)
    loss.backward()
    # Unclipped 0.4, 1, 0.5, 2; clipped 0.4, 1.8, 0.3, 2.8, which stops the gradient
    errors = [0.4, 1.8, 0.5, 2.8] if clip else [0.4, 1.0, 0.5, 2.0]
    slopes = [-0.4, 0.0, 0.5, 0.0] if clip else [-0.4, -1.0, 0.5, 2.0]
    expected = 0.1 * 0.5 * sum(error**2 for error in errors) / 4
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(shared["weight"].grad, 0.1 * torch.tensor([slopes]) / 4)
    assert metrics["losses/value"] == loss
    assert metrics["losses/value_clip_fraction"] == (0.5 if clip else 0.0)


def test_value_clip_fraction_counts_no_rounding():
    torch.manual_seed(0)
    old_values = 300 * torch.rand(1000)
    mb = {"obs": torch.eye(1000), "old_values": old_values, "returns": 300 * torch.rand(1000)}
    shared = {"weight": (old_values + 0.19 * torch.randn(1000).clamp(-1, 1))[None]}
    net = nn.Linear(1000, 1, bias=False)
    _, metrics = vanilla.value_loss(shared, {}, mb, net, vanilla.Args())
    assert metrics["losses/value_clip_fraction"] == 0


@pytest.mark.parametrize(("reward", "expected"), [(0, 0), (1, -1)])
def test_explained_variance_of_equal_returns_is_no_huge_number(reward, expected):
    """The critic says 0, or numbers near it; that returns are A + V rounds those of 1."""
    few = {"num_steps": 500, "update_epochs": 1, "num_minibatches": 1, "gamma": 0.0}
    args = vanilla.Args(tasks=("reach-v3",), **few)
    torch.manual_seed(0)
    agent = vanilla.Agent(1, (4,))
    nn.init.normal_(agent.critic[-1].weight, std=reward)
    shapes = {"obs": (501, 40), "actions": (500, 4), "rewards": (500,)}
    rng = np.random.default_rng(0)
    rollout = {name: rng.standard_normal((1, 1, *x), np.float32) for name, x in shapes.items()}
    rollout["rewards"][:] = reward
    optimizer = torch.optim.Adam(agent.parameters())
    metrics = vanilla.update(agent, optimizer, rollout, rng, args)
    assert metrics["explained_variance"] == expected


# --- What is logged of the gradients


def test_gradient_metrics_by_hand():
    gram = np.array([[4.0, 0.0, -2.0], [0.0, 1.0, 0.0], [-2.0, 0.0, 1e4]])
    weights = np.array([0.5, 0.25, 0.01])
    metrics = vanilla.gradient_metrics("actor", gram, weights)
    contributions = [0.5 * (2.0 - 0.02), 0.25 * 0.25, 0.01 * (-1.0 + 100.0)]  # w_k (G w)_k
    np.testing.assert_allclose(metrics.pop("actor_gradient_norm"), [2.0, 1.0, 100.0])
    np.testing.assert_allclose(metrics.pop("actor_contribution"), contributions)
    expected = {
        "gradients/actor_log10_norm_spread": 2.0,
        "gradients/actor_mean_cosine": (0 - 0.01 + 0) / 3,
        "gradients/actor_top1_share": 1.0 / 2.25,
        "gradients/actor_combined_norm": math.sqrt(sum(contributions)),
    }
    assert metrics == pytest.approx(expected, rel=1e-12)

    gram[1, 1] = 0  # a task without a gradient does not count in the spread
    metrics = vanilla.gradient_metrics("critic", gram, weights)
    spread = metrics["gradients/critic_log10_norm_spread"]
    assert spread == pytest.approx(math.log10(50), rel=1e-12)
    for nothing in (vanilla.gradient_metrics("critic", 0 * gram, weights), metrics):
        assert all(np.isfinite(value).all() for value in nothing.values())
    alone = vanilla.gradient_metrics("critic", np.array([[4.0]]), np.ones(1))
    assert alone["gradients/critic_mean_cosine"] == 0
