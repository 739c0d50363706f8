"""PopArt: Welford's merges, raw values that do not move, and Eq. (2)."""

import numpy as np
import pytest
import toppo_mt50 as toppo
import toppo_popart_ema as ema
import torch

both_kinds = pytest.mark.parametrize(
    ("module", "beta"), [(toppo, []), (ema, [0.1])], ids=["welford", "ema"]
)


def unlike_returns(num_tasks, steps=500):
    """Returns [K, 1, steps] in fp64 whose scales are orders of magnitude apart."""
    scales = 10.0 ** torch.linspace(-2, 2, num_tasks).double()[:, None, None]
    return scales * torch.randn(num_tasks, 1, steps) + 3


def test_merged_statistics_are_those_of_all_returns_pooled():
    rng = np.random.default_rng(0)
    popart = toppo.PopArt(3)
    scales = np.array([1e-3, 1.0, 1e5])[:, None, None]
    collects = []
    for i, episodes in enumerate((1, 2, 1)):
        returns = rng.normal(size=(3, episodes, 500)) * scales * (1 + i) + 10 * i * scales
        collects.append(torch.from_numpy(returns).float())
        popart.update(collects[-1])
        pooled = torch.cat(collects, dim=1).flatten(1).double().numpy()
        np.testing.assert_allclose(popart.mu, pooled.mean(1), rtol=1e-12)
        np.testing.assert_allclose(popart.sigma, pooled.std(1), rtol=1e-12)
    for statistic in (popart.count, popart.mu, popart.m2, popart.sigma):
        assert statistic.dtype == torch.float64


def test_moving_averages_are_debiased():
    """B.5's variant: after t collects, collect i weighs (1 - beta)^(t - i) over those' sum."""
    rng = np.random.default_rng(0)
    popart = ema.PopArt(2)
    scales = np.array([1.0, 50.0])[:, None, None]
    collects = [rng.normal(size=(2, 1, 500)) * scales + i for i in range(12)]
    for t, collect in enumerate(collects):
        popart.update(torch.from_numpy(collect), 0.1)
        weights = 0.9 ** np.arange(t, -1, -1)
        weights /= weights.sum()
        first = sum(w * c.mean((1, 2)) for w, c in zip(weights, collects))
        second = sum(w * (c**2).mean((1, 2)) for w, c in zip(weights, collects))
        np.testing.assert_allclose(popart.mu, first, rtol=1e-9)
        np.testing.assert_allclose(popart.sigma, np.sqrt(second - first**2), rtol=1e-9)


@both_kinds
def test_raw_values_do_not_move_when_the_statistics_do(module, beta):
    torch.manual_seed(0)
    agent = module.Agent(3, (16, 16))
    popart = agent.popart
    obs = torch.randn(3, 2, 11, 42)
    for scale in (1.0, 300.0, 0.01):
        popart.scale.data += 0.3 * torch.randn(3)
        popart.bias.data += 0.3 * torch.randn(3)
        sigma = popart.sigma.clone()
        before = agent.values(obs)
        popart.update(scale * unlike_returns(3), *beta)
        assert (popart.sigma != sigma).all()
        tolerance = 1e-5 * popart.sigma.max().item()
        torch.testing.assert_close(agent.values(obs), before, rtol=1e-5, atol=tolerance)


@both_kinds
def test_statistics_are_saved_with_the_agent(module, beta):
    agent, another = module.Agent(2, (8,)), module.Agent(2, (8,))
    agent.popart.update(unlike_returns(2), *beta)
    another.load_state_dict(agent.state_dict())
    again = unlike_returns(2)
    for popart in (agent.popart, another.popart):
        popart.update(again, *beta)
    for x, y in zip(agent.state_dict().values(), another.state_dict().values()):
        assert torch.equal(x, y)


@both_kinds
def test_constant_returns_meet_the_floor(module, beta):
    popart = module.PopArt(2)
    constant = torch.full((2, 1, 500), 7.0)
    popart.update(constant, *beta)
    assert (popart.sigma == 1e-4).all()
    assert torch.isfinite(popart.normalize(constant)).all()
    assert torch.isfinite(popart.scale).all()


def test_values_are_the_affine_map_of_the_heads_outputs():
    """V = sigma_k (c_k h + b_k) + mu_k, and u = c_k h + b_k is what normalize makes of it."""
    torch.manual_seed(0)
    agent = toppo.Agent(2, (16,)).double()
    popart = agent.popart
    popart.update(unlike_returns(2))
    popart.scale.data += torch.tensor([0.3, -0.2])
    obs = torch.randn(2, 3, 5, 41).double()
    for k in range(2):
        u = popart.scale[k] * agent.critic(obs[k]).squeeze(-1) + popart.bias[k]
        V = popart.sigma[k] * u + popart.mu[k]
        torch.testing.assert_close(agent.values(obs)[k], V)
        torch.testing.assert_close(popart.normalize(agent.values(obs))[k], u)


def test_a_critic_that_gives_the_returns_has_no_loss():
    """The loss, its targets and its old values are all in the same normalised space."""
    torch.manual_seed(0)
    agent = toppo.Agent(3, (16,)).double()
    agent.popart.update(unlike_returns(3))
    obs = torch.randn(3, 2, 5, 42).double()
    targets = agent.popart.normalize(agent.values(obs)).flatten(1).detach()
    mb = {"obs": obs.flatten(1, 2), "returns": targets, "old_values": targets}
    heads = dict(agent.popart.named_parameters())
    J, _, metrics = toppo.per_task_gradients(
        toppo.value_loss, agent.critic, heads, mb, toppo.Args()
    )
    assert metrics["losses/value"].max() < 1e-20
    assert J.abs().max() < 1e-10


def test_equation_2():
    """The shared gradient of the normalised loss is that of the raw loss over sigma_k^2.

    Raw values are u's with other heads: sigma_k c_k h + (sigma_k b_k + mu_k). No value clip.
    """
    torch.manual_seed(0)
    args = toppo.Args(clip_vloss=False, vf_coef=1.0)
    agent = toppo.Agent(3, (16, 16)).double()
    popart = agent.popart
    popart.update(unlike_returns(3))
    popart.scale.data += 0.1 * torch.randn(3)
    returns = unlike_returns(3, steps=12)
    obs = torch.randn(3, 12, 42).double()

    def shared_gradients(heads, returns):
        mb = {"obs": obs, "returns": returns[:, 0], "old_values": torch.zeros(3, 12).double()}
        return toppo.per_task_gradients(toppo.value_loss, agent.critic, heads, mb, args)[0]

    raw_heads = {
        "scale": (popart.sigma * popart.scale).detach(),
        "bias": (popart.sigma * popart.bias + popart.mu).detach(),
    }
    heads = {"scale": popart.scale, "bias": popart.bias}
    expected = shared_gradients(raw_heads, returns) / popart.sigma[:, None] ** 2
    assert expected.abs().max(1).values.min() > 1e-3
    actual = shared_gradients(heads, popart.normalize(returns))
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
