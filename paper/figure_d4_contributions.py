"""Figure D.4: contributions w_k (G w)_k to the critic's update, with and without FairGrad.

    python paper/figure_d4_contributions.py runs/POPART_FAIRGRAD --out results/paper

Writes figure_d4.png and .md from the gradient dumps of scripts with PopArt, which dump_gradients.py
makes. Dumped gradients are PopArt's; times sigma_k^2 they are those of the raw loss, Eq. (2).
FairGrad is solved anew on both Grams, to rounding: Corollary 1 on real minibatches.
"""

from typing import NamedTuple

import numpy as np
import runs as r

from fairgrad_solver import solve_fairgrad

PREFERRED = [
    "popart_fairgrad",
    "ln_popart_fairgrad_fairgrad",
    "ln_popart_fairgrad",
    "toppo_mt50",
    "popart",
    "ln_popart",
    "ln_popart_pcgrad_pcgrad",
    "ln_popart_cagrad_cagrad",
    "toppo_popart_ema",
    "symmetric_ln_popart",
]
PANELS = ["(a) raw, mean", "(b) PopArt, mean", "(c) raw, FairGrad", "(d) PopArt, FairGrad"]
COLUMNS = [
    "method",
    "run",
    "dumps, steps",
    "(a) largest / smallest",
    "(b) largest / smallest",
    "(c), (d): largest error of 1",
    "largest ‖d′ − d‖ / ‖d‖",
    "largest error of ‖d‖ / √K = 1",
    "fallbacks",
]

NOTE = f"""\
The figure is the table's first run, a line per task. (a), (b): median over dumps of the ratio of
absolute contributions. Crosses: negative contributions, tasks that the mean's direction works
against. d′: FairGrad's direction from raw gradients, d: from PopArt's. Raw gradients are the dumped
ones times σ² (Eq. 2). One seed each: an illustration. Of more than {r.MOST_NAMED} tasks, those with
the largest and the smallest raw contributions at the end have names, the others are grey. {r.SIGMA}

The paper: FairGrad makes all contributions 1, and d′ = d by Corollary 1, so that (c) and (d) are
the same to rounding."""


class Replay(NamedTuple):
    """FairGrad on a dump's raw gradients, direction d', and on PopArt's, direction d."""

    contributions: np.ndarray  # [4, K], as in PANELS
    error: float  # ||d' - d|| / ||d||
    norm: float  # ||d|| / sqrt(K), K the number of non-zero gradients
    fallback: bool  # whether a solve fell back to scipy


def replay(dump):
    G = dump.critic_gram
    square = dump.sigma**2
    raw = G * square * square[:, None]
    mean = np.full(len(G), 1 / len(G))
    on_raw = solve_fairgrad(raw, tol=1e-15)
    on_popart = solve_fairgrad(G, tol=1e-15)
    w = on_popart.weights
    pairs = [(raw, mean), (G, mean), (raw, on_raw.weights), (G, w)]

    # d' = sum_k w'_k sigma_k^2 g_k in the dumped g_k, so that norms of d' - d are quadratic forms
    # in the dumped Gram
    difference = on_raw.weights * square - w
    squared_norm = w @ G @ w
    return Replay(
        contributions=np.stack([x * (B @ x) for B, x in pairs]),
        error=np.sqrt(max(difference @ G @ difference, 0.0) / squared_norm),
        norm=np.sqrt(squared_norm / (G.diagonal() > 0).sum()),
        fallback=on_raw.used_scipy_fallback or on_popart.used_scipy_fallback,
    )


def row(run, dumps, replays):
    """A run's cells in COLUMNS."""
    contributions = np.array([x.contributions for x in replays])  # [dumps, 4, K]
    some = np.ma.masked_equal(contributions, 0)  # a task without gradient contributes nothing
    means = np.abs(some[:, :2])
    ratios = np.ma.median(means.max(2) / means.min(2), axis=0)  # [2]
    return [
        r.METHODS[run.script],
        f"{run.path.name}, {run.task_set}",
        f"{len(dumps)}, {r.millions(dumps[0].step)} to {r.millions(dumps[-1].step)}",
        *(f"{x:.3g}" for x in ratios),
        f"{np.abs(some[:, 2:] - 1).max():.0e}",
        f"{max(x.error for x in replays):.0e}",
        f"{max(abs(x.norm - 1) for x in replays):.0e}",
        sum(x.fallback for x in replays),
    ]


def figure_d4(runs):
    shown = r.first_with_dumps(runs, PREFERRED, "the contributions")
    dumped = [run for run in runs if run.script in PREFERRED and r.dump_files(run)]
    rows = []
    for run in sorted(dumped, key=lambda run: run is not shown):
        dumps = [r.read_dump(file) for file in r.dump_files(run)]
        replays = [replay(dump) for dump in dumps]
        rows.append(row(run, dumps, replays))
        if run is shown:
            figure = draw(run, dumps, replays)
    title = "Figure D.4: contributions, and Corollary 1 on real minibatches"
    return title, [*r.table(COLUMNS, rows), NOTE], figure


def draw(run, dumps, replays):
    figure, axes = r.grid(1, 4, width=3.4, height=3.6)
    steps = np.array([dump.step for dump in dumps]) / 1e6
    contributions = np.array([x.contributions for x in replays])  # [dumps, 4, K]
    place = [dumps[0].tasks.index(task) for task in run.tasks]
    styles = r.task_styles(run.tasks, contributions[-1, 0, place])
    for column, (axis, title) in enumerate(zip(axes[0], PANELS)):
        for k, task in zip(place, run.tasks):
            y = contributions[:, column, k]
            size = np.where(y == 0, np.nan, np.abs(y))
            axis.plot(steps, size, marker=".", markersize=4, **styles[task])
            axis.plot(steps[y < 0], -y[y < 0], "x", markersize=6, color=styles[task]["color"])
        axis.set(yscale="log", title=title, xlabel="million environment steps")
    low, high = zip(*(axis.get_ylim() for axis in axes[0, :2]))
    for axis in axes[0, :2]:
        axis.set_ylim(min(low), max(high))
    for axis in axes[0, 2:]:
        axis.set_ylim(0.1, 10)
    axes[0, 0].set_ylabel("contribution $w_k (Gw)_k$")
    beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "frameon": False}
    axes[0, 3].legend(fontsize=8, **beside)
    source = f"{r.METHODS[run.script]}, {run.task_set}, {run.reward.upper()}"
    source += f", n = 1 (seed {run.seed})"
    figure.suptitle(source, fontsize=10)
    return figure


ITEMS = {"figure_d4": figure_d4}

if __name__ == "__main__":
    r.main(__doc__, ITEMS)
