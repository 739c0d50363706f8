"""Table C.1: FairGrad solvers side by side, the same on Gram matrices captured in training, and a robustness sweep.

    python benchmarks/fairgrad_solver.py                  everything; prints and writes results/fairgrad_solver.md
    python benchmarks/fairgrad_solver.py --sweep 3000     a shorter sweep
    python benchmarks/fairgrad_solver.py --no-write       prints only

The second part needs results/fairgrad_solver_captured_grams.npz, an array `critic` [n, K, K] (and, if wanted, `actor`) of fp64
Gram matrices of the per-task gradients of a training run: np.savez_compressed(path, critic=np.stack(grams)).
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

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads cost more than they save at these sizes; the same for every column

import numpy as np
import scipy
import torch
from scipy.optimize import least_squares, nnls

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # ahead of this folder, whose file has the module's name

from fairgrad_solver import solve_fairgrad  # noqa: E402

CAPTURED = ROOT / "results" / "fairgrad_solver_captured_grams.npz"
REPORT = ROOT / "results" / "fairgrad_solver.md"

# The y-Newton of Algorithm C.2. The paper's values (Table B.1) are not recoverable from its text; these are ours.
Y_NEWTON_TOLERANCE = 1e-8  # on the un-normalised residual norm
Y_NEWTON_MAX_ITERATIONS = 50
Y_CAP = 50.0


# ---------------------------------------------------------------------------------------------------------------------
# The columns. Each takes a Gram matrix and returns weights, iterations and whether it gave up on its own criterion.
# ---------------------------------------------------------------------------------------------------------------------


def scipy_fairgrad(gram, alpha=1.0):
    """FairGrad's released solver (methods/weight_methods.py): scipy's defaults, w = 1/K, bounds (0, inf), finite differences."""
    start = np.full(len(gram), 1.0 / len(gram))
    solution = least_squares(lambda w: gram @ w - (1.0 / w) ** (1.0 / alpha), start, bounds=(0.0, np.inf))
    return solution.x, solution.nfev, not solution.success


def sgd_fairgrad(gram, alpha=1.0):
    """FairGrad's RL release (mtrl_files/fairgrad.py): 20 steps of clipped SGD in fp32 on the squared residual, the best kept."""
    gram = torch.from_numpy(gram).float()
    w = torch.full((len(gram),), 1.0 / len(gram), requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=0.5)
    best, best_objective = None, np.inf
    for _ in range(20):
        optimizer.zero_grad()
        objective = torch.linalg.norm(gram @ w - (1.0 / (w + 1e-8)) ** (1.0 / alpha)) ** 2
        if objective.item() < best_objective:
            best, best_objective = w.detach().clone(), objective.item()
        objective.backward()
        torch.nn.utils.clip_grad_norm_(w, max_norm=1.0)
        optimizer.step()
        w.data.clamp_(min=1e-8)
    best = torch.full_like(w, np.nan).detach() if best is None else best  # fp32 overflowed: the release crashes here
    return best.double().numpy(), 20, False


