"""FairGrad's weights from a Gram matrix: solve G w = w^(-1/alpha), w > 0, in fp64.

G = J J^T, where the K rows of J are the tasks' gradients g_k. `solve_fairgrad` returns the weights
w of FairGrad's direction d = sum_k w_k g_k. They solve the KKT condition of section 4.3 and
minimise the strictly convex program (C.2):

    (G w)_k = w_k^(-1/alpha),  w_k > 0,  k = 1..K        (KKT condition of Eq. (3))
    f(w) = 1/2 w^T G w - sum_k phi(w_k)
    phi(w) = log w if alpha = 1, else w^(1 - 1/alpha) / (1 - 1/alpha)

alpha = 1 is the Nash bargaining point of Nash-MTL (Remark C.1). Only then d stays the same when
the gradients are rescaled task by task, and ||d||^2 is the number of non-zero gradients
(Theorem 1). This module needs numpy and scipy only.

Method (Section C.5)
--------------------
Tier 1 is Newton's method on rescaled gradients. Proposition C.1's weights are
s_k = G_kk^(-alpha/(1+alpha)). With w = s x and B = diag(s) G diag(s) the system becomes
B x = diag(B) x^(-1/alpha). For alpha = 1, B holds the cosines between the gradients, so a spread
of 10^12 in their norms costs nothing. The start is x_k = ((B 1)_k / B_kk)^(-alpha/(1+alpha)), with
(B 1)_k taken as at least 0.1 B_kk; it is Algorithm C.2's diagonal warm start, x = 1, if B is
diagonal. A step is Algorithm C.2's Newton step in y = log x, which is Newton's on f too, by a
Cholesky factorisation. It is taken whole while no weight changes by more than a factor e and the
residual's norm at least halves. Otherwise it is shortened until f has fallen enough (Armijo).
Algorithm C.2 wants the residual's norm to fall instead, which stalls for gradients close to
opposed.

Tier 2 is scipy.optimize.least_squares on the dimensionless residual in y, from Newton's last
iterate. Tier 3 is the weights s.

Guarantees
----------
A solution exists if and only if 0 is not in the convex hull of the gradients. It is then unique,
for every alpha > 0. Linear independence, the paper's assumption, suffices but is not needed:
duplicate and dependent gradients are fine.

In exact arithmetic Tier 1 then converges for every alpha > 0, at the end quadratically: a step is
taken whole only after the residual's norm has halved again, which ends after finitely many times,
and every other step lowers the strictly convex f along a descent direction by Armijo's rule. For
alpha = 1, f is self-concordant, so that a step shortened to 1 / (1 + Newton decrement) passes that
rule whatever K, the norms and the angles are (Boyd and Vandenberghe).

In fp64 the solution is lost when ||d|| < 1e-5 sum_k ||w_k g_k||, that is, when 0 is that close to
the convex hull of the normalised gradients. This ends in a logged fallback (Remark 1). Elsewhere
Newton ends where the residual is at tol, or no larger than what rounding makes of it.

References
----------
TOPPO, arXiv 2605.11473: Section 4.3, Section C.5 and Algorithm C.2.
S. Boyd and L. Vandenberghe, Convex Optimization, section 9.6: self-concordant functions.
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

# A squared norm below the smallest normal number has lost its digits: the row counts as zero.
TINY = np.finfo(np.float64).tiny
# A relative step this small, squared by the next one, is below what rounding leaves.
SMALL_STEP = 1e-5
# ||d|| / sum_k ||w_k g_k|| at which rounding, eps over its square, becomes as large as SMALL_STEP.
OPPOSED = 1e-5
# Newton's answer is taken where |B x - t| is this small beside |B| x + t: what is left is rounding.
ROUNDING = 1e-12
# Tier 2's answer is taken up to this residual.
ACCEPTED = 1e-3


class FairGradResult(NamedTuple):
    """What `solve_fairgrad` returns.

    Attributes
    ----------
    weights : ndarray, shape [K], fp64
        Finite and non-negative; exactly 0 where the gradient is zero.
    residual : float
        max_k |w_k^(1/alpha) (G w)_k - 1| over the other tasks.
    iterations : int
        Newton steps.
    used_scipy_fallback : bool
        Newton did not converge and Tier 2 ran.
    solver_fallback : bool
        Tier 2 failed too: the weights are Tier 3's and the residual is not small.
    """

    weights: Array
    residual: float
    iterations: int
    used_scipy_fallback: bool = False
    solver_fallback: bool = False


def solve_fairgrad(
    gram: ArrayLike, alpha: float = 1.0, *, tol: float = 1e-10, max_iterations: int = 100
) -> FairGradResult:
    """Solve (G w)_k = w_k^(-1/alpha), w > 0, for the weights of FairGrad.

    Parameters
    ----------
    gram : array_like, shape [K, K], any real dtype
        Inner products of the K tasks' gradients; converted to fp64 and left as it is. Compute it
        in fp64: in fp32 small squared norms underflow.
    alpha : float
        Fairness, any finite number > 0.
    tol : float
        Newton stops when the 2-norm of the residual is below, or where rounding lets it fall no
        further (see Notes). Any finite number > 0.
    max_iterations : int
        Newton steps before Tier 2, 0 or more. The paper's, and its tol, are in Table B.1.

    Returns
    -------
    FairGradResult
        The weights [K], their residual, the Newton steps and two flags.

    Raises
    ------
    ValueError
        If gram is not [K, K] with K >= 1, is complex, holds NaN or Inf (the message names the
        tasks, from 0), is not symmetric to 1e-5 of the norms, or cannot be a Gram matrix because a
        squared norm is negative or an inner product is more than twice the product of the norms;
        if alpha or tol is not a finite number > 0, or max_iterations is negative.

    Notes
    -----
    A zero row gets weight 0 and leaves the system. Opposed gradients (0 in their convex hull) have
    no solution: both fallback flags are set, a warning is logged, and the weights are Proposition
    C.1's, finite and positive.

    For alpha = 1 the residual bounds the weights' error: ||dw / w|| <= sqrt(K) residual to first
    order. Rounding makes it uncertain by eps sum_j |G_kj| w_j / (G w)_k, which is much for
    gradients close to opposed, and for alpha != 1 and a wide spread of norms. There a result has a
    residual above tol without a flag, although |G w - w^(-1/alpha)| is at most 1e-12 of
    |G| w + w^(-1/alpha).

    A matrix that is no Gram matrix for another reason than those above is not noticed: that would
    take its eigenvalues, which cost more than the weights. For alpha != 1 an inner product has to
    be more than twice the largest squared norm, after the rescaling, to be noticed.
    """
    if np.iscomplexobj(gram):
        raise ValueError("gram is complex; expected real inner products")
    gram = np.asarray(gram, dtype=np.float64)
    _check(gram, alpha, tol, max_iterations)
    squared_norms = gram.diagonal()
    if squared_norms.min() < TINY:
        return _solve_without_zero_rows(gram, alpha, tol, max_iterations)

    # Rescale by Proposition C.1's weights: B x = diag(B) x^(-1/alpha), w = scale x
    beta = 1.0 / alpha
    exponent = -1.0 / (1.0 + beta)
    scale = squared_norms**exponent
    b = gram * scale
    b *= scale[:, None]
    diagonal = b.diagonal().copy()
    # The largest entry of a Gram matrix is on its diagonal; for alpha = 1 that is all ones
    if abs(b.item(idamax(b.ravel()))) > 2.0 * diagonal.item(idamax(diagonal)):
        _refuse_impossible(gram)

    # The start: x = 1, Algorithm C.2's warm start, if B is diagonal
    row_sums = scale * gram.dot(scale)  # B 1
    row_sums = np.maximum(row_sums, 0.1 * diagonal)
    x = (row_sums / diagonal) ** exponent

    # Tier 1: Newton
    x, residual, iterations, converged = _newton(b, diagonal, beta, x, tol, max_iterations)
    if converged:
        return FairGradResult(scale * x, residual, iterations)
    opposed = _opposed(x, diagonal, x.dot(b.dot(x)))

    # Tier 2: scipy
    x, residual = _least_squares(b, diagonal, beta, x)
    if residual <= ACCEPTED:
        logger.info(
            "FairGrad Tier 2: Newton stopped after %d steps, scipy reached residual %.1e",
            iterations,
            residual,
        )
        return FairGradResult(scale * x, residual, iterations, used_scipy_fallback=True)

    # Tier 3: Proposition C.1's weights, x = 1
    error = b.sum(axis=1) / diagonal - 1.0
    residual = float(np.abs(error).max())
    logger.warning(
        "FairGrad Tier 3: %s; using Proposition C.1's weights, residual %.1e",
        "no solution, opposed gradients" if opposed else "no convergence",
        residual,
    )
    return FairGradResult(
        scale, residual, iterations, used_scipy_fallback=True, solver_fallback=True
    )


def _newton(
    b: Array, diagonal: Array, beta: float, x: Array, tol: float, max_iterations: int
) -> tuple[Array, float, int, bool]:
    """Tier 1: Newton's method on B x = diag(B) x^(-beta).

    Parameters
    ----------
    b : ndarray, shape [K, K], fp64
        The rescaled Gram matrix B.
    diagonal : ndarray, shape [K], fp64
        Its diagonal.
    beta : float
        1 / alpha.
    x : ndarray, shape [K], fp64
        The start, positive; left as it is.
    tol, max_iterations
        As in `solve_fairgrad`.

    Returns
    -------
    x : ndarray, shape [K], fp64
        The last iterate, positive.
    residual : float
        max_k |x_k^beta (B x)_k / B_kk - 1| if it is below tol or as small as rounding lets it be,
        else infinite.
    iterations : int
        Steps taken.
    converged : bool
        Whether the residual is one of these.
    """
    hessian = np.empty(b.shape, order="F")
    hessian_diagonal = hessian.reshape(-1, order="F")[:: len(x) + 1]
    squared_tol = tol * tol
    best = np.inf  # the smallest squared norm of the residual so far
    change = np.inf  # the largest entry of the last step in y
    for iteration in range(max_iterations + 1):
        target = diagonal * x**-beta
        gradient = target - b.dot(x)  # of -f
        error = gradient / target
        squared = error.dot(error)
        converged = squared <= squared_tol
        if not converged and squared >= best and change <= SMALL_STEP:
            terms = np.abs(b).dot(x) + target
            converged = bool((np.abs(gradient) <= ROUNDING * terms).all())
        if converged:
            return x, float(np.abs(error).max()), iteration, True
        if iteration == max_iterations:
            break

        halved = squared <= 0.25 * best
        best = min(best, squared)

        # The Newton step; this Hessian times diag(x) is the Jacobian (C.4)
        np.copyto(hessian, b)
        hessian_diagonal += beta * target / x
        _, step, info = dposv(hessian, gradient, overwrite_a=1)
        if info != 0:
            break
        relative = step / x  # the step in y
        change = abs(relative[idamax(relative)])

        if change > 1.0 or not halved:
            if _opposed(x, diagonal, x.dot(target - gradient)):
                break
            step_taken = _line_search(x, relative, b, gradient, target * x, beta)
            # Where rounding hides that f falls, a short step
            relative = np.clip(relative, -1.0, 1.0) if step_taken is None else step_taken
        x = x * np.exp(relative)
    return x, np.inf, iteration, False


def _opposed(x: Array, diagonal: Array, squared_length: float) -> bool:
    """Whether ||d|| has lost its digits beside sum_k ||w_k g_k||.

    Parameters
    ----------
    x, diagonal
        As in `_newton`.
    squared_length : float
        ||d||^2.
    """
    return bool(squared_length < (OPPOSED * x.dot(np.sqrt(diagonal))) ** 2)


def _line_search(
    x: Array, relative: Array, b: Array, gradient: Array, u: Array, beta: float
) -> Array | None:
    """Halve t until x e^q lowers f by a tenth of its slope (Armijo).

    Two q are tried at each t, both clipped: q = t relative, and log(1 + t relative), for which
    x e^q is x (1 + t relative).

    Parameters
    ----------
    x : ndarray, shape [K], fp64
        The point to step from.
    relative : ndarray, shape [K], fp64
        The whole step in y = log x.
    b : ndarray, shape [K, K], fp64
        The rescaled Gram matrix B.
    gradient : ndarray, shape [K], fp64
        That of -f at x.
    u : ndarray, shape [K], fp64
        diag(B) x^(1 - beta).
    beta : float
        1 / alpha.

    Returns
    -------
    ndarray, shape [K], fp64, or None
        The step q to take in y; None if no t of 60 lowers f.
    """
    decrement = gradient.dot(x * relative)

    def lowers_f(q: Array, t: float) -> bool:
        z = np.expm1(q)
        phi = q if beta == 1.0 else np.expm1((1.0 - beta) * q) / (1.0 - beta)  # phi(e^q) - phi(1)
        step = x * z
        slope = gradient.dot(step)
        if not slope > 1e-15 * t * decrement:  # clipping may leave no direction of descent
            return False
        # Slope minus fall of f, of second-order terms in z: it does not cancel near the solution
        excess = u.dot(z - phi) + 0.5 * step.dot(b.dot(step))
        return bool(excess <= 0.9 * slope)

    t = 1.0
    for _ in range(60):
        shortened = t * relative
        q = np.minimum(np.maximum(shortened, -3.0), 2.0)
        if lowers_f(q, t):
            return q
        q = np.log1p(np.maximum(shortened, -0.95))
        if lowers_f(q, t):
            return q
        t *= 0.5
    return None


def _least_squares(b: Array, diagonal: Array, beta: float, x: Array) -> tuple[Array, float]:
    """Tier 2: scipy's least squares on x_k^beta (B x)_k / B_kk - 1, in y = log x.

    Parameters
    ----------
    b, diagonal, beta, x
        As in `_newton`.

    Returns
    -------
    x : ndarray, shape [K], fp64
        The solution, or the start if scipy raised.
    residual : float
        The largest absolute entry of the residual; infinite if scipy raised.
    """

    def residual(y: Array) -> Array:
        return (b @ np.exp(y)) * np.exp(beta * y) / diagonal - 1.0

    def jacobian(y: Array) -> Array:
        exp_y = np.exp(y)
        row_scale = np.exp(beta * y) / diagonal
        on_diagonal = beta * row_scale * (b @ exp_y)
        return row_scale[:, None] * b * exp_y + np.diag(on_diagonal)

    options = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15, "max_nfev": 50}
    try:
        with np.errstate(all="ignore"):  # scipy shortens a step into overflow
            solution = least_squares(residual, np.log(x), jacobian, **options)
    except (ValueError, np.linalg.LinAlgError):
        # Not finite at the start, or no SVD of a Jacobian that spans too much
        return x, np.inf
    return np.exp(solution.x), float(np.abs(solution.fun).max())


def _solve_without_zero_rows(
    gram: Array, alpha: float, tol: float, max_iterations: int
) -> FairGradResult:
    """Give zero rows the weight 0 and solve for the others.

    Raises
    ------
    ValueError
        As `_refuse_impossible`.
    """
    _refuse_impossible(gram)
    weights = np.zeros(len(gram))
    active = gram.diagonal() >= TINY
    if not active.any():
        return FairGradResult(weights, residual=0.0, iterations=0)

    reduced = gram[np.ix_(active, active)]
    result = solve_fairgrad(reduced, alpha, tol=tol, max_iterations=max_iterations)
    weights[active] = result.weights
    return result._replace(weights=weights)


def _refuse_impossible(gram: Array) -> None:
    """Raise a ValueError if gram [K, K], fp64, cannot be J J^T.

    That is where a squared norm is negative, or an inner product larger than twice the product of
    the norms, as fp32 makes them of small gradients. The message names the tasks, from 0.
    """
    norms = np.sqrt(np.maximum(gram.diagonal(), TINY))
    impossible = np.abs(gram) > 2.0 * norms * norms[:, None]
    tasks = np.flatnonzero(impossible.any(axis=1)).tolist()
    if tasks:
        raise ValueError(
            f"gram has G_kk < 0 or G_kj^2 > G_kk G_jj for tasks {tasks}; "
            "expected J @ J.T, computed in fp64"
        )


def _check(gram: Array, alpha: float, tol: float, max_iterations: int) -> None:
    """Raise a ValueError that says what is wrong with the arguments. gram: [K, K], fp64."""
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or gram.shape[0] == 0:
        raise ValueError(
            f"gram has shape {gram.shape}; expected [K, K], the inner products of K >= 1 gradients"
        )

    if not 0.0 < alpha < np.inf:
        raise ValueError(f"alpha is {alpha}; expected a finite number > 0, for instance 1")

    if not 0.0 < tol < np.inf:
        raise ValueError(f"tol is {tol}; expected a finite number > 0, for instance 1e-10")

    if max_iterations < 0:
        raise ValueError(f"max_iterations is {max_iterations}; expected 0 or more")

    if not np.isfinite(gram).all():
        # A NaN gradient spoils every row; its own squared norm tells which one it was
        finite = np.isfinite(gram)
        tasks = np.flatnonzero(~finite.diagonal())
        if len(tasks) == 0:
            tasks = np.flatnonzero(~finite.all(axis=1))
        raise ValueError(
            f"gram is NaN or Inf for tasks {tasks.tolist()}; "
            "expected finite numbers, check those tasks' losses"
        )

    if not (gram == gram.T).all():
        norms = np.sqrt(np.abs(gram.diagonal()))
        asymmetry = np.abs(gram - gram.T)
        if (asymmetry > 1e-5 * norms * norms[:, None]).any():
            raise ValueError(
                "gram is not symmetric; expected J @ J.T, the rows of J being the K gradients"
            )
