"""Combiners as the scripts use them: PCGrad against the D-dimensional loop, CAGrad by duality, FairGrad on critic gradients."""

import numpy as np
import pytest
import toppo_mt50 as toppo
import torch
from fairgrad_solver import solve_fairgrad
from ln_popart_cagrad_cagrad import cagrad_weights
from scipy.optimize import nnls
from scripts import ROOT


def textbook_pcgrad(J, orders):
    """Yu et al. (2020), Algorithm 1, on the gradients themselves; the mean of the projected gradients."""
    projected = []
    for i, order in enumerate(orders):
        g = J[i].copy()
        for j in order:
            if j != i and g @ J[j] < 0:
                g = g - (g @ J[j]) / (J[j] @ J[j]) * J[j]
        projected.append(g)
    return np.mean(projected, axis=0)


@pytest.mark.parametrize("num_tasks", [1, 2, 5, 10, 50])
@pytest.mark.parametrize("shift", [-0.1, 0.0, 0.5])
def test_pcgrad_in_coefficients_is_the_textbook_loop(num_tasks, shift):
    rng = np.random.default_rng(num_tasks)
    J = (rng.normal(size=(num_tasks, 60)) + shift) * 10.0 ** rng.uniform(-2, 2, size=(num_tasks, 1))
    weights = toppo.pcgrad_weights(J @ J.T, np.random.default_rng(7))
    orders = np.random.default_rng(7).permuted(np.tile(np.arange(num_tasks), (num_tasks, 1)), axis=1)
    expected = textbook_pcgrad(J, orders)
    np.testing.assert_allclose(weights @ J, expected, rtol=1e-9, atol=1e-9 * np.linalg.norm(expected))
    assert (weights >= 0).all()  # Theorem C.1


def test_pcgrad_without_conflict_is_the_mean_and_takes_zero_gradients():
    J = np.abs(np.random.default_rng(0).normal(size=(6, 20)))
    np.testing.assert_allclose(toppo.pcgrad_weights(J @ J.T, np.random.default_rng(0)), np.full(6, 1 / 6))
    J[2] = 0
    np.testing.assert_allclose(toppo.pcgrad_weights(J @ J.T, np.random.default_rng(0)), np.full(6, 1 / 6))


def some_grams(source):
    """Random Gram matrices, or those of a real run (benchmarks/capture_grams.py), scaled as torchjd's tolerances expect."""
    if source == "random":
        return [(J := some_gradients(k, 60, 1, seed=k)) @ J.T for k in (1, 2, 5, 10, 50)]
    with np.load(ROOT / "results/fairgrad_solver_captured_grams.npz") as captured:
        return [gram / gram.diagonal().mean() for gram in captured[source] if gram.diagonal().min() > 0]


@pytest.mark.parametrize("source", ["random", "actor", "critic"])
def test_pcgrad_against_torchjd_in_the_same_orders(source, monkeypatch):
    aggregation = pytest.importorskip("torchjd.aggregation")
    for seed, gram in enumerate(some_grams(source)):
        num_tasks = len(gram)
        orders = np.random.default_rng(seed).permuted(np.tile(np.arange(num_tasks), (num_tasks, 1)), axis=1)
        rows = iter(torch.from_numpy(orders))
        monkeypatch.setattr(torch, "randperm", lambda n, rows=rows: next(rows))
        expected = aggregation.PCGradWeighting()(torch.from_numpy(gram)).numpy() / num_tasks  # torchjd adds up
        np.testing.assert_allclose(toppo.pcgrad_weights(gram, np.random.default_rng(seed)), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("source", ["random", "actor", "critic"])
def test_fairgrad_against_torchjd(source):
    """torchjd takes gradients and runs scipy on the unscaled equations; where that has converged, the two agree."""
    aggregation, compared = pytest.importorskip("torchjd.aggregation"), 0
    for gram in some_grams(source):
        ours = solve_fairgrad(gram).weights
        theirs = aggregation.FairGradWeighting(alpha=1.0)(torch.from_numpy(gram)).numpy()
        if np.abs(theirs * (gram @ theirs) - 1).max() < 1e-8:
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)
            compared += 1
    assert compared >= 3


def some_gradients(num_tasks, dim, spread, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(num_tasks, dim)) + 0.1) * 10.0 ** rng.uniform(-spread / 2, spread / 2, size=(num_tasks, 1))


