"""FairGrad weights from a Gram matrix: solve G w = w^(-1/alpha), w > 0, in fp64. Needs numpy and scipy only.

Given the Gram matrix G = J J^T of K per-task gradients g_k, the rows of J, `solve_fairgrad` returns the weights w of FairGrad's
combined gradient d = sum_k w_k g_k. They are the solution of section 4.3's KKT condition

    (G w)_k = w_k^(-1/alpha),  w_k > 0,  k = 1..K

and so the minimiser of the strictly convex program (C.2), which is what is solved here:

    f(w) = 1/2 w^T G w - sum_k phi(w_k),   phi(w) = log w if alpha = 1, else w^(1 - 1/alpha) / (1 - 1/alpha).

alpha = 1 is the Nash bargaining point of Nash-MTL (Remark C.1). Only there d is unchanged when the gradients are rescaled task by
task, and ||d||^2 is the number of non-zero gradients (Theorem 1).

Method
------
Tier 1. Equilibrate with Proposition C.1's weights s_k = G_kk^(-alpha/(1+alpha)): with w = s x and B = diag(s) G diag(s) the
system is B x = diag(B) x^(-1/alpha). For alpha = 1, B holds the cosines between gradients, so a spread of 10^12 in their norms
costs no more than none. Algorithm C.2's diagonal warm start is x = 1, here times the one factor that minimises f. Then Newton on
f: a Cholesky factorisation a step; the full step where no weight changes by more than a set fraction, otherwise each weight keeps
at least a twentieth of itself and the step is halved until f has fallen enough (Armijo). Algorithm C.2 searches on the residual's
norm in y = log w instead, which is not convex: it stalls on ill-conditioned Grams (Table C.1, third regime).
Tier 2. scipy.optimize.least_squares on the dimensionless residual in y = log x, from Newton's last iterate.
Tier 3. Proposition C.1's weights s, exact if the gradients are orthogonal.

Guarantees
----------
A solution exists if and only if 0 is not in the convex hull of the gradients, and it is then unique, for every alpha > 0.
Linear independence, the paper's assumption, is sufficient but not necessary: duplicate and dependent gradients are fine.
For alpha = 1, f is self-concordant, so Tier 1 converges from its start x0 in at most c (f(x0) - f*) + log2 log2(1/eps) steps with a
constant c of the line search alone (Boyd and Vandenberghe, Convex Optimization, section 9.6.4). For other alpha each step lowers
the same strictly convex f and convergence near the solution is quadratic, but no such bound is known to us; a wide spread in norms
then costs steps, because the weights themselves move by orders of magnitude.
All this is in exact arithmetic. In fp64 the solution is lost when the gradients come within about 1e-7 of opposing each other
(||d|| / sum_k ||w_k g_k|| for the best w); from there on the outcome is a logged fallback.
"""

import logging
from typing import NamedTuple

import numpy as np
from scipy.linalg.blas import idamax
from scipy.linalg.lapack import dposv
from scipy.optimize import least_squares

logger = logging.getLogger(__name__)

TINY = np.finfo(np.float64).tiny  # below the smallest normal number a squared norm has lost its digits: the row counts as zero
SMALL_STEP = 1e-5  # after a relative step this small Newton is converged, by its quadratic rate, to rounding
OPPOSED = 1e-5  # relative length of d below which fp64 does not hold the solution any more
TIER_2_TOLERANCE = 1e-6  # residual up to which scipy's answer is taken


class FairGradResult(NamedTuple):
    """What `solve_fairgrad` returns."""

    weights: np.ndarray  # [K] fp64, finite and non-negative; exactly 0 where the gradient is zero
    residual: float  # max_k |w_k^(1/alpha) (G w)_k - 1| over the other tasks
    iterations: int  # Newton steps
    used_scipy_fallback: bool  # Newton did not converge and Tier 2 ran
    solver_fallback: bool  # Tier 2 failed too: the weights are Tier 3's and the residual is large