def y_newton(gram, alpha=1.0, warm=True):
    """Tier 1 of Algorithm C.2, un-equilibrated: Newton in y = log w with an Armijo search on the norm of the residual (C.3)."""
    beta = 1.0 / alpha
    y = -np.log(gram.diagonal()) / (1.0 + beta) if warm else np.full(len(gram), -np.log(len(gram)))  # Proposition C.1, or uniform
    y = np.clip(y, -Y_CAP, Y_CAP)
    w, target = np.exp(y), np.exp(-beta * y)
    residual = gram @ w - target
    norm = np.linalg.norm(residual)
    for iteration in range(Y_NEWTON_MAX_ITERATIONS):
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
        while t > 1e-10:
            new_y = np.clip(y + t * step, -Y_CAP, Y_CAP)
            new_w, new_target = np.exp(new_y), np.exp(-beta * new_y)
            new_residual = gram @ new_w - new_target
            new_norm = np.linalg.norm(new_residual)
            if new_norm <= (1.0 - 1e-4 * t) * norm:
                break
            t *= 0.5
        else:
            return w, iteration, True
        y, w, target, residual, norm = new_y, new_w, new_target, new_residual, new_norm
    return w, Y_NEWTON_MAX_ITERATIONS, norm > Y_NEWTON_TOLERANCE


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
    COLUMNS["torchjd FairGrad"] = lambda gram: (fairgrad(torch.from_numpy(gram)).numpy(), None, False)
    nash: dict[int, Any] = {}  # by K
    try:
        NashMTL(10)
    except ImportError:
        print("cvxpy or ecos is not installed; torchjd's Nash-MTL is left out (pip install cvxpy ecos)")
        return

    def torchjd_nash_mtl(gram, rows):
        weighting = nash.setdefault(len(gram), NashMTL(len(gram), max_norm=0.0).weighting)
        weighting.prvs_alpha = np.ones(len(gram), dtype=np.float32)  # a cold start, but with the compiled problem
        w = weighting(rows).numpy()
        return w * np.sqrt(len(gram) / (w @ gram @ w)), None, False  # it divides by the Gram's norm; put ||d|| = sqrt(K) back

    COLUMNS[NASH_MTL] = torchjd_nash_mtl


# ---------------------------------------------------------------------------------------------------------------------
# Part 1 and 2: accuracy and time
# ---------------------------------------------------------------------------------------------------------------------


def regime(name, k, rng):
    """A Gaussian gradient matrix J [K, D]. D = 1000, where random directions barely couple, but for the last two."""
    if name == CLOSE_TO_OPPOSED:  # all around but for one coordinate, on whose positive side they all are, barely
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
        rows[-small:] = 1e-6 * (rows[-small:] - rows[-small:] @ active @ active.T)  # orthogonal to the active tasks
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


def measure(grams, rounds, budget):
    """Per column: median milliseconds over all calls, worst and median residual, median iterations, give-ups. Columns take turns
    on each Gram; a column's first call in a cell is discarded, and one that has used `budget` seconds ends with round one."""
    times: dict[str, list[float]] = {c: [] for c in COLUMNS}
    residuals: dict[str, list[float]] = {c: [] for c in COLUMNS}
    iterations: dict[str, list[Any]] = {c: [] for c in COLUMNS}  # None where a column has none
    gave_up, spent, repeats, warm = dict.fromkeys(COLUMNS, 0), dict.fromkeys(COLUMNS, 0.0), {}, set()
    for round_ in range(rounds):
        for gram in grams:
            eigenvalues, vectors = np.linalg.eigh(gram)
            rows = torch.from_numpy(vectors * np.sqrt(np.maximum(eigenvalues, 0.0)))  # some J with this Gram
            for column, solver in COLUMNS.items():
                arguments = (gram, rows) if column == NASH_MTL else (gram,)
                if column not in warm:
                    warm.add(column)
                    start = time.process_time()
                    solver(*arguments)
                    spent[column] += time.process_time() - start
                if column not in repeats and spent[column] < 1.0:
                    start = time.process_time()
                    solver(*arguments)
                    repeats[column] = max(1, int(5e-3 / (time.process_time() - start + 1e-9)))  # short calls in batches of 5 ms
                if round_ > 0 and spent[column] > budget:
                    continue
                start = time.process_time()
                for _ in range(repeats.setdefault(column, 1)):
                    w, steps, failed = solver(*arguments)
                elapsed = time.process_time() - start
                spent[column] += elapsed
                times[column].append(1e3 * elapsed / repeats[column])
                if round_ == 0:
                    residuals[column].append(kkt_residual(gram, w))
                    iterations[column].append(steps)
                    gave_up[column] += bool(failed)
    table = {}
    for column in COLUMNS:
        counts = iterations[column]
        table[column] = (
            float(np.median(times[column])),
            max(residuals[column]),
            float(np.median(residuals[column])),
            None if counts[0] is None else float(np.median(counts)),
            gave_up[column],
        )
    return table


