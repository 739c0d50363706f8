"""PopArt: Welford's merges, raw values that do not move, and Eq. (2)."""

import numpy as np
import pytest
import toppo_mt50
import toppo_popart_ema
import torch
from scripts import WITH_POPART

with_popart = pytest.mark.parametrize("module", WITH_POPART, ids=lambda m: m.SCRIPT)
with_welford = pytest.mark.parametrize(
    "module", [m for m in WITH_POPART if m is not toppo_popart_ema], ids=lambda m: m.SCRIPT
)


def merge(module, popart, returns):
    """As update does, with a rate where the statistics are moving averages."""
    beta = [0.1] if module is toppo_popart_ema else []
    popart.update(returns, *beta)


@with_welford
def test_merged_statistics_are_those_of_all_returns_pooled(module):
    rng = np.random.default_rng(0)
    popart = module.PopArt(3)
    scales = np.array([1e-3, 1.0, 1e5])[:, None, None]
    collects = []
    for i, episodes in enumerate((1, 2, 1)):
        returns = rng.normal(size=(3, episodes, 500)) * scales * (1 + i) + 10 * i * scales
        collects.append(torch.from_numpy(returns).float())
        popart.update(collects[-1])
        pooled = torch.cat(collects, dim=1).flatten(1).double().numpy()
        np.testing.assert_allclose(popart.mu, pooled.mean(1), rtol=1e-12)
        np.testing.assert_allclose(popart.sigma, pooled.std(1), rtol=1e-12)
        np.testing.assert_array_equal(popart.count, pooled.shape[1])
    for statistic in (popart.count, popart.mu, popart.m2, popart.sigma):
        assert statistic.dtype == torch.float64


@with_popart
def test_statistics_are_saved_with_the_agent(module):
    agent = module.Agent(2, (8,))
    names = {"count", "mu", "m2", "sigma", "scale", "bias"}
    if module is toppo_popart_ema:
        names = names - {"m2"} | {"nu"}
    merge(module, agent.popart, torch.randn(2, 1, 500) + 3)
    another = module.Agent(2, (8,))
    another.load_state_dict(agent.state_dict())
    assert {name for name, _ in another.popart.state_dict().items()} == names
    for name in names:
        assert torch.equal(getattr(another.popart, name), getattr(agent.popart, name))
        assert getattr(agent.popart, name).count_nonzero() == 2


@with_popart
def test_raw_values_do_not_move_when_the_statistics_do(module):
    torch.manual_seed(0)
    agent = module.Agent(3, (32, 32))
    popart = agent.popart
    obs = torch.randn(3, 2, 11, 42)
    for scale in (1.0, 300.0, 0.01):
        popart.scale.data += 0.3 * torch.randn(3)
        popart.bias.data += 0.3 * torch.randn(3)
        sigma = popart.sigma.clone()
        before = agent.values(obs)
        returns = scale * (torch.randn(3, 1, 500) + torch.tensor([0.0, 5.0, -50.0])[:, None, None])
        merge(module, popart, returns)
        assert (popart.sigma != sigma).all()
        tolerance = 1e-5 * popart.sigma.max().item()
        torch.testing.assert_close(agent.values(obs), before, rtol=1e-5, atol=tolerance)


@with_popart
def test_values_are_the_affine_map_of_the_heads_outputs(module):
    """V = sigma_k (c_k h + b_k) + mu_k, and u = c_k h + b_k is what normalize makes of it."""
    torch.manual_seed(0)
    agent = module.Agent(2, (16,))
    popart = agent.popart
    merge(module, popart, torch.tensor([[[1.0, 3.0, 8.0]], [[-100.0, 50.0, 20.0]]]))
    popart.scale.data += torch.tensor([0.3, -0.2])
    obs = torch.randn(2, 3, 5, 41)
    for k in range(2):
        u = popart.scale[k] * agent.critic(obs[k]).squeeze(-1) + popart.bias[k]
        V = popart.sigma[k] * u + popart.mu[k]
        torch.testing.assert_close(agent.values(obs)[k], V.float(), rtol=1e-4, atol=1e-4)
        normalised = popart.normalize(agent.values(obs))[k]
        torch.testing.assert_close(normalised, u, rtol=1e-4, atol=1e-5)


