"""FairGrad weights from a Gram matrix: solve G w = w^(-1/alpha), w > 0, in fp64. Needs numpy and scipy only.

Given the Gram matrix G = J J^T of K per-task gradients g_k, the rows of J, `solve_fairgrad` returns the weights w of FairGrad's
combined gradient d = sum_k w_k g_k: the solution of section 4.3's KKT condition, minimiser of the strictly convex program (C.2),

    (G w)_k = w_k^(-1/alpha),  w_k > 0,  k = 1..K        (KKT condition of Eq. (3))
    f(w) = 1/2 w^T G w - sum_k phi(w_k),   phi(w) = log w if alpha = 1, else w^(1 - 1/alpha) / (1 - 1/alpha)

alpha = 1 is the Nash bargaining point of Nash-MTL (Remark C.1). Only there d stays the same when the gradients are rescaled task
by task, and ||d||^2 is the number of non-zero gradients (Theorem 1).

Method (Section C.5)
--------------------
Tier 1. Equilibrate with Proposition C.1's weights s_k = G_kk^(-alpha/(1+alpha)): with w = s x and B = diag(s) G diag(s) the
system is B x = diag(B) x^(-1/alpha). For alpha = 1, B holds the cosines between the gradients, so a spread of 10^12 in their
norms costs nothing. Start at x_k = ((B 1)_k / B_kk)^(-alpha/(1+alpha)), Algorithm C.2's diagonal warm start x = 1 if B is
diagonal. Take Algorithm C.2's Newton step in y = log x, which is Newton's on f too, by a Cholesky factorisation: whole while no
weight changes by more than a factor e and the residual's norm at least halves, else shortened until f has fallen enough (Armijo).
Algorithm C.2 wants the residual's norm to fall instead, which stalls for gradients close to opposed.
Tier 2. scipy.optimize.least_squares on the dimensionless residual in y, from Newton's last iterate. Tier 3. The weights s.

Guarantees
----------
A solution exists if and only if 0 is not in the convex hull of the gradients, and it is then unique, for every alpha > 0. Linear
independence, the paper's assumption, suffices but is not needed: duplicate and dependent gradients are fine.
In exact arithmetic Tier 1 then converges for every alpha > 0, at the end quadratically: each of its steps at least halves the
residual's norm or lowers the strictly convex f along a descent direction by Armijo's rule. For alpha = 1, f is self-concordant,
so a step shortened to 1 / (1 + Newton decrement) passes that rule whatever K, the norms and the angles are (Boyd and
Vandenberghe, Convex Optimization, section 9.6).
In fp64 the solution is lost when ||d|| < 1e-5 sum_k ||w_k g_k||, when 0 is that close to the convex hull of the normalised
gradients: this ends in a logged fallback (Remark 1). So does alpha != 1 where gradients close to opposed differ much in norm.
"""

import logging
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg.blas import idamax
from scipy.linalg.lapack import dposv
from scipy.optimize import least_squares

Array = NDArray[np.float64]
logger = logging.getLogger(__name__)

TINY = np.finfo(np.float64).tiny  # below the smallest normal number a squared norm has lost its digits: the row counts as zero
SMALL_STEP = 1e-5  # a relative step this small, squared by the next one, is below what rounding leaves
OPPOSED = 1e-5  # ||d|| / sum_k ||w_k g_k|| at which rounding, eps over its square, becomes as large as SMALL_STEP
ACCEPTED = 1e-3  # residual above tol up to which a tier's answer is taken, if rounding lets it fall no further


class FairGradResult(NamedTuple):
    """What `solve_fairgrad` returns."""

    weights: Array  # [K] fp64, finite and non-negative; exactly 0 where the gradient is zero
    residual: float  # max_k |w_k^(1/alpha) (G w)_k - 1| over the other tasks
    iterations: int  # Newton steps
    used_scipy_fallback: bool  # Newton did not converge and Tier 2 ran
    solver_fallback: bool  # Tier 2 failed too: the weights are Tier 3's and the residual is not small