def solve_fairgrad(gram, alpha: float = 1.0, *, tol: float = 1e-10, max_iterations: int = 100) -> FairGradResult:
    """Solve (G w)_k = w_k^(-1/alpha), w > 0, for the weights of FairGrad.

    Parameters
    ----------
    gram : array_like [K, K], inner products of the K task gradients. Compute it in fp64, where the square of a small norm does not
        underflow; it is converted to fp64 if it is not.
    alpha : fairness, any finite number > 0.
    tol : Newton stops at this residual, or above it where rounding lets the residual fall no further (see Notes).
    max_iterations : Newton steps before Tier 2.

    Returns
    -------
    FairGradResult(weights, residual, iterations, used_scipy_fallback, solver_fallback)

    Raises
    ------
    ValueError : gram is not [K, K] with K >= 1, holds NaN or Inf (the message names the tasks, counted from 0), is not symmetric to
        1e-5 of the norms or cannot be a Gram matrix; or alpha is not a finite number > 0.

    Notes
    -----
    A zero row gets weight 0 and leaves the system. Opposed gradients (0 in their convex hull) have no solution: both fallback flags
    are set, a warning is logged, and the weights are Proposition C.1's, finite and positive.
    The residual is dimensionless, and for alpha = 1 it bounds the weights' error: to first order ||dw / w|| <= sqrt(K) residual. It
    cannot be evaluated more accurately than about eps sum_j |w_k G_kj w_j| / (w_k (G w)_k), so for gradients close to opposed, or
    alpha != 1 and a wide spread, Newton ends at that floor: converged, without a flag, at a residual above tol.
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
    # Exact for orthogonal gradients, where it is 1, and for equal ones.
    x = (diagonal / np.maximum(scale * gram.dot(scale), 0.1 * diagonal)) ** (1.0 / (1.0 + beta))

    x, residual, iterations, converged = _newton(b, diagonal, beta, x, tol, max_iterations)
    if converged:
        return FairGradResult(scale * x, residual, iterations, False, False)

    x, residual = _least_squares(b, diagonal, beta, x)
    if residual <= TIER_2_TOLERANCE:
        logger.info("FairGrad Tier 2: Newton stopped after %d steps, scipy reached residual %.1e", iterations, residual)
        return FairGradResult(scale * x, residual, iterations, True, False)

    residual = float(np.abs(b.sum(axis=1) / diagonal - 1.0).max())
    logger.warning("FairGrad Tier 3: no solution after %d Newton steps and scipy: opposed gradients, or alpha != 1 and norms too far "
                   "apart. Using the diagonal weights of Proposition C.1 (residual %.1e)", iterations, residual)  # fmt: skip
    return FairGradResult(scale, residual, iterations, True, True)


def _newton(b, diagonal, beta, x, tol, max_iterations):
    """Tier 1. Returns x, residual, steps, converged."""
    hessian = np.empty(b.shape, order="F")
    hessian_diagonal = hessian.reshape(-1, order="F")[:: len(x) + 1]
    change = best = np.inf
    for iteration in range(max_iterations + 1):
        target = diagonal * x**-beta
        gradient = target - b.dot(x)  # of -f
        error = gradient / target
        squared = error.dot(error)
        halved = squared <= 0.25 * best
        if squared <= tol * tol or (squared >= best and change <= SMALL_STEP):
            return x, float(np.abs(error).max()), iteration, True
        best = min(best, squared)
        np.copyto(hessian, b)
        hessian_diagonal += beta * target / x
        _, step, info = dposv(hessian, gradient, overwrite_a=1)
        if info != 0:
            break
        relative = step / x  # Algorithm C.2's Newton step in y = log x
        change = abs(relative[idamax(relative)])
        if change > 1.0 or not halved:
            if x.dot(target - gradient) < (OPPOSED * x.dot(np.sqrt(diagonal))) ** 2:
                break  # x is a proof that 0 is in the convex hull, to fp64's precision
            relative = _line_search(x, relative, b, gradient, target * x, beta)
            if relative is None:
                break
        x = x * np.exp(relative)
    return x, np.inf, iteration, False


def _line_search(x, relative, b, gradient, u, beta):
    """Halve t until x e^q, for q = t relative, or else x (1 + t relative), both clipped, lowers f by a tenth of its slope (Armijo). The
    difference is summed from terms of second order in z = e^q - 1, so that it does not cancel near the solution."""
    t = 1.0
    for _ in range(60):
        for q in np.minimum(np.maximum(t * relative, -3.0), 2.0), np.log1p(np.maximum(t * relative, -0.95)):
            z = np.expm1(q)
            phi = q if beta == 1.0 else np.expm1((1.0 - beta) * q) / (1.0 - beta)  # phi(e^q) - phi(1)
            step = x * z
            slope = gradient.dot(step)
            if slope > 0.0 and u.dot(z - phi) + 0.5 * step.dot(b.dot(step)) <= 0.9 * slope:
                return q
        t *= 0.5
    return None


def _least_squares(b, diagonal, beta, x):
    """Tier 2, with equation (C.4)'s Jacobian in the equilibrated, dimensionless form. Returns x, residual."""

    def residual(y):
        return (b @ np.exp(y)) * np.exp(beta * y) / diagonal - 1.0

    def jacobian(y):
        row_scale = np.exp(beta * y) / diagonal
        return row_scale[:, None] * b * np.exp(y) + np.diag(beta * row_scale * (b @ np.exp(y)))

    start = np.log(np.where(np.isfinite(x) & (x > 0.0), x, 1.0))
    solution = least_squares(residual, start, jacobian, xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=50)
    return np.exp(solution.x), float(np.abs(solution.fun).max())


