"""PopArt: Welford's merges, outputs that do not move, and Eq. (2)."""

import functools

import numpy as np
import pytest
import toppo_mt50
import toppo_popart_ema
import torch
from scripts import WITH_POPART

popart = pytest.mark.parametrize("module", WITH_POPART, ids=lambda m: m.SCRIPT)


def make_agent(module, num_tasks, hidden_sizes):
    agent = module.Agent(num_tasks, hidden_sizes)
    if module is toppo_popart_ema:
        agent.update_popart = functools.partial(agent.update_popart, beta=0.1)
    return agent


@pytest.mark.parametrize("module", [m for m in WITH_POPART if m is not toppo_popart_ema], ids=lambda m: m.SCRIPT)
def test_merged_statistics_are_those_of_all_returns_pooled(module):
    rng = np.random.default_rng(0)
    agent, scales = make_agent(module, 3, (8,)), np.array([[1e-3], [1.0], [1e5]])
    collects = [rng.normal(size=(3, m)) * scales * (1 + i) + 10 * i * scales for i, m in enumerate((500, 1000, 500))]
    collects = [torch.from_numpy(c).float() for c in collects]
    for collect in collects:
        agent.update_popart(collect)
    pooled = np.concatenate([c.numpy().astype(np.float64) for c in collects], axis=1)
    np.testing.assert_allclose(agent.mu, pooled.mean(1), rtol=1e-12)
    np.testing.assert_allclose(agent.sigma, pooled.std(1), rtol=1e-12)
    np.testing.assert_allclose(agent.count, pooled.shape[1])
    assert agent.mu.dtype == agent.sigma.dtype == agent.m2.dtype == torch.float64


@popart
def test_raw_values_do_not_move_when_the_statistics_do(module):
    torch.manual_seed(0)
    agent = make_agent(module, 3, (32, 32))
    obs = torch.randn(3, 2, 11, 42)
    for scale in 1.0, 300.0, 0.01:
        agent.head_weight.data += 0.3 * torch.randn(3)
        agent.head_bias.data += 0.3 * torch.randn(3)
        before, sigma = agent.values(obs), agent.sigma.clone()
        agent.update_popart(scale * (torch.randn(3, 400) + torch.tensor([[0.0], [5.0], [-50.0]])))
        assert (agent.sigma != sigma).all()
        torch.testing.assert_close(agent.values(obs), before, rtol=1e-5, atol=1e-5 * float(agent.sigma.max()))


@popart
def test_normalised_values_and_raw_values_are_one_affine_map_apart(module):
    torch.manual_seed(0)
    agent = make_agent(module, 2, (16,))
    agent.update_popart(torch.tensor([[1.0, 3.0, 8.0], [-100.0, 50.0, 20.0]]))
    obs = torch.randn(2, 5, 41)
    h = agent.critic(obs).squeeze(-1)
    u = agent.head_weight[:, None] * h + agent.head_bias[:, None]
    torch.testing.assert_close(agent.normalize(agent.values(obs)), u, rtol=1e-4, atol=1e-5)


@popart
def test_constant_returns_meet_the_floor(module):
    agent = make_agent(module, 2, (16,))
    agent.update_popart(torch.full((2, 100), 7.0))
    assert (agent.sigma == module.SIGMA_FLOOR).all()
    assert torch.isfinite(agent.normalize(torch.full((2, 100), 7.0))).all()


@popart
def test_equation_2(module):
    """The shared-critic gradient of the normalised loss is that of the raw loss over sigma_k^2, by autograd (value clip off)."""
    torch.manual_seed(0)
    num_tasks, n, args = 3, 12, module.Args(clip_vloss=False)
    agent = make_agent(module, num_tasks, (16, 16)).double()
    agent.update_popart(torch.randn(num_tasks, 50).double() * torch.tensor([[0.01], [1.0], [40.0]]) + 3)
    obs, weight = torch.randn(num_tasks, n, 42).double(), torch.full((num_tasks, n), 1 / n).double()
    returns = agent.mu[:, None] + agent.sigma[:, None] * torch.randn(num_tasks, n).double()
    for k in range(num_tasks):
        u = agent.head_weight[k] * agent.critic(obs[k]).squeeze(-1) + agent.head_bias[k]
        raw = agent.sigma[k] * u + agent.mu[k]
        target = (returns[k] - agent.mu[k]) / agent.sigma[k]
        shared = list(agent.critic.parameters())
        pairs = (u, target), (raw, returns[k])
        losses = [module.value_losses(v[None], v[None], r[None], weight[[k]], args)[0] for v, r in pairs]
        normalised_grad, raw_grad = (torch.autograd.grad(loss.sum(), shared, retain_graph=True) for loss in losses)
        for a, b in zip(normalised_grad, raw_grad):
            torch.testing.assert_close(a, b / agent.sigma[k] ** 2, rtol=1e-9, atol=1e-14)


def test_ema_is_debiased_and_its_moments_are_weighted_averages():
    """After t collects, collect i weighs (1 - beta)^(t - i) over the sum of those weights; the first alone counts wholly."""
    rng, beta, agent = np.random.default_rng(0), 0.1, toppo_popart_ema.Agent(2, (8,))
    collects = [rng.normal(size=(2, 300)) * [[1.0], [50.0]] + i for i in range(12)]
    for t, collect in enumerate(collects):
        agent.update_popart(torch.from_numpy(collect), beta)
        weights = (1 - beta) ** np.arange(t, -1, -1)
        weights /= weights.sum()
        first, second = (sum(w * (c**p).mean(1) for w, c in zip(weights, collects)) for p in (1, 2))
        np.testing.assert_allclose(agent.mu, first, rtol=1e-9)
        np.testing.assert_allclose(agent.sigma, np.sqrt(second - first**2), rtol=1e-9)


def test_ema_tracks_a_drifting_target_that_welford_does_not():
    torch.manual_seed(0)
    ema, welford = toppo_popart_ema.Agent(1, (8,)), toppo_mt50.Agent(1, (8,))
    for i in range(100):  # returns grow tenfold while the policy learns, then stay
        collect = torch.randn(1, 500) + min(i, 50) * 10
        ema.update_popart(collect, 0.1)
        welford.update_popart(collect)
    assert abs(ema.mu.item() - 500) < 5 and ema.sigma.item() < 30
    assert welford.mu.item() < 400 and welford.sigma.item() > 100
