"""Table C.1: FairGrad solvers side by side, on Grams captured in training too, and a robustness
sweep.

    python benchmarks/fairgrad_solver.py
    python benchmarks/fairgrad_solver.py --sweep 3000    # a shorter sweep
    python benchmarks/fairgrad_solver.py --no-write      # prints only

Prints and writes results/fairgrad_solver.md. The second part needs
results/fairgrad_solver_captured_grams.npz, an array `critic` [n, K, K] (and, if wanted, `actor`) of
fp64 Gram matrices of the per-task gradients of a training run, which capture_grams.py makes.
"""

import argparse
import logging
import os
import platform
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Threads cost more than they save at these sizes; the same for every column
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import scipy
import torch
from scipy.optimize import least_squares, nnls

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # ahead of this folder, whose file has the module's name

from fairgrad_solver import solve_fairgrad  # noqa: E402

CAPTURED = ROOT / "results" / "fairgrad_solver_captured_grams.npz"
REPORT = ROOT / "results" / "fairgrad_solver.md"

# The y-Newton of Algorithm C.2. The paper's values (Table B.1) are not recoverable from its text;
# these are ours.
Y_NEWTON_TOLERANCE = 1e-8  # on the un-normalised residual norm
Y_NEWTON_MAX_ITERATIONS = 50
Y_CAP = 50.0


# The columns. Each takes a Gram matrix and returns weights, iterations and whether it gave up on
# its own criterion.


def scipy_fairgrad(gram, alpha=1.0):
    """FairGrad's released solver (methods/weight_methods.py).

    It has scipy's defaults, w = 1/K, bounds (0, inf) and finite differences.
    """

    def residual(w):
        return gram @ w - (1.0 / w) ** (1.0 / alpha)

    start = np.full(len(gram), 1.0 / len(gram))
    solution = least_squares(residual, start, bounds=(0.0, np.inf))
    return solution.x, solution.nfev, not solution.success


def sgd_fairgrad(gram, alpha=1.0):
    """FairGrad's RL release (mtrl_files/fairgrad.py).

    It takes 20 steps of clipped SGD in fp32 on the squared residual and keeps the best.
    """
    gram = torch.from_numpy(gram).float()
    w = torch.full((len(gram),), 1.0 / len(gram), requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=0.5)
    best = torch.full_like(w, np.nan).detach()  # where fp32 overflows, the release crashes
    best_objective = np.inf
    for _ in range(20):
        optimizer.zero_grad()
        objective = torch.linalg.norm(gram @ w - (1.0 / (w + 1e-8)) ** (1.0 / alpha)) ** 2
        if objective.item() < best_objective:
            best = w.detach().clone()
            best_objective = objective.item()
        objective.backward()
        torch.nn.utils.clip_grad_norm_(w, max_norm=1.0)
        optimizer.step()
        w.data.clamp_(min=1e-8)
    return best.double().numpy(), 20, False


def y_newton(gram, alpha=1.0, warm=True):
    """Tier 1 of Algorithm C.2, un-equilibrated.

    Newton in y = log w with an Armijo search on the norm of the residual (C.3).
    """
    beta = 1.0 / alpha
    y = np.full(len(gram), -np.log(len(gram)))  # uniform
    if warm:
        y = -np.log(gram.diagonal()) / (1.0 + beta)  # Proposition C.1

    def at(y):
        """y within the cap, w, w^(-1/alpha) and the residual."""
        y = np.clip(y, -Y_CAP, Y_CAP)
        w = np.exp(y)
        target = np.exp(-beta * y)
        return y, w, target, gram @ w - target

    y, w, target, residual = at(y)
    for iteration in range(Y_NEWTON_MAX_ITERATIONS):
        norm = np.linalg.norm(residual)
        if norm <= Y_NEWTON_TOLERANCE:
            return w, iteration, False
        jacobian = gram * w  # Eqs. (C.4) and (C.5)
        jacobian.flat[:: len(w) + 1] += beta * target
        try:
            step = np.linalg.solve(jacobian, -residual)
        except np.linalg.LinAlgError:
            jacobian.flat[:: len(w) + 1] += 1e-10 * np.abs(jacobian.diagonal()).max()
            step = np.linalg.solve(jacobian, -residual)
        t = 1.0
        while True:
            new = at(y + t * step)
            if np.linalg.norm(new[3]) <= (1.0 - 1e-4 * t) * norm:
                break
            t *= 0.5
            if t <= 1e-10:
                return w, iteration, True
        y, w, target, residual = new
    return w, Y_NEWTON_MAX_ITERATIONS, np.linalg.norm(residual) > Y_NEWTON_TOLERANCE


