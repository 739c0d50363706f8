"""Combiners as the scripts use them.

PCGrad against the textbook's loop over vectors, CAGrad by duality, FairGrad on gradients of a
critic; all three against torchjd.
"""

import itertools

import numpy as np
import pytest
import toppo_mt50 as toppo
import torch
from fairgrad_solver import solve_fairgrad
from ln_popart_cagrad_cagrad import cagrad_weights
from scipy.optimize import nnls
from scripts import MODULES, ROOT

with_pcgrad = pytest.mark.parametrize(
    "module",
    [m for m in MODULES.values() if hasattr(m, "pcgrad_weights")],
    ids=lambda m: m.SCRIPT,
)


def some_gradients(num_tasks, dim, spread, seed=0, shift=0.1):
    """Random gradients [K, D] whose norms range over so many powers of ten."""
    rng = np.random.default_rng(seed)
    norms = 10.0 ** rng.uniform(-spread / 2, spread / 2, size=(num_tasks, 1))
    return (rng.normal(size=(num_tasks, dim)) + shift) * norms


def some_grams(source):
    """Random Grams, or a real run's (benchmarks/capture_grams.py) at the scale torchjd expects."""
    if source == "random":
        gradients = [some_gradients(k, 60, 1, seed=k) for k in (1, 2, 5, 10, 50)]
        return [J @ J.T for J in gradients]
    with np.load(ROOT / "results/fairgrad_solver_captured_grams.npz") as captured:
        grams = captured[source]
    return [gram / gram.diagonal().mean() for gram in grams if gram.diagonal().min() > 0]


# --- PCGrad


def textbook_pcgrad(J, orders):
    """Yu et al. (2020), Algorithm 1, on the gradients themselves; the mean of what is left."""
    projected = []
    for i, order in enumerate(orders):
        g = J[i].copy()
        for j in order:
            if j != i and g @ J[j] < 0:
                g = g - (g @ J[j]) / (J[j] @ J[j]) * J[j]
        projected.append(g)
    return np.mean(projected, axis=0)