def _solve_without_zero_rows(gram, alpha, tol, max_iterations):
    norms = np.sqrt(np.maximum(gram.diagonal(), TINY))
    impossible = (np.abs(gram) > 2.0 * norms * norms[:, None]).any(axis=1) | (gram.diagonal() < 0.0)
    if impossible.any():
        raise ValueError(f"gram is not a Gram matrix: |G_kj| > ||g_k|| ||g_j|| or G_kk < 0 for tasks {np.flatnonzero(impossible).tolist()}; "
                         "compute J @ J.T in fp64, where the squares of small norms do not underflow")  # fmt: skip
    active = gram.diagonal() >= TINY
    weights = np.zeros(len(gram))
    if not active.any():
        return FairGradResult(weights, 0.0, 0, False, False)
    result = solve_fairgrad(gram[np.ix_(active, active)], alpha, tol=tol, max_iterations=max_iterations)
    weights[active] = result.weights
    return result._replace(weights=weights)


def _check(gram, alpha):
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or gram.shape[0] == 0:
        raise ValueError(f"gram has shape {gram.shape}; expected [K, K], the inner products of K >= 1 gradients")
    if not 0.0 < alpha < np.inf:
        raise ValueError(f"alpha is {alpha}; expected a finite number > 0, e.g. 1, at which FairGrad does not depend on scale")
    if not np.isfinite(gram).all():
        bad = ~np.isfinite(gram.diagonal())  # a NaN gradient spoils every row; its own squared norm tells which one it was
        bad = bad if bad.any() else ~np.isfinite(gram).all(axis=1)
        raise ValueError(f"gram is NaN or Inf for tasks {np.flatnonzero(bad).tolist()}; check these tasks' losses and gradients")
    if not (gram == gram.T).all():
        norms = np.sqrt(np.abs(gram.diagonal()))
        if (np.abs(gram - gram.T) > 1e-5 * norms * norms[:, None]).any():
            raise ValueError("gram is not symmetric; expected J @ J.T, the rows of J being the K gradients")