def solve_fairgrad(gram: ArrayLike, alpha: float = 1.0, *, tol: float = 1e-10, max_iterations: int = 100) -> FairGradResult:
    """Solve (G w)_k = w_k^(-1/alpha), w > 0, for the weights of FairGrad. Returns a FairGradResult.

    Parameters
    ----------
    gram : array_like [K, K], inner products of the K task gradients. Compute it in fp64; in fp32 small squared norms underflow.
    alpha : fairness, any finite number > 0.
    tol : Newton stops when the 2-norm of the residual is below, or where rounding lets it fall no further (see Notes).
    max_iterations : Newton steps before Tier 2. The paper's, and its tol, are in Table B.1.

    Raises
    ------
    ValueError : gram is not [K, K] with K >= 1, holds NaN or Inf (the message names the tasks, from 0), is not symmetric to 1e-5
        of the norms, or cannot be a Gram matrix; alpha is not a finite number > 0.

    Notes
    -----
    A zero row gets weight 0 and leaves the system. Opposed gradients (0 in their convex hull) have no solution: both fallback
    flags are set, a warning is logged, and the weights are Proposition C.1's, finite and positive.
    For alpha = 1 the residual bounds the weights' error: ||dw / w|| <= sqrt(K) residual to first order. Rounding makes it
    uncertain by eps sum_j |G_kj| w_j / (G w)_k, much for gradients close to opposed, and for alpha != 1 and a wide spread of
    norms. There a result may have a residual between tol and 1e-3 without a flag; above that it is a fallback.
    """
    gram = np.asarray(gram, dtype=np.float64)
    _check(gram, alpha)
    squared_norms = gram.diagonal()
    if squared_norms.min() < TINY:
        return _solve_without_zero_rows(gram, alpha, tol, max_iterations)

    beta = 1.0 / alpha
    scale = squared_norms ** (-1.0 / (1.0 + beta))  # Proposition C.1
    b = gram * scale
    b *= scale[:, None]
    diagonal = b.diagonal().copy()
    x = (np.maximum(scale * gram.dot(scale), 0.1 * diagonal) / diagonal) ** (-1.0 / (1.0 + beta))
    x, residual, iterations, converged = _newton(b, diagonal, beta, x, tol, max_iterations)
    if converged:
        return FairGradResult(scale * x, residual, iterations, False, False)

    x, residual = _least_squares(b, diagonal, beta, x)
    if residual <= ACCEPTED:
        logger.info("FairGrad Tier 2: Newton stopped after %d steps, scipy reached residual %.1e", iterations, residual)
        return FairGradResult(scale * x, residual, iterations, True, False)

    residual = float(np.abs(b.sum(axis=1) / diagonal - 1.0).max())
    logger.warning("FairGrad Tier 3: no solution, opposed gradients; using Proposition C.1's weights, residual %.1e", residual)
    return FairGradResult(scale, residual, iterations, True, True)


def _newton(b: Array, diagonal: Array, beta: float, x: Array, tol: float, max_iterations: int) -> tuple[Array, float, int, bool]:
    """Tier 1. Returns x, residual, steps, converged."""
    hessian = np.empty(b.shape, order="F")
    hessian_diagonal = hessian.reshape(-1, order="F")[:: len(x) + 1]
    change = best = np.inf
    for iteration in range(max_iterations + 1):
        target = diagonal * x**-beta
        gradient = target - b.dot(x)  # of -f
        error = gradient / target
        squared = error.dot(error)
        if squared <= tol * tol or (squared >= best and change <= SMALL_STEP):
            residual = float(np.abs(error).max())
            return x, residual, iteration, residual <= max(tol, ACCEPTED)
        halved = squared <= 0.25 * best
        best = min(best, squared)
        np.copyto(hessian, b)
        hessian_diagonal += beta * target / x
        _, step, info = dposv(hessian, gradient, overwrite_a=1)
        if info != 0:
            break
        relative = step / x  # the step in y: this Hessian times diag(x) is the Jacobian (C.4)
        change = abs(relative[idamax(relative)])
        if change > 1.0 or not halved:
            if x.dot(target - gradient) < (OPPOSED * x.dot(np.sqrt(diagonal))) ** 2:
                break
            relative = _line_search(x, relative, b, gradient, target * x, beta)
            if relative is None:
                break
        x = x * np.exp(relative)
    return x, np.inf, iteration, False