@pytest.mark.parametrize(("num_tasks", "spread"), [(1, 0), (2, 2), (5, 1), (10, 0), (10, 2), (50, 1)])
@pytest.mark.parametrize("c", [0.0, 0.4, 0.9])
def test_cagrad_by_duality(num_tasks, spread, c):
    """CAGrad's definition: d maximises min_k <g_k, d> in the ball |d - g0| <= c |g0|. The simplex problem is its dual, so a d in
    the ball whose worst inner product reaches the dual value is optimal; nothing of the solver enters the check."""
    J = some_gradients(num_tasks, 200, spread)
    weights = cagrad_weights(J @ J.T, c)
    assert (weights >= 0).all()  # Theorem C.1
    g0, d = J.mean(0), (1 + c**2) * weights @ J
    assert np.linalg.norm(d - g0) <= c * np.linalg.norm(g0) * (1 + 1e-9) + 1e-12
    x = (1 + c**2) * weights - 1 / num_tasks
    if c == 0:
        np.testing.assert_allclose(x, 0, atol=1e-12)  # the mean
    else:
        x = x / x.sum()
        dual = g0 @ (x @ J) + c * np.linalg.norm(g0) * np.linalg.norm(x @ J)
        assert dual - (J @ d).min() <= 2e-3 * abs(dual)


@pytest.mark.parametrize("source", ["random", "actor", "critic"])
def test_cagrad_against_torchjd(source):
    """The objective is flat at its minimum: to a part in 10^3 the two agree, and ours has the better worst inner product."""
    aggregation = pytest.importorskip("torchjd.aggregation")
    try:
        weighting = aggregation.CAGradWeighting(c=0.5)
    except ImportError as error:  # it needs a conic solver beside torchjd
        pytest.skip(str(error))
    compared = 0
    for gram in some_grams(source):
        ours, theirs = cagrad_weights(gram, 0.5), weighting(torch.from_numpy(gram)).numpy() / (1 + 0.5**2)
        if not theirs.any():  # torchjd gives up where |J^T x| < 1e-4
            continue
        compared += 1
        difference = ours - theirs
        assert np.sqrt(difference @ gram @ difference) <= 1e-3 * np.sqrt(theirs @ gram @ theirs)
        assert (gram @ ours).min() >= (gram @ theirs).min() - 1e-6 * np.sqrt(gram.diagonal().max() * (theirs @ gram @ theirs))
    assert compared >= 5


def critic_gradients(num_tasks=6, n=50, seed=0):
    torch.manual_seed(seed)
    agent = toppo.Agent(num_tasks, (64, 64))
    returns = torch.randn(num_tasks, n) * 10.0 ** torch.linspace(-2, 2, num_tasks)[:, None] + 1
    obs = torch.cat([torch.randn(num_tasks, n, 39), torch.eye(num_tasks)[:, None].expand(-1, n, -1)], dim=2)
    output, tape = toppo.forward_with_tape(agent.critic, obs)
    values, weight = output.squeeze(-1), torch.full((num_tasks, n), 1 / n)
    losses, _ = toppo.value_losses(values, values.detach(), returns, weight, toppo.Args())
    return agent, toppo.per_task_gradients(losses, tape, [])[0]


def test_fairgrad_on_critic_gradients():
    """Theorem 1 on gradients of the real critic, measured in parameter space and not through the Gram matrix."""
    agent, grads = critic_gradients()
    solution = solve_fairgrad(toppo.gram(grads).numpy(), alpha=1.0)
    shared = list(agent.critic.parameters())
    toppo.set_combined_gradient(shared, grads, [], [], torch.from_numpy(solution.weights))
    d = torch.cat([p.grad.flatten() for p in shared]).double()
    assert not solution.used_scipy_fallback and not solution.solver_fallback
    assert abs(d.norm().item() - np.sqrt(6)) < 1e-5  # sqrt(K)
    contributions = torch.from_numpy(solution.weights) * (torch.cat([g.flatten(1) for g in grads], dim=1).double() @ d)
    torch.testing.assert_close(contributions, torch.ones(6, dtype=torch.float64), rtol=1e-4, atol=0)  # w_k <g_k, d> = 1

    s = 10.0 ** torch.tensor([3.0, -4.0, 0.0, 2.0, -1.0, 5.0])  # Corollary 1: any rescaling leaves d as it is
    rescaled = [torch.einsum("k,k...->k...", s, g) for g in grads]
    again = solve_fairgrad(toppo.gram(rescaled).numpy(), alpha=1.0)
    toppo.set_combined_gradient(shared, rescaled, [], [], torch.from_numpy(again.weights))
    d_again = torch.cat([p.grad.flatten() for p in shared]).double()
    torch.testing.assert_close(d_again, d, rtol=0, atol=1e-5 * d.abs().max().item())
    np.testing.assert_allclose(again.weights * s.numpy(), solution.weights, rtol=1e-4)


def test_combined_gradients_lie_in_the_cone():
    """Theorem C.1, by non-negative least squares on the gradients themselves."""
    for seed in range(20):
        J = some_gradients(8, 40, 2, seed)
        gram = J @ J.T
        fairgrad = [solve_fairgrad(gram, alpha).weights for alpha in (0.5, 1.0, 2.0)]
        for weights in (*fairgrad, toppo.pcgrad_weights(gram, np.random.default_rng(seed)), cagrad_weights(gram, 0.5)):
            assert (weights >= 0).all()
            d = weights @ J
            assert nnls(J.T, d)[1] <= 1e-9 * np.linalg.norm(d)