def format_cells(title, cells, paper=None):
    """Three Markdown tables, times, residuals and iterations, of `cells`: {row name: measure()'s result}."""
    columns = list(next(iter(cells.values())))
    header = f"| | {' | '.join(columns)} |"
    rule = "|---|" + "---|" * len(columns)
    extra = " scipy / ours | next fastest / ours |" + (" paper's scipy / its own |" if paper else "")
    lines = [f"### {title}", "", "Median milliseconds per solve.", "", header + extra, rule + "---|" * extra.count("|")]
    for name, cell in cells.items():
        mine = cell[OURS][0]
        next_fastest = min(cell[c][0] for c in columns if c != OURS)
        line = f"| {name} | " + " | ".join(f"{cell[c][0]:.3g}" for c in columns)
        line += f" | {cell[BASELINE][0] / mine:.0f}× | {next_fastest / mine:.1f}× |"
        lines.append(line + (f" {paper[name][1]}× |" if paper else ""))
    for name in paper or ():
        milliseconds, _, _, evaluations, _ = cells[name][BASELINE]
        paper_milliseconds, paper_speedup = paper[name]
        if milliseconds / cells[name][OURS][0] < paper_speedup:
            lines += [
                "",
                f"Below the paper's {paper_speedup}×: {name}. Its scipy took {paper_milliseconds:g} ms, here scipy takes "
                f"{milliseconds:.3g} ms for {evaluations:g} evaluations; ours takes {1e3 * cells[name][OURS][0]:.0f} µs, "
                f"the paper's own {1e3 * paper_milliseconds / paper_speedup:.0f} µs.",
            ]
    lines += ["", "Residual max_k \\|w_k (Gw)_k − 1\\|: the worst Gram's, the median Gram's in brackets.", "", header, rule]
    for name, cell in cells.items():
        lines.append(f"| {name} | " + " | ".join(f"{cell[c][1]:.0e} ({cell[c][2]:.0e})" for c in columns) + " |")
    lines += ["", "Median iterations (function evaluations for scipy); in brackets, Grams on which the solver itself gave up"]
    lines += ["(scipy's status, a Newton that stalled or reached its cap, a fallback of ours).", "", header, rule]
    for name, cell in cells.items():
        entries = [
            ("–" if cell[c][3] is None else f"{cell[c][3]:g}") + (f" ({cell[c][4]})" if cell[c][4] else "") for c in columns
        ]
        lines.append(f"| {name} | " + " | ".join(entries) + " |")
    return lines + [""]


# ---------------------------------------------------------------------------------------------------------------------
# Part 3: robustness
# ---------------------------------------------------------------------------------------------------------------------

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
    """Gradients J [K, D] of a random family, K from 1 to 64, norms spread by up to 10^12. Returns the family's name and J."""
    family = FAMILIES[rng.integers(len(FAMILIES))]
    k = int(rng.integers(1, 65))
    d = int(rng.integers(1, 4 * k + 2))
    if family == "rank-deficient":
        d = int(rng.integers(1, k + 1))
    rows = rng.standard_normal((k, d))
    if family == "one-sided low rank":  # rank at most 3 and all within a half-space: dependent, but with a solution
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
    """Distance from 0 to the convex hull of the normalised non-zero rows, which is 0 (to rounding) for opposed gradients."""
    norms = np.linalg.norm(rows, axis=1)
    units = rows[norms > 0.0] / norms[norms > 0.0, None]
    # min over l >= 0 of ||U^T l||^2 + (sum l - 1)^2 is h^2 / (1 + h^2) for a hull at distance h.
    residual = nnls(
        np.vstack([units.T, np.ones(len(units))]), np.append(np.zeros(units.shape[1]), 1.0), maxiter=100 * len(units)
    )[1]
    return residual / np.sqrt(max(1.0 - residual**2, np.finfo(float).tiny))