def _line_search(x: Array, relative: Array, b: Array, gradient: Array, u: Array, beta: float) -> Array | None:
    """Halve t until x e^q, for q = t relative, or else x (1 + t relative), both clipped, lowers f by a tenth of its slope. The
    difference is summed from terms of second order in z = e^q - 1, so that it does not cancel near the solution."""
    t, decrement = 1.0, gradient.dot(x * relative)
    for _ in range(60):
        for q in np.minimum(np.maximum(t * relative, -3.0), 2.0), np.log1p(np.maximum(t * relative, -0.95)):
            z = np.expm1(q)
            phi = q if beta == 1.0 else np.expm1((1.0 - beta) * q) / (1.0 - beta)  # phi(e^q) - phi(1)
            step = x * z
            slope = gradient.dot(step)
            if slope > 1e-15 * t * decrement and u.dot(z - phi) + 0.5 * step.dot(b.dot(step)) <= 0.9 * slope:
                return q  # the first condition, as clipping may leave no direction of descent
        t *= 0.5
    return None


def _least_squares(b: Array, diagonal: Array, beta: float, x: Array) -> tuple[Array, float]:
    """Tier 2. Returns x, residual."""

    def residual(y: Array) -> Array:
        return (b @ np.exp(y)) * np.exp(beta * y) / diagonal - 1.0

    def jacobian(y: Array) -> Array:
        row_scale = np.exp(beta * y) / diagonal
        return row_scale[:, None] * b * np.exp(y) + np.diag(beta * row_scale * (b @ np.exp(y)))

    try:
        with np.errstate(all="ignore"):  # scipy shortens a step into overflow
            solution = least_squares(residual, np.log(x), jacobian, xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=50)
    except (ValueError, np.linalg.LinAlgError):  # not finite at the start; no SVD of a Jacobian that spans too much
        return x, np.inf
    return np.exp(solution.x), float(np.abs(solution.fun).max())


def _solve_without_zero_rows(gram: Array, alpha: float, tol: float, max_iterations: int) -> FairGradResult:
    norms = np.sqrt(np.maximum(gram.diagonal(), TINY))
    tasks = np.flatnonzero((np.abs(gram) > 2.0 * norms * norms[:, None]).any(axis=1)).tolist()
    if tasks:
        raise ValueError(f"gram has G_kk < 0 or G_kj^2 > G_kk G_jj for tasks {tasks}; expected J @ J.T, computed in fp64")
    active, weights = gram.diagonal() >= TINY, np.zeros(len(gram))
    if not active.any():
        return FairGradResult(weights, 0.0, 0, False, False)
    result = solve_fairgrad(gram[np.ix_(active, active)], alpha, tol=tol, max_iterations=max_iterations)
    weights[active] = result.weights
    return result._replace(weights=weights)


def _check(gram: Array, alpha: float) -> None:
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or gram.shape[0] == 0:
        raise ValueError(f"gram has shape {gram.shape}; expected [K, K], the inner products of K >= 1 gradients")
    if not 0.0 < alpha < np.inf:
        raise ValueError(f"alpha is {alpha}; expected a finite number > 0, for instance 1")
    if not np.isfinite(gram).all():
        bad = ~np.isfinite(gram.diagonal())  # a NaN gradient spoils every row; its own squared norm tells which one it was
        tasks = np.flatnonzero(bad if bad.any() else ~np.isfinite(gram).all(axis=1)).tolist()
        raise ValueError(f"gram is NaN or Inf for tasks {tasks}; expected finite numbers, check those tasks' losses")
    if not (gram == gram.T).all():
        norms = np.sqrt(np.abs(gram.diagonal()))
        if (np.abs(gram - gram.T) > 1e-5 * norms * norms[:, None]).any():
            raise ValueError("gram is not symmetric; expected J @ J.T, the rows of J being the K gradients")
