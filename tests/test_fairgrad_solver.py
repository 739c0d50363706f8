"""FairGrad's solver against closed forms, the paper's theorems, and other ways to solve the same.

Gradients are the rows of J [K, D]; the solver sees their Gram matrix J J^T only.
"""

import logging
import warnings
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, nnls

import fairgrad_solver
from fairgrad_solver import solve_fairgrad

ROOT = Path(__file__).parents[1]
ALPHAS = (0.5, 1.0, 2.0, 5.0)
every_alpha = pytest.mark.parametrize("alpha", ALPHAS)
pytestmark = pytest.mark.filterwarnings("error")  # no overflow, no division by zero, nowhere
property_test = settings(max_examples=50, deadline=None, derandomize=True, database=None)


@st.composite
def gradients(draw, max_k=12, spread=12):
    """J [K, 2 K + 1]: random directions, perhaps one of them twice; norms spread by 10^spread."""
    k = draw(st.integers(1, max_k))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    J = rng.standard_normal((k, 2 * k + 1))
    if draw(st.booleans()):
        J[-1] = J[0]
    exponents = draw(st.lists(st.floats(-spread / 2, spread / 2), min_size=k, max_size=k))
    return J * 10.0 ** np.array(exponents)[:, None]


def direction(J, alpha=1.0):
    return solve_fairgrad(J @ J.T, alpha).weights @ J