def sweep(count, seed=0):
    """Solve `count` random Gram matrices and count what happens. An exception of the solver is not caught."""
    rng = np.random.default_rng(seed)
    found = {
        "count": count,
        "seed": seed,
        "families": Counter(),
        "tier 2": Counter(),
        "tier 3": Counter(),
        "wrong": Counter(),  # what must not happen
        "steps": {1.0: [], 0.5: [], 2.0: [], 5.0: []},
        "fallback distances": {1.0: [], 0.5: [], 2.0: [], 5.0: []},  # of 0 to the convex hull
        "residuals": {1.0: [], 0.5: [], 2.0: [], 5.0: []},  # of Grams that are not all zero
        "residuals / rounding": [],  # of the residuals above 1e-8
    }
    start = time.perf_counter()
    for _ in range(count):
        family, rows = random_rows(rng)
        # A ratio of 10^25 between norms, as fp32 underflow makes, is beyond fp64 unless alpha = 1 (Theorem 1).
        alpha = 1.0 if family == "fp32 underflow" else float(rng.choice((1.0, 1.0, 1.0, 0.5, 2.0, 5.0)))
        gram = rows @ rows.T
        result = solve_fairgrad(gram, alpha)
        w = result.weights
        found["families"][family] += 1
        found["wrong"]["NaN or Inf in the weights"] += not np.isfinite(w).all()
        found["wrong"]["negative weight"] += bool((w < 0.0).any())
        found["wrong"]["weight 0 for a non-zero row"] += bool((w[gram.diagonal() > 0.0] == 0.0).any())
        found["wrong"]["weight for a zero row"] += bool((w[gram.diagonal() == 0.0] != 0.0).any())
        if result.solver_fallback:
            found["tier 3"][family] += 1
            found["fallback distances"][alpha].append(distance_to_hull(rows))
            continue
        found["tier 2"][family] += result.used_scipy_fallback
        found["steps"][alpha].append(result.iterations)
        active = w > 0.0
        g, v = gram[np.ix_(active, active)], w[active]
        if len(v):
            residual = np.abs(v ** (1.0 / alpha) * (g @ v) - 1.0).max()
            found["residuals"][alpha].append(residual)
            if residual > 1e-8:
                rounding = (np.finfo(float).eps * (np.abs(g) @ v) * v ** (1.0 / alpha)).max()
                found["residuals / rounding"].append(residual / rounding)
    found["seconds"] = time.perf_counter() - start
    return found


def format_sweep(found):
    distances, rounding = found["fallback distances"], found["residuals / rounding"]
    total = sum(found["tier 3"].values())
    solved = found["count"] - total
    zero = solved - sum(len(r) for r in found["residuals"].values())
    largest = ", ".join(f"{max(r):.0e} at alpha {a:g}" for a, r in found["residuals"].items())
    opposed = sum(sum(h <= 1e-5 for h in d) for d in distances.values())
    others = ", ".join(f"{sum(h > 1e-5 for h in d)} at alpha {a:g}" for a, d in distances.items() if max(d, default=0.0) > 1e-5)
    furthest = max(max(d, default=0.0) for d in distances.values())
    lines = [
        f"{found['count']} Gram matrices, seed {found['seed']}: K from 1 to 64, norms spread by up to 10^12, "
        f"alpha 1 (more than half), 0.5, 2 and 5; {found['seconds']:.0f} s. Exceptions: 0 (one would have ended the run). "
        + " ".join(f"{what}: {n}." for what, n in found["wrong"].items()),
        "",
        f"Fallbacks (Tier 3): {total}. {opposed} are opposed gradients, 0 at most 1e-5 from the convex hull of the normalised "
        + (f"gradients; {others}, 0 at most {furthest:.0e} from it, are nearly opposed ones " if others else "gradients. ")
        + "with norms so far apart that rounding keeps the residual above 1e-3. " * bool(others)
        + f"Solved by Tier 2: {sum(found['tier 2'].values())}.",
        "",
        f"Without a fallback: {solved}, {zero} of them all zero. {len(rounding)} have a residual above 1e-8 (gradients close to "
        f"opposed, or alpha != 1 and norms far apart), the largest {largest}. Half of these are below {np.median(rounding):.1f} "
        f"times the rounding error of evaluating them, eps sum_j \\|G_kj\\| w_j / (G w)_k, 99 % below "
        f"{np.quantile(rounding, 0.99):.1f}, all below {max(rounding):.0f}.",
        "",
        "| family | Grams | Tier 2 | Tier 3 |",
        "|---|---|---|---|",
    ]
    lines += [f"| {f} | {found['families'][f]} | {found['tier 2'][f]} | {found['tier 3'][f]} |" for f in FAMILIES]
    lines += ["", "| alpha | median steps | 99.9 % | most |", "|---|---|---|---|"]
    lines += [f"| {a:g} | {np.median(n):g} | {np.quantile(n, 0.999):.0f} | {max(n)} |" for a, n in found["steps"].items() if n]
    return lines + [""]