def orders_of(num_tasks, seed):
    """The orders in which the scripts, with a generator of this seed, let gradients meet."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(num_tasks) for _ in range(num_tasks)]


@with_pcgrad
@pytest.mark.parametrize("num_tasks", [1, 2, 5, 10, 50])
@pytest.mark.parametrize("shift", [-0.1, 0.0, 0.5])
def test_pcgrad_in_coefficients_is_the_textbook_loop(module, num_tasks, shift):
    J = some_gradients(num_tasks, 60, spread=4, seed=num_tasks, shift=shift)
    gram = J @ J.T
    given = gram.copy()
    weights = module.pcgrad_weights(given, np.random.default_rng(7))
    expected = textbook_pcgrad(J, orders_of(num_tasks, seed=7))
    tolerance = 1e-9 * np.linalg.norm(expected)
    np.testing.assert_allclose(weights @ J, expected, rtol=1e-9, atol=tolerance)
    assert (weights >= 0).all()  # Theorem C.1
    np.testing.assert_array_equal(given, gram)  # the metrics still need it


@with_pcgrad
def test_pcgrad_draws_all_orders_alike(module):
    """Of three gradients each meets the two others in two orders: eight combinations."""
    J = np.array([[1.0, 0.2, 0.0], [-1.0, 0.5, 0.3], [-0.4, -0.9, 0.6]])
    each = [[(1, 2), (2, 1)], [(0, 2), (2, 0)], [(0, 1), (1, 0)]]
    possible = np.array([textbook_pcgrad(J, orders) for orders in itertools.product(*each)])
    rng = np.random.default_rng(0)
    drawn = np.array([module.pcgrad_weights(J @ J.T, rng) @ J for _ in range(800)])
    distances = np.linalg.norm(drawn[:, None] - possible, axis=2)
    assert distances.min(axis=1).max() < 1e-12
    # Some combinations give the same direction, so that each one's share of the hits is compared
    hits = distances < 1e-12
    shares = (hits / hits.sum(1, keepdims=True)).sum(0)
    assert np.abs(shares - 100).max() < 50


@with_pcgrad
def test_pcgrad_without_conflict_is_the_mean_and_takes_zero_gradients(module):
    J = np.abs(some_gradients(6, 20, spread=0))
    for zero in (None, 2):
        if zero is not None:
            J[zero] = 0
        weights = module.pcgrad_weights(J @ J.T, np.random.default_rng(0))
        np.testing.assert_allclose(weights, np.full(6, 1 / 6))


@pytest.mark.parametrize("source", ["random", "actor", "critic"])
def test_pcgrad_against_torchjd_in_the_same_orders(source, monkeypatch):
    aggregation = pytest.importorskip("torchjd.aggregation")
    for seed, gram in enumerate(some_grams(source)):
        num_tasks = len(gram)
        rows = map(torch.from_numpy, orders_of(num_tasks, seed))
        monkeypatch.setattr(torch, "randperm", lambda n, rows=rows: next(rows))
        summed = aggregation.PCGradWeighting()(torch.from_numpy(gram)).numpy()
        weights = toppo.pcgrad_weights(gram, np.random.default_rng(seed))
        np.testing.assert_allclose(weights, summed / num_tasks, rtol=1e-6, atol=1e-12)


def test_pcgrad_of_two_against_torchjd():
    """Two gradients have one order only: nothing is patched."""
    aggregation = pytest.importorskip("torchjd.aggregation")
    conflicts = 0
    for seed in range(10):
        J = some_gradients(2, 5, 1, seed, shift=0.0)
        gram = J @ J.T
        conflicts += gram[0, 1] < 0
        expected = aggregation.PCGradWeighting()(torch.from_numpy(gram)).numpy() / 2
        weights = toppo.pcgrad_weights(gram, np.random.default_rng(seed))
        np.testing.assert_allclose(weights, expected, rtol=1e-9)
    assert 2 <= conflicts <= 8


# --- CAGrad


@pytest.mark.parametrize(
    ("num_tasks", "spread"), [(1, 0), (2, 2), (5, 1), (10, 0), (10, 2), (50, 1)]
)
@pytest.mark.parametrize("c", [0.0, 0.4, 0.9])
def test_cagrad_by_duality(num_tasks, spread, c):
    """CAGrad's definition: d maximises min_k <g_k, d> in the ball |d - g0| <= c |g0|.

    The simplex problem is its dual, so a d in the ball whose worst inner product reaches the
    dual value is optimal; nothing of the solver enters the check.
    """
    J = some_gradients(num_tasks, 200, spread)
    weights = cagrad_weights(J @ J.T, c)
    assert (weights >= 0).all()  # Theorem C.1
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


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_cagrads_weights_do_not_depend_on_the_gradients_scale(scale):
    J = some_gradients(5, 200, 1)
    np.testing.assert_allclose(
        cagrad_weights(scale**2 * J @ J.T, 0.5), cagrad_weights(J @ J.T, 0.5), rtol=1e-5
    )


@pytest.mark.parametrize("source", ["random", "actor", "critic"])
def test_cagrad_against_torchjd(source):
    """The objective is flat at its minimum: the two agree to a part in 10^3.

    Where they differ, ours has the better worst inner product.
    """
    aggregation = pytest.importorskip("torchjd.aggregation")
    try:
        weighting = aggregation.CAGradWeighting(c=0.5)
    except ImportError as error:  # it needs a conic solver beside torchjd
        pytest.skip(str(error))
    compared = 0
    for gram in some_grams(source):
        ours = cagrad_weights(gram, 0.5)
        theirs = weighting(torch.from_numpy(gram)).numpy() / (1 + 0.5**2)
        if not theirs.any():  # torchjd gives up where |J^T x| < 1e-4
            continue
        compared += 1
        difference = ours - theirs
        norm = np.sqrt(theirs @ gram @ theirs)
        assert np.sqrt(difference @ gram @ difference) <= 1e-3 * norm
        slack = 1e-6 * np.sqrt(gram.diagonal().max()) * norm
        assert (gram @ ours).min() >= (gram @ theirs).min() - slack
    assert compared >= 5


# --- FairGrad


@pytest.mark.parametrize("source", ["random", "actor", "critic"])
def test_fairgrad_against_torchjd(source):
    """torchjd runs scipy on the unscaled equations; where that has converged, the two agree."""
    aggregation = pytest.importorskip("torchjd.aggregation")
    compared = 0
    for gram in some_grams(source):
        ours = solve_fairgrad(gram).weights
        theirs = aggregation.FairGradWeighting(alpha=1.0)(torch.from_numpy(gram)).numpy()
        if np.abs(theirs * (gram @ theirs) - 1).max() < 1e-8:
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)
            compared += 1
    assert compared >= 3


def critic_gradients(agent, rows, returns, args):
    """J [K, D] of TOPPO's value loss for these returns [K, n], in the space that rows speak of."""
    num_tasks, n = returns.shape
    rng = torch.Generator().manual_seed(1)
    one_hot = torch.eye(num_tasks)[:, None].expand(-1, n, -1)
    obs = torch.cat([torch.randn(num_tasks, n, 39, generator=rng), one_hot], dim=2)
    mb = {
        "obs": obs.to(returns),
        "returns": returns,
        "old_values": torch.zeros_like(returns),
    }
    with torch.no_grad():
        gradients, _ = toppo.per_task_gradients(toppo.value_loss, agent.critic, rows, mb, args)
    return gradients