def y_newton_cold(gram):
    return y_newton(gram, warm=False)


def ours(gram):
    result = solve_fairgrad(gram)
    return result.weights, result.iterations, result.used_scipy_fallback


Solver = Callable[..., tuple[np.ndarray, int | None, bool]]
COLUMNS: dict[str, Solver] = {
    "scipy (FairGrad)": scipy_fairgrad,
    "SGD (FairGrad RL)": sgd_fairgrad,
    "y-Newton cold": y_newton_cold,
    "y-Newton warm": y_newton,
}
BASELINE, OURS, NASH_MTL = "scipy (FairGrad)", "ours", "torchjd Nash-MTL"


def add_torchjd_columns():
    try:
        from torchjd.aggregation import FairGradWeighting, NashMTL
    except ImportError:
        print("torchjd is not installed; its columns are left out (pip install torchjd cvxpy ecos)")
        return
    fairgrad = FairGradWeighting(alpha=1.0)

    def torchjd_fairgrad(gram):
        return fairgrad(torch.from_numpy(gram)).numpy(), None, False

    COLUMNS["torchjd FairGrad"] = torchjd_fairgrad
    nash: dict[int, Any] = {}  # by K
    try:
        NashMTL(10)
    except ImportError:
        lack = "cvxpy or ecos is not installed; torchjd's Nash-MTL is left out"
        print(f"{lack} (pip install cvxpy ecos)")
        return

    def torchjd_nash_mtl(gram, rows):
        k = len(gram)
        weighting = nash.setdefault(k, NashMTL(k, max_norm=0.0).weighting)
        weighting.prvs_alpha = np.ones(k, dtype=np.float32)  # a cold start, the problem compiled
        w = weighting(rows).numpy()
        # It divides by the Gram's norm; put ||d|| = sqrt(K) back
        return w * np.sqrt(k / (w @ gram @ w)), None, False

    COLUMNS[NASH_MTL] = torchjd_nash_mtl


# Part 1 and 2: accuracy and time.