def cpu_name():
    try:
        return next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown CPU"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grams", type=int, default=5, help="Gram matrices per cell of Table C.1 (default 5)")
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds over them (default 20)")
    parser.add_argument(
        "--budget", type=float, default=10.0, help="seconds after which a column leaves a cell's rounds (default 10)"
    )
    parser.add_argument("--sweep", type=int, default=100_000, help="Gram matrices of the robustness sweep (default 100000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-write", action="store_true", help=f"do not write {REPORT.relative_to(ROOT)}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the released solvers divide by zero and cvxpy comments on its problem
    add_torchjd_columns()
    COLUMNS[OURS] = ours

    lines = [
        "# FairGrad solver",
        "",
        f"`python {' '.join([str(Path(__file__).resolve().relative_to(ROOT)), *sys.argv[1:]])}` on one core of {cpu_name()}.",
        f"Python {platform.python_version()}, numpy {np.__version__}, scipy {scipy.__version__}, torch {torch.__version__}.",
        "alpha = 1. Solvers take turns on the same Gram, the first run of each is discarded; times are CPU times of the process,",
        "which other work on the machine disturbs less than the clock on the wall.",
        "",
        "## Table C.1",
        "",
    ]
    missed = []
    for k in (10, 50):
        rng = np.random.default_rng([args.seed, k])
        cells = {}
        for name in REGIMES:
            print(f"K = {k}, {name}", file=sys.stderr, flush=True)
            grams = [j @ j.T for j in (regime(name, k, rng) for _ in range(args.grams))]
            cells[name] = measure(grams, args.rounds, args.budget)
            mine, others = cells[name][OURS], [cells[name][c][0] for c in COLUMNS if c != OURS]
            if mine[1] > 1e-8 or mine[4] or mine[0] >= min(others):
                missed.append(f"K = {k}, {name}")
        lines += format_cells(f"K = {k}", cells, REGIMES)
    rng = np.random.default_rng([args.seed, 0])
    print(CLOSE_TO_OPPOSED, file=sys.stderr, flush=True)
    cells = {
        f"K = {k}": measure(
            [j @ j.T for j in (regime(CLOSE_TO_OPPOSED, k, rng) for _ in range(args.grams))], args.rounds, args.budget
        )
        for k in (10, 50)
    }
    lines += format_cells("Beyond the paper's table: gradients close to opposed", cells)
    lines += [
        "In the ten cells: residual above 1e-8, a fallback, or a faster column in: " + (", ".join(missed) or "no cell") + ".",
        "",
    ]

    lines += ["## Gram matrices captured in training", ""]
    if CAPTURED.exists():
        cells = {}
        with np.load(CAPTURED) as captured:
            for side in captured.files:
                print(f"captured, {side}", file=sys.stderr, flush=True)
                grams = list(np.asarray(captured[side], dtype=np.float64))
                dead = sum(bool((gram.diagonal() == 0.0).any()) for gram in grams)
                cells[f"{side}, {len(grams)} Grams, {dead} with a zero gradient, K = {len(grams[0])}"] = measure(
                    grams, 5, args.budget
                )
        lines += format_cells(CAPTURED.relative_to(ROOT).as_posix(), cells)
    else:
        lines += [f"{CAPTURED.relative_to(ROOT).as_posix()} is absent; see the head of the benchmark for what it holds.", ""]

    lines += ["## Robustness sweep", ""]
    print("sweep", file=sys.stderr, flush=True)
    logging.disable(logging.WARNING)  # the fallbacks are counted
    lines += format_sweep(sweep(args.sweep, args.seed))
    print("\n".join(lines))
    if not args.no_write:
        REPORT.parent.mkdir(exist_ok=True)
        REPORT.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