def relative_difference(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


# --- Closed forms


@property_test
@given(st.lists(st.floats(-12, 12), min_size=1, max_size=64), st.sampled_from(ALPHAS))
def test_proposition_c1_orthogonal_gradients(exponents, alpha):
    squared_norms = 10.0 ** np.array(exponents)
    result = solve_fairgrad(np.diag(squared_norms), alpha)
    np.testing.assert_allclose(result.weights, squared_norms ** (-alpha / (1 + alpha)), rtol=1e-12)
    assert result.iterations == 0


@pytest.mark.parametrize("cosine", [-0.9999, -0.9, 0.3, 1.0])
def test_two_gradients(cosine):
    # By symmetry w_1 = w_2 = w once both have norm 1, and w (1 + c) w = 1
    norms = np.array([3e-5, 40.0])
    G = np.outer(norms, norms) * np.array([[1.0, cosine], [cosine, 1.0]])
    expected = 1.0 / (norms * np.sqrt(1.0 + cosine))
    np.testing.assert_allclose(solve_fairgrad(G).weights, expected, rtol=1e-9)


def test_rounding_of_gw_is_no_failure():
    """(G w)_1 is 4e-11, the difference of two numbers near 400."""
    result = solve_fairgrad([[1.0, -1e5], [-1e5, 1e12]], alpha=0.25)
    assert not result.used_scipy_fallback
    np.testing.assert_allclose(result.weights, [398.908197, 0.00398908197], rtol=1e-8)


# --- High precision, convex programming, other implementations


def solution_in_60_digits(G, alpha):
    """The KKT condition's root by mpmath, for y = log w.

    It follows a path from the diagonal of G to G itself, so that it never starts far from a root.
    """
    with mpmath.workdps(60):
        beta = 1 / mpmath.mpf(alpha)
        g = mpmath.matrix(G.tolist())
        tasks = range(len(G))
        y = [-mpmath.log(g[k, k]) / (1 + beta) for k in tasks]
        for step in range(1, 9):
            coupled = g * step / 8
            for k in tasks:
                coupled[k, k] = g[k, k]

            def kkt(*y, coupled=coupled):
                w = mpmath.matrix([mpmath.exp(x) for x in y])
                Gw = coupled * w
                return [Gw[k] * w[k] ** beta - 1 for k in tasks]

            y = list(mpmath.findroot(kkt, y, solver="mdnewton"))
        return np.array([float(mpmath.exp(x)) for x in y])


@pytest.mark.parametrize(
    ("alpha", "spread"),
    [(0.25, 0), (0.5, 3), (1.0, 0), (1.0, 3), (1.0, 12), (2.0, 6), (5.0, 3), (10.0, 0)],
)
def test_agrees_with_60_digits(alpha, spread):
    rng = np.random.default_rng(spread)
    J = rng.standard_normal((5, 7)) * np.logspace(-spread / 2, spread / 2, 5)[:, None]
    G = J @ J.T
    result = solve_fairgrad(G, alpha)
    assert not result.used_scipy_fallback
    np.testing.assert_allclose(result.weights, solution_in_60_digits(G, alpha), rtol=1e-9)


@every_alpha
def test_minimises_the_program_c2(alpha):
    # scipy minimises the objective itself over y = log w; the KKT condition does not enter
    rng = np.random.default_rng(3)
    J = rng.standard_normal((12, 14))
    G = J @ J.T

    def objective(y):
        barrier = y if alpha == 1.0 else np.exp((1 - 1 / alpha) * y) / (1 - 1 / alpha)
        return 0.5 * np.exp(y) @ G @ np.exp(y) - barrier.sum()

    weights = solve_fairgrad(G, alpha).weights
    found = minimize(objective, np.zeros(12), method="BFGS", options={"gtol": 1e-7})
    np.testing.assert_allclose(np.exp(found.x), weights, rtol=1e-4)
    assert objective(np.log(weights)) <= found.fun + 1e-12


def test_alpha_1_is_the_nash_point_of_nash_mtl():
    """Remark C.1, up to the length of d, which Nash-MTL normalises."""
    pytest.importorskip("cvxpy")
    pytest.importorskip("ecos")
    aggregation = pytest.importorskip("torchjd.aggregation")
    generator = torch.Generator().manual_seed(6)
    J = torch.randn(5, 30, dtype=torch.float64, generator=generator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cvxpy comments on torchjd's problem
        expected = aggregation.NashMTL(5, max_norm=0.0)(J).numpy()
    d = direction(J.numpy())
    assert d @ expected / (np.linalg.norm(d) * np.linalg.norm(expected)) > 1 - 1e-8


# --- Theorem 1, Corollary 1, Theorem C.1


@property_test
@given(gradients(spread=6), st.data())
def test_theorem_1_fixed_norm_and_scale_invariance(J, data):
    exponents = data.draw(st.lists(st.floats(-6, 6), min_size=len(J), max_size=len(J)))
    scales = 10.0 ** np.array(exponents)
    rescaled = scales[:, None] * J
    assert np.linalg.norm(direction(rescaled)) == pytest.approx(np.sqrt(len(J)), rel=1e-9)
    assert relative_difference(direction(rescaled), direction(J)) < 1e-9


@pytest.mark.parametrize("alpha", [0.5, 0.9, 1.1, 2.0, 5.0])
def test_theorem_1_needs_alpha_1(alpha):
    J = np.array([[1.0, 0.0], [0.6, 0.8]])
    rescaled = direction(np.array([[1.0], [10.0]]) * J, alpha)
    assert relative_difference(rescaled, direction(J, alpha)) > 0.03
    assert abs(np.linalg.norm(rescaled) - np.sqrt(2.0)) > 0.03


def test_corollary_1_popart_is_absorbed():
    """Gradients of a shared critic by the raw loss, and by the loss in PopArt's space (Eq. 2)."""
    torch.manual_seed(7)
    linear = torch.nn.Linear
    network = torch.nn.Sequential(linear(6, 16), torch.nn.Tanh(), linear(16, 1)).double()
    sigma = torch.tensor([40.0, 0.01, 1.0, 2000.0]).double()

    raw = []
    normalised = []
    for k in range(4):
        x, target = torch.randn(32, 6), torch.randn(32)
        error = network(x.double()).squeeze(1) - target  # u - (R - mu_k) / sigma_k
        for J, loss in ((normalised, error**2), (raw, (sigma[k] * error) ** 2)):
            parts = torch.autograd.grad(loss.mean(), [*network.parameters()], retain_graph=True)
            J.append(torch.cat([p.flatten() for p in parts]).numpy())
    raw = np.array(raw)
    normalised = np.array(normalised)
    assert relative_difference(direction(normalised), direction(raw)) < 1e-9
    # The mean does not absorb it
    assert relative_difference(normalised.mean(axis=0), raw.mean(axis=0)) > 0.1


@property_test
@given(gradients(), st.sampled_from(ALPHAS))
def test_theorem_c1_weights_are_positive_and_every_task_improves(J, alpha):
    result = solve_fairgrad(J @ J.T, alpha)
    assert (result.weights > 0.0).all() and np.isfinite(result.weights).all()
    units = J / np.linalg.norm(J, axis=1, keepdims=True)
    assert (units @ (result.weights @ J) > 0.0).all()


# --- What is reported, and the tiers


@every_alpha
def test_the_reported_residual_is_the_residual(alpha):
    rng = np.random.default_rng(8)
    J = rng.standard_normal((6, 9))
    G = J @ J.T
    result = solve_fairgrad(G, alpha, tol=1e-2)  # stopped early, so that there is a residual
    error = result.weights ** (1 / alpha) * (G @ result.weights) - 1
    assert 1e-10 < result.residual <= 1e-2
    assert result.residual == pytest.approx(np.abs(error).max(), rel=1e-6)


@pytest.mark.parametrize("copies", [2, 10, 50])
def test_dependent_gradients_need_no_fallback(copies):
    # m copies of one gradient share d's projection: w = 1 / (||g|| sqrt(m))
    J = np.zeros((copies + 1, 3))
    J[:copies] = [3.0, 4.0, 0.0]
    J[copies] = [0.0, 0.0, 1e-3]
    result = solve_fairgrad(J @ J.T)
    np.testing.assert_allclose(result.weights[:copies], 1.0 / (5.0 * np.sqrt(copies)), rtol=1e-9)
    np.testing.assert_allclose(result.weights[copies], 1e3, rtol=1e-9)
    assert not result.used_scipy_fallback


@every_alpha
def test_scipy_takes_over_where_newton_stops(alpha, caplog):
    J = np.random.default_rng(10).standard_normal((10, 12))
    G = J @ J.T
    with caplog.at_level(logging.INFO, "fairgrad_solver"):
        result = solve_fairgrad(G, alpha, max_iterations=1)
    assert result.used_scipy_fallback and not result.solver_fallback
    assert result.iterations == 1
    assert "Tier 2" in caplog.text
    np.testing.assert_allclose(result.weights, solve_fairgrad(G, alpha).weights, rtol=1e-9)


@every_alpha
@pytest.mark.parametrize(
    "J",
    [
        [[1.0, 2.0, 0.0], [-1.0, -2.0, 0.0]],
        [[1.0, 2.0, 0.0], [-1e3, -2e3, 0.0], [0.0, 0.0, 1.0]],
        [[1.0, 0.0, 0.0], [-0.5, 3.0, 0.0], [-0.5, -3.0, 0.0]],
    ],
)
def test_opposed_gradients_end_in_a_logged_fallback(J, alpha, caplog):
    G = np.array(J) @ np.array(J).T
    with caplog.at_level(logging.WARNING, "fairgrad_solver"):
        result = solve_fairgrad(G, alpha)
    assert result.used_scipy_fallback and result.solver_fallback
    assert result.iterations < 60  # noticed, not iterated to the end
    assert "Tier 3: no solution, opposed gradients" in caplog.text
    np.testing.assert_allclose(result.weights, G.diagonal() ** (-alpha / (1 + alpha)), rtol=1e-12)
    error = result.weights ** (1 / alpha) * (G @ result.weights) - 1.0
    assert result.residual == pytest.approx(np.abs(error).max(), rel=1e-9)


def test_an_exception_in_scipy_is_a_fallback(monkeypatch):
    def broken(*args, **kwargs):
        raise np.linalg.LinAlgError("no SVD")  # as of three of 100,000 opposed Grams

    monkeypatch.setattr(fairgrad_solver, "least_squares", broken)
    assert solve_fairgrad([[1.0, -2.0], [-2.0, 4.0]]).solver_fallback


# --- Edges


@property_test
@given(gradients(spread=6), st.sampled_from(ALPHAS), st.data())
def test_zero_rows_get_weight_zero_and_leave_the_system(J, alpha, data):
    dead = np.array(data.draw(st.lists(st.booleans(), min_size=len(J), max_size=len(J))))
    J = np.where(dead[:, None], 0.0, J)
    G = J @ J.T
    weights = solve_fairgrad(G, alpha).weights
    assert (weights[dead] == 0.0).all()
    if not dead.all():
        alone = solve_fairgrad(G[np.ix_(~dead, ~dead)], alpha).weights
        np.testing.assert_array_equal(weights[~dead], alone)


def test_small_gradients_count_until_their_squared_norm_underflows_fp64():
    J = np.random.default_rng(11).standard_normal((4, 9))
    J *= np.array([1.0, 1e-30, 1e-100, 1e-150])[:, None]
    assert np.linalg.norm(direction(J)) == pytest.approx(2.0, rel=1e-9)
    J = np.array([[1.0, 0.0], [1e-170, 1e-170]])
    assert solve_fairgrad(J @ J.T).weights.tolist() == [1.0, 0.0]


def test_lists_and_fp32_are_taken_and_the_input_is_left_alone():
    G = np.array([[2.0, 0.5], [0.5, 1.0]], dtype=np.float32)
    G.setflags(write=False)
    expected = solve_fairgrad(G.astype(np.float64)).weights
    for given_gram in (G, G.tolist(), torch.tensor(G), np.asfortranarray(G, dtype=np.float64)):
        weights = solve_fairgrad(given_gram).weights
        assert weights.dtype == np.float64
        np.testing.assert_array_equal(weights, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_name_the_tasks(value):
    J = np.random.default_rng(12).standard_normal((6, 8))
    J[[1, 4], 3] = value
    with np.errstate(invalid="ignore"):
        G = J @ J.T
    with pytest.raises(ValueError, match=r"tasks \[1, 4\]"):
        solve_fairgrad(G)
    G = np.eye(3)
    G[0, 2] = G[2, 0] = value
    with pytest.raises(ValueError, match=r"tasks \[0, 2\]"):
        solve_fairgrad(G)


BAD_ARGUMENTS = [
    ({"gram": np.ones(3)}, r"shape .* expected \[K, K\]"),
    ({"gram": np.ones((2, 3))}, r"shape .* expected \[K, K\]"),
    ({"gram": [[1e12, 1.0], [21.0, 1.0]]}, "not symmetric"),  # 20 is small against 1e12 only
    ({"alpha": 0.0}, "alpha is"),
    ({"alpha": np.nan}, "alpha is"),
    ({"tol": np.nan}, "tol is nan; expected a finite number > 0"),
    ({"tol": 0.0}, "tol is"),
    ({"gram": np.eye(2) + 0j}, "gram is complex"),
    ({"max_iterations": -1}, "max_iterations is -1; expected 0 or more"),
    ({"gram": [[1.0, 0.0], [0.0, -1.0]]}, r"tasks \[1\]; expected J @ J.T, computed in fp64"),
    ({"gram": [[1.0, -5.0], [-5.0, 1.0]]}, r"tasks \[0, 1\]; expected J @ J.T"),
    ({"gram": [[1.0, 1e-10], [1e-10, 0.0]]}, r"tasks \[0, 1\]; expected J @ J.T"),  # fp32 underflow
]


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        solve_fairgrad(**({"gram": np.eye(2)} | arguments))


@property_test
@given(gradients(), st.sampled_from(ALPHAS))
def test_no_gram_matrix_is_refused(J, alpha):
    """Nor one of fp32, whose cosines rounding may take beyond 1."""
    solve_fairgrad((J @ J.T).astype(np.float32) * np.float32(1.0001), alpha)


# --- Real Grams, and adversarial ones


def test_grams_of_training_take_a_few_newton_steps():
    """Those of the runs under results/, of every rung: norms spread by up to 10^10."""
    files = sorted(ROOT.glob("results/*/*/gradients/*.npz"))
    assert files
    for file in files:
        with np.load(file) as dump:
            G = dump["critic_gram"]
        result = solve_fairgrad(G)
        active = G.diagonal() > 0
        error = result.weights * (G @ result.weights) - 1
        assert np.abs(error[active]).max() < 1e-8, file
        assert result.iterations <= 6 and not result.used_scipy_fallback, file


def adversarial_gradients(rng):
    """J [K, D], K up to 64, dependent or close to opposed, with norms that span up to 10^12."""
    k = int(rng.integers(2, 65))
    d = int(rng.integers(1, 4 * k))
    J = rng.standard_normal((k, d))
    family = rng.choice(["random", "duplicate", "opposed", "half-space", "zero rows"])
    if family == "half-space":
        J[:, 0] = 10.0 ** -rng.uniform(0, 8) * rng.random(k)
    J *= 10.0 ** (-rng.uniform(0, 12) * rng.random(k))[:, None]
    if family in ("duplicate", "opposed"):
        noise = 10.0 ** -rng.uniform(0, 14) * rng.integers(0, 2)
        other = J[0] + noise * np.linalg.norm(J[0]) * rng.standard_normal(d)
        J[1] = 10.0 ** rng.uniform(-6, 6) * (other if family == "duplicate" else -other)
    if family == "zero rows":
        J[rng.random(k) < 0.5] = 0.0
    return J


def distance_to_hull(J):
    """Of 0 to the convex hull of the normalised non-zero gradients: 0 for opposed ones."""
    J = J[J.any(axis=1)]
    units = J / np.linalg.norm(J, axis=1, keepdims=True)
    # min over l >= 0 of ||U^T l||^2 + (sum l - 1)^2 is h^2 / (1 + h^2) for a hull at distance h
    system = np.vstack([units.T, np.ones(len(units))])
    target = np.append(np.zeros(units.shape[1]), 1.0)
    residual = nnls(system, target, maxiter=100 * len(units))[1]
    return residual / np.sqrt(max(1.0 - residual**2, np.finfo(float).tiny))


def test_random_grams_are_solved_by_newton():
    """Whatever alpha and the norms: |G w - t| is rounding beside |G| w + t, t = w^(-1/alpha)."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        K = rng.integers(2, 20)
        spread = rng.uniform(0, 12)
        J = rng.standard_normal((K, rng.choice([K, 60])))
        J *= 10 ** rng.uniform(-spread / 2, spread / 2, (K, 1))
        alpha = 10 ** rng.uniform(-1, 1)
        result = solve_fairgrad(J @ J.T, alpha)
        target = result.weights ** (-1 / alpha)
        error = np.abs(J @ J.T @ result.weights - target)
        assert not result.used_scipy_fallback
        assert (error / (np.abs(J @ J.T) @ result.weights + target)).max() < 1e-9


@every_alpha
def test_whatever_the_gradients_weights_can_be_used(alpha, caplog):
    caplog.set_level(logging.ERROR, "fairgrad_solver")
    rng = np.random.default_rng(int(10 * alpha))
    outcomes = {True: 0, False: 0}
    for _ in range(400 if alpha == 1.0 else 200):
        J = adversarial_gradients(rng)
        G = J @ J.T
        w, _, _, _, fallback = solve_fairgrad(G, alpha)
        active = G.diagonal() > 0
        outcomes[fallback] += 1
        assert np.isfinite(w).all() and (w[active] > 0).all() and (w[~active] == 0).all()
        if fallback:  # only where there is no solution, or rounding hides it
            assert distance_to_hull(J) < 1e-5
            continue
        target = w[active] ** (-1 / alpha)
        error = np.abs((G @ w)[active] - target)
        assert (error <= 1e-9 * ((np.abs(G) @ w)[active] + target)).all()
    assert min(outcomes.values()) > 20, outcomes