def combined(agent, gradients):
    """FairGrad's d as an update would have it in .grad, in fp64, and the solver's report."""
    fairgrad = solve_fairgrad(toppo.gram(gradients.shared).numpy(), alpha=1.0)
    with torch.no_grad():
        toppo.set_gradients(agent.critic, {}, gradients, fairgrad.weights)
    d = torch.cat([p.grad.flatten() for p in agent.critic.parameters()])
    return d.double(), fairgrad


def test_fairgrad_on_critic_gradients():
    """Theorem 1 on gradients of the real critic, in parameter space and not through the Gram."""
    torch.manual_seed(0)
    num_tasks = 6
    agent = toppo.Agent(num_tasks, (64, 64))
    rows = dict(agent.popart.named_parameters())
    returns = torch.randn(num_tasks, 50) * 10.0 ** torch.linspace(-2, 2, num_tasks)[:, None] + 1
    gradients = critic_gradients(agent, rows, returns, toppo.Args())
    J = gradients.shared.double()
    spread = J.norm(dim=1).max() / J.norm(dim=1).min()
    assert spread > 10  # the tasks are unlike

    d, fairgrad = combined(agent, gradients)
    assert not fairgrad.used_scipy_fallback
    assert not fairgrad.solver_fallback
    assert d.norm().item() == pytest.approx(num_tasks**0.5, abs=1e-5)
    shares = fairgrad.weights * (J @ d).numpy()  # w_k <g_k, d>
    np.testing.assert_allclose(shares, 1, rtol=1e-4)

    # Any rescaling of the gradients leaves d as it is and is taken back by the weights
    s = 10.0 ** torch.tensor([3.0, -4.0, 0.0, 2.0, -1.0, 5.0])
    rescaled = toppo.Gradients(s[:, None] * gradients.shared, {})
    d_again, again = combined(agent, rescaled)
    tolerance = 1e-5 * d.abs().max().item()
    torch.testing.assert_close(d_again, d, rtol=0, atol=tolerance)
    np.testing.assert_allclose(again.weights * s.numpy(), fairgrad.weights, rtol=1e-4)


def test_corollary_1():
    """FairGrad's d is the same on PopArt's normalised losses and on the raw ones.

    PopArt divides task k's shared gradient by sigma_k^2 (Eq. (2)); the statistics stay fixed and
    the value clip is off.
    """
    torch.manual_seed(0)
    num_tasks = 6
    args = toppo.Args(clip_vloss=False)
    agent = toppo.Agent(num_tasks, (64, 64)).double()
    popart = agent.popart
    scales = 10.0 ** torch.linspace(-2, 2, num_tasks).double()
    popart.update(torch.randn(num_tasks, 1, 500).double() * scales[:, None, None] + 1)
    returns = torch.randn(num_tasks, 50).double() * scales[:, None] + 1
    raw_rows = {
        "scale": (popart.sigma * popart.scale).detach(),
        "bias": (popart.sigma * popart.bias + popart.mu).detach(),
    }
    raw, raw_fairgrad = combined(agent, critic_gradients(agent, raw_rows, returns, args))
    rows = dict(popart.named_parameters())
    normalised_returns = popart.normalize(returns[:, None])[:, 0]
    d, fairgrad = combined(agent, critic_gradients(agent, rows, normalised_returns, args))
    torch.testing.assert_close(d, raw, rtol=0, atol=1e-6 * raw.abs().max().item())
    sigma_squared = popart.sigma.numpy() ** 2
    np.testing.assert_allclose(fairgrad.weights / sigma_squared, raw_fairgrad.weights, rtol=1e-5)


# --- All of them


def test_combined_gradients_lie_in_the_cone():
    """Theorem C.1, by non-negative least squares on the gradients themselves."""
    for seed in range(20):
        J = some_gradients(8, 40, 2, seed)
        gram = J @ J.T
        candidates = [solve_fairgrad(gram, alpha).weights for alpha in (0.5, 1.0, 2.0)]
        candidates.append(toppo.pcgrad_weights(gram, np.random.default_rng(seed)))
        candidates.append(cagrad_weights(gram, 0.5))
        for weights in candidates:
            assert (weights >= 0).all()
            d = weights @ J
            assert nnls(J.T, d)[1] <= 1e-9 * np.linalg.norm(d)