@with_popart
def test_a_critic_that_gives_the_returns_has_no_loss(module):
    """The loss, its targets and its old values are all in the same normalised space."""
    torch.manual_seed(0)
    agent = module.Agent(3, (16,))
    merge(module, agent.popart, torch.randn(3, 1, 500) * torch.tensor([0.1, 1, 50])[:, None, None])
    obs = torch.randn(3, 2, 5, 42)
    values = agent.values(obs).detach()
    mb = {
        "obs": obs.flatten(1, 2),
        "returns": agent.popart.normalize(values).flatten(1),
        "old_values": agent.popart.normalize(values).flatten(1),
    }
    rows = dict(agent.popart.named_parameters())
    gradients, metrics = module.per_task_gradients(
        module.value_loss, agent.critic, rows, mb, module.Args()
    )
    assert metrics["losses/value"].max() < 1e-12
    assert gradients.shared.abs().max() < 1e-7


@with_popart
def test_constant_returns_meet_the_floor(module):
    popart = module.PopArt(2)
    constant = torch.full((2, 1, 500), 7.0)
    merge(module, popart, constant)
    assert (popart.sigma == module.SIGMA_FLOOR).all()
    assert torch.isfinite(popart.normalize(constant)).all()
    assert torch.isfinite(popart.scale).all()


@with_popart
def test_equation_2(module):
    """The shared gradient of the normalised loss is that of the raw loss over sigma_k^2.

    Raw values are u's with other rows: sigma_k c_k h + (sigma_k b_k + mu_k). No value clip.
    """
    torch.manual_seed(0)
    num_tasks = 3
    n = 12
    args = module.Args(clip_vloss=False, vf_coef=1.0)
    agent = module.Agent(num_tasks, (16, 16)).double()
    popart = agent.popart
    scales = torch.tensor([0.01, 1.0, 40.0])[:, None, None]
    merge(module, popart, torch.randn(num_tasks, 1, 500).double() * scales + 3)
    popart.scale.data += 0.1 * torch.randn(num_tasks)

    returns = popart.mu[:, None] + popart.sigma[:, None] * torch.randn(num_tasks, n).double()
    raw_mb = {
        "obs": torch.randn(num_tasks, n, 42).double(),
        "returns": returns,
        "old_values": torch.zeros(num_tasks, n).double(),
    }
    raw_rows = {
        "scale": (popart.sigma * popart.scale).detach(),
        "bias": (popart.sigma * popart.bias + popart.mu).detach(),
    }
    mb = raw_mb | {"returns": popart.normalize(returns[:, None])[:, 0]}
    rows = {"scale": popart.scale, "bias": popart.bias}

    def shared_gradients(rows, mb):
        return module.per_task_gradients(module.value_loss, agent.critic, rows, mb, args)[0].shared

    expected = shared_gradients(raw_rows, raw_mb) / popart.sigma[:, None] ** 2
    assert expected.abs().max(1).values.min() > 1e-3
    torch.testing.assert_close(shared_gradients(rows, mb), expected, rtol=1e-9, atol=1e-12)


# --- B.5's variant


def test_ema_is_debiased_and_its_moments_are_weighted_averages():
    """After t collects, collect i weighs (1 - beta)^(t - i) over the sum of those weights.

    So the first alone counts wholly.
    """
    rng = np.random.default_rng(0)
    beta = 0.1
    popart = toppo_popart_ema.PopArt(2)
    scales = np.array([1.0, 50.0])[:, None, None]
    collects = [rng.normal(size=(2, 1, 500)) * scales + i for i in range(12)]
    for t, collect in enumerate(collects):
        popart.update(torch.from_numpy(collect), beta)
        weights = (1 - beta) ** np.arange(t, -1, -1)
        weights /= weights.sum()
        first = sum(w * c.mean((1, 2)) for w, c in zip(weights, collects))
        second = sum(w * (c**2).mean((1, 2)) for w, c in zip(weights, collects))
        np.testing.assert_allclose(popart.mu, first, rtol=1e-9)
        np.testing.assert_allclose(popart.sigma, np.sqrt(second - first**2), rtol=1e-9)


def test_ema_tracks_a_drifting_target_that_welford_does_not():
    torch.manual_seed(0)
    ema = toppo_popart_ema.PopArt(1)
    welford = toppo_mt50.PopArt(1)
    for i in range(100):  # returns grow while the policy learns, then stay
        returns = torch.randn(1, 1, 500) + 10 * min(i, 50)
        ema.update(returns, 0.1)
        welford.update(returns)
    assert abs(ema.mu.item() - 500) < 5
    assert ema.sigma.item() < 30
    assert welford.mu.item() < 400
    assert welford.sigma.item() > 100