def regime(name, k, rng):
    """A Gaussian gradient matrix J [K, D].

    D = 1000, where random directions barely couple, but for the last two.
    """
    if name == CLOSE_TO_OPPOSED:
        # All around but for one coordinate, on whose positive side they all are, barely
        rows = rng.standard_normal((k, k // 4))
        rows[:, 0] = 0.01 * rng.random(k)
        return rows
    rows = rng.standard_normal((k, 6 * k // 5 if name == STRESS else 1000))
    if name == STRESS:
        return rows * np.logspace(0, -6, k)[:, None]
    if name == "heterogeneous, spread 1e3":
        return rows * np.logspace(0, -3, k)[:, None]
    if name != "well-conditioned":
        small = 1 if name == "one small row, 1e6" else max(1, k // 4)
        active = np.linalg.qr(rows[:-small].T)[0]
        orthogonal = rows[-small:] - rows[-small:] @ active @ active.T  # to the active tasks
        rows[-small:] = 1e-6 * orthogonal
    return rows


STRESS = "random, spread 1e6 (stress)"
CLOSE_TO_OPPOSED = "0 close to the convex hull"  # not in the paper's table
REGIMES = {  # name: the paper's milliseconds of scipy and its speed-up of the warm solver over it
    "well-conditioned": (14.5, 48),
    "heterogeneous, spread 1e3": (195, 1393),
    STRESS: (733, 95),
    "one small row, 1e6": (288, 1309),
    "quarter of the rows small, 1e6": (27.4, 130),
}


def kkt_residual(gram, w):
    active = gram.diagonal() > 0.0  # a zero gradient has no condition
    with np.errstate(all="ignore"):
        residual = np.abs(w * (gram @ w) - 1.0)[active].max()
    return residual if np.isfinite(residual) else np.inf


class Cell:
    """What is measured of one column on some Grams."""

    def __init__(self):
        self.milliseconds = []
        self.residuals = []
        self.iterations = []  # None where a column has none
        self.gave_up = 0
        self.spent = 0.0  # seconds
        self.repeats = None  # calls that are timed together, 5 ms

    def run(self, solver, arguments, first_round):
        if self.repeats is None:
            self.timed(solver, arguments)  # the first call is discarded
            elapsed, _ = self.timed(solver, arguments) if self.spent < 1.0 else (1.0, None)
            self.repeats = max(1, int(5e-3 / (elapsed + 1e-9)))
        elapsed, (w, iterations, failed) = self.timed(solver, arguments, self.repeats)
        self.milliseconds.append(1e3 * elapsed / self.repeats)
        if first_round:
            self.residuals.append(kkt_residual(arguments[0], w))
            self.iterations.append(iterations)
            self.gave_up += bool(failed)

    def timed(self, solver, arguments, repeats=1):
        """CPU seconds of some calls, and what the last one returned."""
        began = time.process_time()
        for _ in range(repeats):
            result = solver(*arguments)
        elapsed = time.process_time() - began
        self.spent += elapsed
        return elapsed, result

    def summary(self):
        """Median ms, worst and median residual, median iterations or None, and give-ups."""
        median_iterations = None
        if self.iterations[0] is not None:
            median_iterations = float(np.median(self.iterations))
        return (
            float(np.median(self.milliseconds)),
            max(self.residuals),
            float(np.median(self.residuals)),
            median_iterations,
            self.gave_up,
        )


def measure(grams, rounds, budget):
    """Each column's summary. The columns take turns on each Gram.

    A column's first call is discarded, and one that has used `budget` seconds ends with round one.
    """
    cells = {column: Cell() for column in COLUMNS}
    for round_ in range(rounds):
        for gram in grams:
            eigenvalues, vectors = np.linalg.eigh(gram)
            J = torch.from_numpy(vectors * np.sqrt(np.maximum(eigenvalues, 0.0)))  # with this Gram
            for column, solver in COLUMNS.items():
                arguments = (gram, J) if column == NASH_MTL else (gram,)
                if round_ == 0 or cells[column].spent <= budget:
                    cells[column].run(solver, arguments, round_ == 0)
    return {column: cell.summary() for column, cell in cells.items()}


def time_rows(cells, columns, paper):
    """Markdown rows of times: each column's, and how many times faster ours is."""
    for name, cell in cells.items():
        mine = cell[OURS][0]
        next_fastest = min(cell[c][0] for c in columns if c != OURS)
        times = " | ".join(f"{cell[c][0]:.3g}" for c in columns)
        line = (
            f"| {name} | {times} | {cell[BASELINE][0] / mine:.0f}× | {next_fastest / mine:.1f}× |"
        )
        yield line + (f" {paper[name][1]}× |" if paper else "")


def below_the_paper(cells, paper):
    """Lines on the regimes where the speed-up is less than the paper's."""
    for name, (paper_milliseconds, paper_speedup) in paper.items():
        milliseconds, _, _, evaluations, _ = cells[name][BASELINE]
        mine = cells[name][OURS][0]
        if milliseconds / mine < paper_speedup:
            yield ""
            yield (
                f"Below the paper's {paper_speedup}×: {name}. Its scipy took "
                f"{paper_milliseconds:g} ms, here scipy takes {milliseconds:.3g} ms for "
                f"{evaluations:g} evaluations; ours takes {1e3 * mine:.0f} µs, the paper's own "
                f"{1e3 * paper_milliseconds / paper_speedup:.0f} µs."
            )


def iterations_and_failures(cell):
    _, _, _, iterations, gave_up = cell
    return ("–" if iterations is None else f"{iterations:g}") + (f" ({gave_up})" if gave_up else "")


def format_cells(title, cells, paper=None):
    """Three Markdown tables of {row name: measure()'s result}: times, residuals and iterations."""
    columns = list(next(iter(cells.values())))
    header = f"| | {' | '.join(columns)} |"
    rule = "|---|" + "---|" * len(columns)
    extra = " scipy / ours | next fastest / ours |" + (
        " paper's scipy / its own |" if paper else ""
    )
    lines = [f"### {title}", "", "Median milliseconds per solve.", ""]
    lines += [header + extra, rule + "---|" * extra.count("|")]
    lines += time_rows(cells, columns, paper)
    lines += below_the_paper(cells, paper or {})
    lines += [
        "",
        "Residual max_k \\|w_k (Gw)_k − 1\\|: the worst Gram's, the median Gram's in brackets.",
        "",
        header,
        rule,
    ]
    for name, cell in cells.items():
        residuals = [f"{cell[c][1]:.0e} ({cell[c][2]:.0e})" for c in columns]
        lines.append(f"| {name} | {' | '.join(residuals)} |")
    lines += [
        "",
        "Median iterations (function evaluations for scipy); in brackets, Grams on which the",
        "solver itself gave up (scipy's status, a Newton that stalled or reached its cap, a",
        "fallback of ours).",
        "",
        header,
        rule,
    ]
    for name, cell in cells.items():
        counts = [iterations_and_failures(cell[c]) for c in columns]
        lines.append(f"| {name} | {' | '.join(counts)} |")
    return lines + [""]


# Part 3: robustness.

FAMILIES = (
    "random",
    "near-duplicate",
    "near-opposed",
    "exactly opposed",
    "close to opposed, jointly",
    "rank-deficient",
    "one-sided low rank",
    "zero rows",
    "fp32 underflow",
)


def random_rows(rng):
    """Gradients J [K, D] of a random family, K from 1 to 64, norms spread by up to 10^12.

    Returns the family's name and J.
    """
    family = FAMILIES[rng.integers(len(FAMILIES))]
    k = int(rng.integers(1, 65))
    d = int(rng.integers(1, 4 * k + 2))
    if family == "rank-deficient":
        d = int(rng.integers(1, k + 1))
    rows = rng.standard_normal((k, d))
    if family == "one-sided low rank":
        # Rank at most 3 and all within a half-space: dependent, but with a solution
        d = int(rng.integers(1, 4))
        rows = rng.standard_normal((k, d))
        rows[:, 0] = np.abs(rows[:, 0]) + 0.1
    elif family == "close to opposed, jointly":
        rows[:, 0] = 10.0 ** -rng.uniform(0, 8) * rng.random(k)
    rows *= 10.0 ** (-rng.uniform(0, 12) * rng.random(k))[:, None]
    if k > 1:
        i, j = rng.choice(k, 2, replace=False)
        noise = 10.0 ** -rng.uniform(0, 14) * np.linalg.norm(rows[i]) * rng.standard_normal(d)
        if family == "near-duplicate":
            rows[j] = 10.0 ** rng.uniform(-6, 6) * (rows[i] + noise * rng.integers(0, 2))
        elif family == "near-opposed":
            rows[j] = -(10.0 ** rng.uniform(-6, 6)) * (rows[i] + noise)
        elif family == "exactly opposed":
            rows[j] = -(2.0 ** rng.integers(-20, 20)) * rows[i]
    if family == "zero rows":
        rows[rng.random(k) < rng.choice((0.1, 0.5, 1.0))] = 0.0
    elif family == "fp32 underflow":
        rows[rng.random(k) < 0.3] *= 1e-25
    return family, rows


def distance_to_hull(rows):
    """Distance from 0 to the convex hull of the normalised non-zero rows.

    It is 0 (to rounding) for opposed gradients.
    """
    norms = np.linalg.norm(rows, axis=1)
    units = rows[norms > 0.0] / norms[norms > 0.0, None]
    # min over l >= 0 of ||U^T l||^2 + (sum l - 1)^2 is h^2 / (1 + h^2) for a hull at distance h
    system = np.vstack([units.T, np.ones(len(units))])
    target = np.append(np.zeros(units.shape[1]), 1.0)
    residual = nnls(system, target, maxiter=100 * len(units))[1]
    return residual / np.sqrt(max(1.0 - residual**2, np.finfo(float).tiny))


ALPHAS = (1.0, 0.5, 2.0, 5.0)


def count_wrong(wrong, gram, w):
    """Counts what must not happen."""
    nonzero = gram.diagonal() > 0.0
    wrong["NaN or Inf in the weights"] += not np.isfinite(w).all()
    wrong["negative weight"] += bool((w < 0.0).any())
    wrong["weight 0 for a non-zero row"] += bool((w[nonzero] == 0.0).any())
    wrong["weight for a zero row"] += bool((w[~nonzero] != 0.0).any())


def residual_and_rounding(gram, w, alpha):
    """The largest |w_k^(1/alpha) (G w)_k - 1|, and rounding's part in it; None of no gradients."""
    active = w > 0.0
    if not active.any():
        return None
    g = gram[np.ix_(active, active)]
    v = w[active]
    scale = v ** (1.0 / alpha)
    residual = np.abs(scale * (g @ v) - 1.0).max()
    return residual, (np.finfo(float).eps * (np.abs(g) @ v) * scale).max()


def sweep(count, seed=0):
    """Solves `count` random Gram matrices and counts what happens.

    An exception of the solver is not caught.
    """
    rng = np.random.default_rng(seed)
    found = {
        "count": count,
        "seed": seed,
        "families": Counter(),
        "tier 2": Counter(),
        "tier 3": Counter(),
        "wrong": Counter(),
        "steps": {alpha: [] for alpha in ALPHAS},
        "fallback distances": {alpha: [] for alpha in ALPHAS},  # of 0 to the convex hull
        "residuals": {alpha: [] for alpha in ALPHAS},  # of Grams that are not all zero
        "residuals / rounding": [],  # of the residuals above 1e-8
    }
    start = time.perf_counter()
    for _ in range(count):
        family, rows = random_rows(rng)
        # A ratio of 10^25 between norms, as fp32 underflow makes, is beyond fp64 unless alpha = 1
        # (Theorem 1)
        alpha = 1.0
        if family != "fp32 underflow":
            alpha = float(rng.choice((1.0, 1.0, 1.0, 0.5, 2.0, 5.0)))
        gram = rows @ rows.T
        result = solve_fairgrad(gram, alpha)
        found["families"][family] += 1
        count_wrong(found["wrong"], gram, result.weights)
        if result.solver_fallback:
            found["tier 3"][family] += 1
            found["fallback distances"][alpha].append(distance_to_hull(rows))
            continue
        found["tier 2"][family] += result.used_scipy_fallback
        found["steps"][alpha].append(result.iterations)
        measured = residual_and_rounding(gram, result.weights, alpha)
        if measured:
            residual, rounding = measured
            found["residuals"][alpha].append(residual)
            if residual > 1e-8:
                found["residuals / rounding"].append(residual / rounding)
    found["seconds"] = time.perf_counter() - start
    return found


def fallbacks_in_words(distances):
    """distances: {alpha: [distance of 0 to the convex hull]} of the Grams that ended in Tier 3."""
    every = [h for of_alpha in distances.values() for h in of_alpha]
    opposed = sum(h <= 1e-5 for h in every)
    words = (
        f"Fallbacks (Tier 3): {len(every)}. {opposed} are opposed gradients, 0 at most 1e-5 from "
        "the convex hull of the normalised gradients"
    )
    others = {a: sum(h > 1e-5 for h in of_alpha) for a, of_alpha in distances.items()}
    counts = ", ".join(f"{n} at alpha {a:g}" for a, n in others.items() if n)
    if not counts:
        return f"{words}."
    return (
        f"{words}; {counts}, 0 at most {max(every):.0e} from it, are nearly opposed ones with "
        "norms so far apart that rounding keeps the residual above 1e-3."
    )


def format_sweep(found):
    rounding = found["residuals / rounding"]
    solved = found["count"] - sum(found["tier 3"].values())
    zero = solved - sum(len(r) for r in found["residuals"].values())
    largest = ", ".join(f"{max(r):.0e} at alpha {a:g}" for a, r in found["residuals"].items() if r)
    wrong = " ".join(f"{what}: {n}." for what, n in found["wrong"].items())
    lines = [
        f"{found['count']} Gram matrices, seed {found['seed']}: K from 1 to 64, norms spread by up "
        "to 10^12, alpha 1 (more than half), 0.5, 2 and 5; "
        f"{found['seconds']:.0f} s. Exceptions: 0 (one would have ended the run). {wrong}",
        "",
        f"{fallbacks_in_words(found['fallback distances'])} "
        f"Solved by Tier 2: {sum(found['tier 2'].values())}.",
        "",
        f"Without a fallback: {solved}, {zero} of them all zero. {len(rounding)} have a residual "
        "above 1e-8 (gradients close to opposed, or alpha != 1 and norms far apart), the largest "
        f"{largest}. Half of these are below {np.median(rounding):.1f} times the rounding error of "
        "evaluating them, eps sum_j \\|G_kj\\| w_j / (G w)_k, 99 % below "
        f"{np.quantile(rounding, 0.99):.1f}, all below {max(rounding):.0f}.",
        "",
        "| family | Grams | Tier 2 | Tier 3 |",
        "|---|---|---|---|",
    ]
    for family in FAMILIES:
        counts = [found[what][family] for what in ("families", "tier 2", "tier 3")]
        lines.append(f"| {family} | {' | '.join(map(str, counts))} |")
    lines += ["", "| alpha | median steps | 99.9 % | most |", "|---|---|---|---|"]
    for alpha, steps in found["steps"].items():
        if steps:
            high = f"{np.quantile(steps, 0.999):.0f}"
            lines.append(f"| {alpha:g} | {np.median(steps):g} | {high} | {max(steps)} |")
    return lines + [""]


# The page.


def cpu_name():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown CPU"


def progress(what):
    print(what, file=sys.stderr, flush=True)


def grams_of(name, k, rng, args):
    return [J @ J.T for J in (regime(name, k, rng) for _ in range(args.grams))]


def table_c1(args):
    lines = ["## Table C.1", ""]
    missed = []
    for k in args.tasks:
        rng = np.random.default_rng([args.seed, k])
        cells = {}
        for name in REGIMES:
            progress(f"K = {k}, {name}")
            cells[name] = measure(grams_of(name, k, rng, args), args.rounds, args.budget)
            milliseconds, residual, _, _, gave_up = cells[name][OURS]
            others = [cells[name][c][0] for c in COLUMNS if c != OURS]
            if residual > 1e-8 or gave_up or milliseconds >= min(others):
                missed.append(f"K = {k}, {name}")
        lines += format_cells(f"K = {k}", cells, REGIMES)

    rng = np.random.default_rng([args.seed, 0])
    cells = {}
    for k in args.tasks:
        progress(f"K = {k}, {CLOSE_TO_OPPOSED}")
        grams = grams_of(CLOSE_TO_OPPOSED, k, rng, args)
        cells[f"K = {k}"] = measure(grams, args.rounds, args.budget)
    lines += format_cells("Beyond the paper's table: gradients close to opposed", cells)
    which = ", ".join(missed) or "no cell"
    what = "residual above 1e-8, a fallback, or a faster column in"
    return [*lines, f"In the {len(args.tasks) * len(REGIMES)} cells: {what}: {which}.", ""]


def captured_grams(args):
    lines = ["## Gram matrices captured in training", ""]
    path = CAPTURED.relative_to(ROOT).as_posix()
    if not CAPTURED.exists():
        return [*lines, f"{path} is absent; capture_grams.py makes it.", ""]
    cells = {}
    with np.load(CAPTURED) as captured:
        for side in captured.files:
            progress(f"captured, {side}")
            grams = list(np.asarray(captured[side], dtype=np.float64))
            dead = sum(bool((gram.diagonal() == 0.0).any()) for gram in grams)
            count = f"{len(grams)} Grams, {dead} with a zero gradient, K = {len(grams[0])}"
            cells[f"{side}, {count}"] = measure(grams, 5, args.budget)
    return lines + format_cells(path, cells)


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def flag(name, default, text):
        text += f" (default {default:,})"
        parser.add_argument(name, type=type(default), default=default, help=text)

    text = "K of Table C.1 (default: the paper's 10 50)"
    parser.add_argument("--tasks", type=int, nargs="+", default=[10, 50], help=text)
    flag("--grams", 5, "Gram matrices per cell of Table C.1")
    flag("--rounds", 20, "timed rounds over them")
    flag("--budget", 10.0, "seconds after which a column leaves a cell's rounds")
    flag("--sweep", 100_000, "Gram matrices of the robustness sweep")
    flag("--seed", 0, "of the random Gram matrices")
    text = f"do not write {REPORT.relative_to(ROOT)}"
    parser.add_argument("--no-write", action="store_true", help=text)
    return parser.parse_args()


def main():
    args = parse_args()
    torch.set_num_threads(1)
    # The released solvers divide by zero and cvxpy comments on its problem
    warnings.simplefilter("ignore")
    add_torchjd_columns()
    COLUMNS[OURS] = ours

    command = [str(Path(__file__).resolve().relative_to(ROOT)), *sys.argv[1:]]
    versions = f"numpy {np.__version__}, scipy {scipy.__version__}, torch {torch.__version__}"
    lines = [
        "# FairGrad solver",
        "",
        f"`python {' '.join(command)}` on one core of {cpu_name()}.",
        f"Python {platform.python_version()}, {versions}.",
        "alpha = 1. Solvers take turns on the same Gram, the first run of each is discarded;",
        "times are CPU times of the process, which other work on the machine disturbs less than",
        "the clock on the wall.",
        "",
        *table_c1(args),
        *captured_grams(args),
        "## Robustness sweep",
        "",
    ]
    progress("sweep")
    logging.disable(logging.WARNING)  # the fallbacks are counted
    lines += format_sweep(sweep(args.sweep, args.seed))
    print("\n".join(lines))
    if not args.no_write:
        REPORT.parent.mkdir(exist_ok=True)
        REPORT.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
