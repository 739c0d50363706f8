"""Combiners as the scripts use them, against torchjd.

CAGrad also by duality, and FairGrad on gradients of a script's critic.
PCGrad's loop over vectors is in plain_update.py.
"""

import numpy as np
import pytest
import toppo_mt50 as toppo
import torch
from fairgrad_solver import solve_fairgrad
from ln_popart_cagrad_cagrad import cagrad_weights
from scipy.optimize import nnls
from torchjd import aggregation


def some_gradients(num_tasks, dim, spread, seed=0, shift=0.1):
    """Random gradients [K, D] whose norms range over so many powers of ten."""
    rng = np.random.default_rng(seed)
    norms = 10.0 ** rng.uniform(-spread / 2, spread / 2, size=(num_tasks, 1))
    return (rng.normal(size=(num_tasks, dim)) + shift) * norms


def some_grams():
    gradients = [some_gradients(k, 60, 1, seed=k) for k in (1, 2, 5, 10, 50)]
    return [J @ J.T for J in gradients]


# --- PCGrad


def test_pcgrad_without_conflict_is_the_mean_and_takes_zero_gradients():
    J = np.abs(some_gradients(6, 20, spread=0))
    for zero in (None, 2):
        if zero is not None:
            J[zero] = 0
        weights = toppo.pcgrad_weights(J @ J.T, np.random.default_rng(0))
        np.testing.assert_allclose(weights, np.full(6, 1 / 6))


def test_pcgrad_against_torchjd_in_the_same_orders(monkeypatch):
    for seed, gram in enumerate(some_grams()):
        rng = np.random.default_rng(seed)
        orders = iter([torch.from_numpy(rng.permutation(len(gram))) for _ in gram])
        monkeypatch.setattr(torch, "randperm", lambda n, orders=orders: next(orders))
        expected = aggregation.PCGradWeighting()(torch.from_numpy(gram)).numpy() / len(gram)
        given = gram.copy()
        weights = toppo.pcgrad_weights(given, np.random.default_rng(seed))
        np.testing.assert_allclose(weights, expected, rtol=1e-6, atol=1e-12)
        np.testing.assert_array_equal(given, gram)  # the metrics still need it


# --- CAGrad


@pytest.mark.parametrize(("num_tasks", "spread"), [(1, 0), (2, 2), (10, 2), (50, 1)])
@pytest.mark.parametrize("c", [0.0, 0.4, 0.9])
def test_cagrad_by_duality(num_tasks, spread, c):
    """CAGrad's definition: d maximises min_k <g_k, d> in the ball |d - g0| <= c |g0|.

    The simplex problem is its dual, so a d in the ball whose worst inner product reaches the
    dual value is optimal; nothing of the solver enters the check.
    """
    J = some_gradients(num_tasks, 200, spread)
    weights = cagrad_weights(J @ J.T, c)
    g0 = J.mean(axis=0)
    d = (1 + c**2) * weights @ J
    assert np.linalg.norm(d - g0) <= c * np.linalg.norm(g0) * (1 + 1e-9) + 1e-12
    x = (1 + c**2) * weights - 1 / num_tasks
    if c == 0:
        np.testing.assert_allclose(x, 0, atol=1e-12)  # the mean
    else:
        x = x / x.sum()
        dual = g0 @ (x @ J) + c * np.linalg.norm(g0) * np.linalg.norm(x @ J)
        assert dual - (J @ d).min() <= 2e-3 * abs(dual)


def test_cagrads_weights_do_not_depend_on_the_gradients_scale():
    J = some_gradients(5, 200, 1)
    expected = cagrad_weights(J @ J.T, 0.5)
    for scale in (1e-8, 1e8):
        np.testing.assert_allclose(cagrad_weights(scale**2 * J @ J.T, 0.5), expected, rtol=1e-5)


def test_a_vanishing_gradient_leaves_cagrad():
    """Beside the others it counts as zero, and its weight is the mean's share."""
    J = some_gradients(5, 200, 0)
    J[2] *= 1e-12
    weights = cagrad_weights(J @ J.T, 0.5)
    assert weights[2] == pytest.approx(1 / 5 / (1 + 0.5**2))
    J[2] = 0
    np.testing.assert_allclose(weights, cagrad_weights(J @ J.T, 0.5), rtol=1e-5)


def test_cagrad_against_torchjd():
    """The objective is flat at its minimum: the two agree to a part in 10^3.

    Where they differ, ours has the better worst inner product.
    """
    weighting = aggregation.CAGradWeighting(c=0.5)
    for gram in some_grams():
        ours = cagrad_weights(gram, 0.5)
        theirs = weighting(torch.from_numpy(gram)).numpy() / (1 + 0.5**2)
        difference = ours - theirs
        norm = np.sqrt(theirs @ gram @ theirs)
        assert np.sqrt(difference @ gram @ difference) <= 1e-3 * norm
        slack = 1e-6 * np.sqrt(gram.diagonal().max()) * norm
        assert (gram @ ours).min() >= (gram @ theirs).min() - slack


