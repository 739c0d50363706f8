"""The pieces of PPO that all scripts share, against independent computations. test_ladder.py holds the scripts to one text."""

import math

import numpy as np
import pytest
import torch
import vanilla_mtppo as ppo
from vanilla_mtppo import Args


@pytest.mark.parametrize("bootstrap", [True, False])
def test_gae_with_truncation_against_a_double_loop(bootstrap):
    rng = np.random.default_rng(0)
    tasks, episodes, horizon, gamma, lam = 2, 3, 17, 0.99, 0.97
    rewards, values = rng.normal(size=(tasks, episodes, horizon)), rng.normal(size=(tasks, episodes, horizon + 1))
    values[..., -1] *= bootstrap  # as the scripts do with --no-bootstrap-truncation
    advantages, returns = ppo.gae(torch.from_numpy(rewards), torch.from_numpy(values), gamma, lam)
    for k in range(tasks):
        for e in range(episodes):
            r, v = rewards[k, e], values[k, e]
            for t in range(horizon):
                # the definition: a lambda-weighted mixture of n-step advantages, cut off at the episode's end
                n_step = [
                    sum(gamma**i * r[t + i] for i in range(n)) + gamma**n * v[t + n] - v[t] for n in range(1, horizon - t + 1)
                ]
                mixture = sum((1 - lam) * lam ** (n - 1) * n_step[n - 1] for n in range(1, len(n_step)))
                mixture += lam ** (len(n_step) - 1) * n_step[-1]
                assert math.isclose(advantages[k, e, t], mixture, rel_tol=1e-9, abs_tol=1e-12)
                assert math.isclose(returns[k, e, t], mixture + v[t], rel_tol=1e-9, abs_tol=1e-12)


@pytest.mark.parametrize(
    ("num_tasks", "num_steps", "num_minibatches"),
    [(10, 10_000, 32), (50, 10_000, 32), (3, 500, 500), (1, 500, 7), (7, 1000, 33), (4, 500, 1)],
)
def test_stratified_minibatches(num_tasks, num_steps, num_minibatches):
    indices, weights = ppo.deal_minibatches(num_tasks, num_steps, num_minibatches, np.random.default_rng(0))
    used = weights > 0
    shares, sizes = used.sum(2), used.sum((1, 2))
    assert indices.shape[0] == num_minibatches
    assert shares.max() - shares.min() <= 1
    assert sizes.max() - sizes.min() <= 1
    if num_steps == 10_000:
        assert (sizes == {10: 3_125, 50: 15_625}[num_tasks]).all()
    for k in range(num_tasks):  # every sample of every task once
        assert torch.equal(indices[:, k][used[:, k]].sort().values, torch.arange(num_steps))
    torch.testing.assert_close(weights, (used / shares[..., None]).float())
    again, _ = ppo.deal_minibatches(num_tasks, num_steps, num_minibatches, np.random.default_rng(1))
    assert num_minibatches == num_steps == 500 or not torch.equal(indices[used], again[used])


def test_ratio_clip_by_hand():
    # min(rho A, clip(rho, 0.8, 1.2) A): a clipped sample has no gradient, an unclipped one has -A / n
    ratio = torch.tensor([[1.5, 0.5, 1.1, 1.5, 0.5, 0.9]], requires_grad=True)
    advantages = torch.tensor([[2.0, 2.0, 2.0, -2.0, -2.0, -2.0]])
    weight = torch.full((1, 6), 1 / 6)
    loss = ppo.policy_losses(ratio, advantages, torch.full((1, 6), 3.0), weight, Args(clip_coef=0.2, ent_coef=0.01))
    surrogate = [2.4, 1.0, 2.2, -3.0, -1.6, -1.8]
    torch.testing.assert_close(loss, torch.tensor([-sum(surrogate) / 6 - 0.01 * 3.0]))
    loss.sum().backward()
    torch.testing.assert_close(ratio.grad, torch.tensor([[0.0, -2.0, -2.0, 2.0, 0.0, 2.0]]) / 6)


def test_value_clip_by_hand():
    # old value 0, clip 0.2: V_clip is the value held to [-0.2, 0.2]; the larger of the two squared errors counts
    values = torch.tensor([[0.1, 1.0, 1.0, -1.0]], requires_grad=True)
    returns = torch.tensor([[0.5, 2.0, 0.5, -3.0]])
    old_values, weight = torch.zeros(1, 4), torch.full((1, 4), 0.25)
    loss, hit = ppo.value_losses(values, old_values, returns, weight, Args(clip_coef=0.2, clip_vloss=True, vf_coef=0.1))
    errors = [0.4**2, 1.8**2, 0.5**2, 2.8**2]  # clipped (0.2 - 2)^2 > (1 - 2)^2; unclipped (1 - 0.5)^2 > (0.2 - 0.5)^2
    torch.testing.assert_close(loss, torch.tensor([0.1 * 0.5 * sum(errors) / 4]))
    assert hit.tolist() == [[False, True, False, True]]
    loss.sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([[-0.4, 0.0, 0.5, 0.0]]) * 0.1 / 4)
    loss, hit = ppo.value_losses(values, old_values, returns, weight, Args(clip_coef=0.2, clip_vloss=False, vf_coef=0.1))
    torch.testing.assert_close(loss, torch.tensor([0.1 * 0.5 * (0.4**2 + 1.0 + 0.25 + 4.0) / 4]))
    assert not hit.any()


def test_padding_slots_change_nothing():
    torch.manual_seed(0)
    ratio, advantages, entropy, values, old, returns = torch.rand(6, 1, 5) + 0.5
    args, whole, padded = Args(), torch.full((1, 4), 0.25), torch.tensor([[0.25] * 4 + [0.0]])
    for full, cut in [
        (ppo.policy_losses(ratio, advantages, entropy, padded, args),
         ppo.policy_losses(ratio[:, :4], advantages[:, :4], entropy[:, :4], whole, args)),
        (ppo.value_losses(values, old, returns, padded, args)[0],
         ppo.value_losses(values[:, :4], old[:, :4], returns[:, :4], whole, args)[0]),
    ]:
        torch.testing.assert_close(full, cut)


def test_gradient_metrics_by_hand():
    gram = torch.tensor([[4.0, 0.0, -2.0], [0.0, 1.0, 0.0], [-2.0, 0.0, 1e4]], dtype=torch.float64)
    weights = torch.tensor([0.5, 0.25, 0.01], dtype=torch.float64)
    metrics = ppo.gradient_metrics(("actor", gram, weights), ("critic", 4 * gram, weights))
    torch.testing.assert_close(metrics["actor_gradient_norm"], torch.tensor([2.0, 1.0, 100.0], dtype=torch.float64))
    expected = {
        "log10_norm_spread": 2.0,
        "mean_cosine": (0 - 0.01 + 0) / 3,
        "top1_share": 1.0 / 2.25,
        "combined_norm": math.sqrt(0.25 * 4 + 0.0625 + 1e-4 * 1e4 + 2 * 0.5 * 0.01 * -2),
    }
    for name, value in expected.items():
        assert math.isclose(metrics[f"gradients/actor_{name}"], value, rel_tol=1e-12)
    assert math.isclose(metrics["gradients/norm_ratio"], 2.0)
    gram[1, 1] = 0  # a task without a gradient does not count in the spread
    metrics = ppo.gradient_metrics(("actor", gram, weights), ("critic", 0 * gram, weights))
    assert math.isclose(metrics["gradients/actor_log10_norm_spread"], math.log10(50), rel_tol=1e-12)
    assert all(torch.isfinite(value).all() for value in metrics.values())
