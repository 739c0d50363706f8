"""Figure D.4: contributions w_k (G w)_k to the critic's update, with and without FairGrad; Corollary 1 on real minibatches.

    python paper/figure_d4_contributions.py runs/POPART_FAIRGRAD --out results/paper

Writes figure_d4.png and .md from the gradient dumps of scripts with PopArt (--dump-gradients-every N). Dumped gradients are
PopArt's; times sigma_k^2 they are those of the raw loss, Eq. (2). FairGrad is solved anew on both Grams, to rounding.
"""

import numpy as np
import runs as r

from fairgrad_solver import solve_fairgrad

PREFERRED = ["popart_fairgrad", "ln_popart_fairgrad_fairgrad", "ln_popart_fairgrad", "toppo_mt50", "popart", "ln_popart",
             "ln_popart_pcgrad_pcgrad", "ln_popart_cagrad_cagrad", "toppo_popart_ema", "symmetric_ln_popart"]  # fmt: skip
COLUMNS = "(a) raw, mean", "(b) PopArt, mean", "(c) raw, FairGrad", "(d) PopArt, FairGrad"

NOTE = """The figure is the table's first run, a line per task. (a), (b): median over dumps of the ratio of absolute
contributions. Crosses: negative contributions, tasks that the mean's direction works against. d′: FairGrad's direction from
raw gradients, d: from PopArt's. Raw gradients are the dumped ones times σ² (Eq. 2). One seed each: an illustration.

The paper: FairGrad makes all contributions 1, and d′ = d by Corollary 1, so that (c) and (d) are the same to rounding."""


def replay(dump):
    """Solves FairGrad on the raw Gram and on PopArt's. Returns the contributions [4, K] of COLUMNS; of the combined directions
    d' (raw) and d (PopArt) ||d' - d|| / ||d|| and ||d|| / sqrt(K), K the number of non-zero gradients; if a solve fell back."""
    G, square, mean = dump.critic_gram, dump.sigma**2, np.full(len(dump.sigma), 1 / len(dump.sigma))
    raw = G * square * square[:, None]
    on_raw, on_popart = solve_fairgrad(raw, tol=1e-15), solve_fairgrad(G, tol=1e-15)
    # d' = sum_k w'_k sigma_k^2 g_k in the dumped g_k, so norms of d' - d are quadratic forms in the dumped Gram.
    difference = on_raw.weights * square - on_popart.weights
    squared_norm = on_popart.weights @ G @ on_popart.weights
    error = np.sqrt(max(difference @ G @ difference, 0.0) / squared_norm)
    pairs = (raw, mean), (G, mean), (raw, on_raw.weights), (G, on_popart.weights)
    fallback = on_raw.used_scipy_fallback or on_popart.used_scipy_fallback
    return np.stack([w * (B @ w) for B, w in pairs]), error, np.sqrt(squared_norm / (G.diagonal() > 0).sum()), fallback


def figure_d4(runs):
    shown, rows = r.first_with_dumps(runs, PREFERRED, "the contributions"), []
    dumped = [run for run in runs if run.script in PREFERRED and r.dump_files(run)]
    for run in sorted(dumped, key=lambda run: run is not shown):
        dumps = [r.read_dump(file) for file in r.dump_files(run)]
        shares, errors, norms, fallbacks = map(np.array, zip(*map(replay, dumps)))  # shares [dumps, 4, K]
        some = np.ma.masked_equal(shares, 0)  # a task without gradient contributes nothing
        ratios = np.abs(some[:, :2]).max(2) / np.abs(some[:, :2]).min(2)  # [dumps, 2]
        spreads, off = [f"{x:.3g}" for x in np.ma.median(ratios, axis=0)], np.abs(some[:, 2:] - 1).max()
        steps = f"{len(dumps)}, {r.millions(dumps[0].step)} to {r.millions(dumps[-1].step)}"
        worst = [f"{off:.0e}", f"{errors.max():.0e}", f"{np.abs(norms - 1).max():.0e}", int(fallbacks.sum())]
        rows.append([r.METHODS[run.script], run.path.name, steps, *spreads, *worst])
        if run is shown:
            figure = draw(run, np.array([d.step for d in dumps]) / 1e6, shares)
    header = ["method", "run", "dumps, steps", "(a) largest / smallest", "(b) largest / smallest", "(c), (d): largest error of 1"]
    lines = r.table([*header, "largest ‖d′ − d‖ / ‖d‖", "largest error of ‖d‖ / √K = 1", "fallbacks"], rows)
    return "Figure D.4: contributions, and Corollary 1 on real minibatches", [*lines, NOTE], figure


def draw(run, steps, shares):
    """shares [dumps, 4, K]."""
    figure, axes = r.grid(1, 4, width=3.4, height=3.6)
    for column, (axis, title) in enumerate(zip(axes[0], COLUMNS)):
        for k in range(shares.shape[2]):
            y = shares[:, column, k]
            color = r.plt.get_cmap("viridis")(k / max(shares.shape[2] - 1, 1))
            axis.plot(steps, np.where(y == 0, np.nan, np.abs(y)), marker=".", markersize=4, linewidth=0.9, alpha=0.8, color=color)
            axis.plot(steps[y < 0], -y[y < 0], "x", markersize=6, color=color)
        axis.set(yscale="log", title=title, xlabel="million environment steps")
    low, high = zip(*(axis.get_ylim() for axis in axes[0, :2]))
    for axis in axes[0, :2]:
        axis.set_ylim(min(low), max(high))
    for axis in axes[0, 2:]:
        axis.set_ylim(0.1, 10)
    axes[0, 0].set_ylabel("contribution $w_k (Gw)_k$")
    figure.suptitle(f"{r.METHODS[run.script]}, {run.task_set}, {run.reward.upper()}, seed {run.seed}", fontsize=10)
    return figure


ITEMS = {"figure_d4": figure_d4}

if __name__ == "__main__":
    r.main(__doc__, ITEMS)
