"""Table C.1: the time and the residual of the paper's four FairGrad solvers, and ours.

    python benchmarks/fairgrad_solver.py

Prints two Markdown tables for each K. The solvers take turns on the same Gram matrices, and the
first call of each is discarded. Times are the process's own, which other work on the machine
disturbs less than the clock on the wall. alpha = 1.
"""

import logging
import os
import sys
import time
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

# Threads cost more than they save at these sizes
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import tyro
from scipy.optimize import least_squares

# Ahead of this folder, whose file has the module's name
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fairgrad_solver import solve_fairgrad  # noqa: E402

# The y-Newton of Algorithm C.2. The paper's values (Table B.1) are not recoverable from its text;
# these are ours.
Y_NEWTON_TOLERANCE = 1e-8  # on the un-normalised residual norm
Y_NEWTON_MAX_ITERATIONS = 50
Y_CAP = 50.0


@dataclass
class Args:
    num_tasks: tuple[int, ...] = (10, 50)
    """K of the tables"""
    grams: int = 5
    """Gram matrices of each regime"""
    rounds: int = 20
    """times that each solver solves each of them; a slow one (over a second) once"""


# The solvers. Each takes a Gram matrix [K, K] and returns the weights [K]


def scipy_fairgrad(gram):
    """FairGrad's released solver (methods/weight_methods.py).

    It has scipy's defaults, w = 1/K, bounds (0, inf) and finite differences.
    """

    def residual(w):
        return gram @ w - 1.0 / w

    start = np.full(len(gram), 1.0 / len(gram))
    solution = least_squares(residual, start, bounds=(0.0, np.inf))
    return solution.x


def sgd_fairgrad(gram):
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
        objective = torch.linalg.norm(gram @ w - 1.0 / (w + 1e-8)) ** 2
        if objective.item() < best_objective:
            best = w.detach().clone()
            best_objective = objective.item()
        objective.backward()
        torch.nn.utils.clip_grad_norm_(w, max_norm=1.0)
        optimizer.step()
        w.data.clamp_(min=1e-8)
    return best.double().numpy()


def y_newton(gram, warm):
    """Tier 1 of Algorithm C.2, un-equilibrated.

    Newton in y = log w with an Armijo search on the norm of the residual (C.3).
    """
    y = np.full(len(gram), -np.log(len(gram)))  # uniform
    if warm:
        y = -np.log(gram.diagonal()) / 2  # Proposition C.1

    def at(y):
        """y within the cap, w, 1 / w and the residual."""
        y = np.clip(y, -Y_CAP, Y_CAP)
        w = np.exp(y)
        target = np.exp(-y)
        return y, w, target, gram @ w - target

    y, w, target, residual = at(y)
    for _ in range(Y_NEWTON_MAX_ITERATIONS):
        norm = np.linalg.norm(residual)
        if norm <= Y_NEWTON_TOLERANCE:
            return w
        jacobian = gram * w  # Eqs. (C.4) and (C.5)
        jacobian.flat[:: len(w) + 1] += target
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
                return w
        y, w, target, residual = new
    return w


def ours(gram):
    return solve_fairgrad(gram).weights


SOLVERS = {
    "scipy (FairGrad)": scipy_fairgrad,
    "SGD (FairGrad RL)": sgd_fairgrad,
    "y-Newton cold": partial(y_newton, warm=False),
    "y-Newton warm": partial(y_newton, warm=True),
    "ours": ours,
}


# The regimes of Section C.5. Each takes Gaussian gradients J [K, 1000], whose directions barely
# couple, and returns J


def spread(rows, ratio):
    return rows * np.geomspace(1, 1 / ratio, len(rows))[:, None]


def small_rows(rows, number):
    """The last rows 1e-6 as long and orthogonal to the others."""
    basis = np.linalg.qr(rows[:-number].T)[0]
    last = rows[-number:] - rows[-number:] @ basis @ basis.T
    return np.concatenate([rows[:-number], 1e-6 * last])


def close_to_opposed(rows):
    """On all sides of 0, but for one coordinate, which is barely positive."""
    num_tasks = len(rows)
    rows = rows[:, : num_tasks // 4].copy()
    rows[:, 0] = 0.01 * np.abs(rows[:, 0])
    return rows


REGIMES = {
    "well-conditioned": lambda rows: rows,
    "heterogeneous, spread 1e3": lambda rows: spread(rows, 1e3),
    "random, spread 1e6 (stress)": lambda rows: spread(rows[:, : 6 * len(rows) // 5], 1e6),
    "one small row, 1e6": lambda rows: small_rows(rows, 1),
    "quarter of the rows small, 1e6": lambda rows: small_rows(rows, max(1, len(rows) // 4)),
    "close to opposed (not in the paper)": close_to_opposed,
}


def kkt_residual(gram, w):
    with np.errstate(all="ignore"):
        residual = np.abs(w * (gram @ w) - 1.0).max()
    return residual if np.isfinite(residual) else np.inf


def measure(solver, gram, rounds):
    """Milliseconds of each call, and the residual."""
    milliseconds = []
    solver(gram)
    for _ in range(rounds):
        began = time.process_time()
        w = solver(gram)
        milliseconds.append(1e3 * (time.process_time() - began))
        if milliseconds[-1] > 1000:
            break
    return milliseconds, kkt_residual(gram, w)


def main():
    args = tyro.cli(Args, description=__doc__)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the released solvers divide by zero
    logging.disable(logging.WARNING)
    for num_tasks in args.num_tasks:
        rng = np.random.default_rng([0, num_tasks])
        times = {}  # rows of Markdown
        residuals = {}
        for name, regime in REGIMES.items():
            found = {solver: ([], []) for solver in SOLVERS}
            for _ in range(args.grams):
                rows = regime(rng.standard_normal((num_tasks, 1000)))
                for solver, (milliseconds, worst) in found.items():
                    more, residual = measure(SOLVERS[solver], rows @ rows.T, args.rounds)
                    milliseconds += more
                    worst.append(residual)
            times[name] = [f"{np.median(x):.3g}" for x, _ in found.values()]
            residuals[name] = [f"{max(x):.0e}" for _, x in found.values()]
        print(f"\nK = {num_tasks}: median milliseconds of a solve\n")
        print_table(times)
        print(f"\nK = {num_tasks}: residual max_k |w_k (G w)_k - 1| on the worst Gram\n")
        print_table(residuals)


def print_table(rows):
    print(f"| | {' | '.join(SOLVERS)} |\n|---|{'---|' * len(SOLVERS)}")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