# --- FairGrad


def test_fairgrad_against_torchjd():
    """torchjd runs scipy on the unscaled equations; where that has converged, the two agree."""
    compared = 0
    for gram in some_grams():
        ours = solve_fairgrad(gram).weights
        theirs = aggregation.FairGradWeighting(alpha=1.0)(torch.from_numpy(gram)).numpy()
        if np.abs(theirs * (gram @ theirs) - 1).max() < 1e-8:
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)
            compared += 1
    assert compared >= 3


@pytest.fixture
def critic():
    """TOPPO's critic with PopArt's statistics of returns whose scales are far apart.

    Returns the agent, and d and FairGrad's report for a task's heads and returns [K, n], with
    the shared gradients multiplied by s.
    """
    torch.manual_seed(0)
    K, n = 6, 50
    args = toppo.Args(clip_vloss=False)
    agent = toppo.Agent(K, (16, 16)).double()
    returns = 10.0 ** torch.linspace(-2, 2, K).double()[:, None] * torch.randn(K, n) + 1
    agent.popart.update(returns[:, None])
    obs = torch.cat([torch.randn(K, n, 39), torch.eye(K)[:, None].expand(-1, n, -1)], dim=2)

    @torch.no_grad()
    def combined(heads, returns, s=1.0):
        mb = {"obs": obs.double(), "returns": returns, "old_values": torch.zeros_like(returns)}
        J = toppo.per_task_gradients(toppo.value_loss, agent.critic, heads, mb, args)[0]
        J = s * J
        fairgrad = solve_fairgrad(toppo.gram(J).numpy(), alpha=1.0)
        toppo.set_gradients(agent.critic, {}, J, {}, fairgrad.weights)
        return J, torch.cat([p.grad.flatten() for p in agent.critic.parameters()]), fairgrad

    return agent.popart, returns, combined


def test_theorem_1_on_a_critics_gradients(critic):
    """In parameter space: |d| is the root of K, every part is 1, and scales do not matter."""
    popart, returns, combined = critic
    heads = {"scale": popart.scale, "bias": popart.bias}
    J, d, fairgrad = combined(heads, returns)
    assert J.norm(dim=1).max() > 10 * J.norm(dim=1).min()  # the tasks are unlike
    assert not fairgrad.used_scipy_fallback and not fairgrad.solver_fallback
    assert d.norm().item() == pytest.approx(6**0.5, rel=1e-8)
    np.testing.assert_allclose(fairgrad.weights * (J @ d).numpy(), 1, rtol=1e-8)  # w_k <g_k, d>

    s = 10.0 ** torch.tensor([3.0, -4.0, 0.0, 2.0, -1.0, 5.0]).double()[:, None]
    _, d_again, again = combined(heads, returns, s)
    torch.testing.assert_close(d_again, d, rtol=0, atol=1e-6 * d.abs().max().item())
    np.testing.assert_allclose(again.weights * s[:, 0].numpy(), fairgrad.weights, rtol=1e-6)


def test_corollary_1(critic):
    """FairGrad's d is the same on PopArt's normalised losses and on the raw ones.

    PopArt divides task k's shared gradient by sigma_k^2 (Eq. (2)); the statistics stay fixed and
    the value clip is off.
    """
    popart, returns, combined = critic
    raw_heads = {
        "scale": (popart.sigma * popart.scale).detach(),
        "bias": (popart.sigma * popart.bias + popart.mu).detach(),
    }
    _, raw_d, raw = combined(raw_heads, returns)
    heads = {"scale": popart.scale, "bias": popart.bias}
    _, d, fairgrad = combined(heads, popart.normalize(returns[:, None])[:, 0])
    torch.testing.assert_close(d, raw_d, rtol=0, atol=1e-6 * raw_d.abs().max().item())
    sigma_squared = popart.sigma.numpy() ** 2
    np.testing.assert_allclose(fairgrad.weights / sigma_squared, raw.weights, rtol=1e-5)


def test_combined_gradients_lie_in_the_cone():
    """Theorem C.1, by non-negative least squares on the gradients themselves."""
    for seed in range(10):
        J = some_gradients(8, 40, 2, seed)
        gram = J @ J.T
        candidates = [solve_fairgrad(gram, alpha).weights for alpha in (0.5, 1.0, 2.0)]
        candidates.append(toppo.pcgrad_weights(gram, np.random.default_rng(seed)))
        candidates.append(cagrad_weights(gram, 0.5))
        for weights in candidates:
            assert (weights >= 0).all()
            d = weights @ J
            assert nnls(J.T, d)[1] <= 1e-9 * np.linalg.norm(d)
