"""Learning curves, mean ± std over seeds: Figures 1, 4, D.6 and D.7.

    python paper/figure_1_4_d6_d7_learning_curves.py runs/ --out results/paper

Writes figure_1 (mean and worst-k), figure_4 (the ends of the ladder's curves), figure_d6 (mean, V2
rewards) and figure_d7 (mean, V1), each .png and .md. Bands are one sample std; a single seed has
none.
"""

import numpy as np
import runs as r
from published import BUDGET, FINAL

NOTE = "Success in percent at the last checkpoint. Worst k: each seed's own k lowest tasks."
AXIS = {"ylim": (-3, 103), "ylabel": "success (%)"}


def tails(num_tasks):
    """All tasks, then the worst-k from wide to narrow."""
    return [num_tasks, *(k for k in reversed(r.WORST) if k < num_tasks)]


def size(methods):
    """K of the runs in {script: Seeds}."""
    return next(iter(methods.values())).success.shape[2]


def numbers(groups, ks):
    """Markdown: mean and worst-k at the last checkpoint, for k in ks(K)."""
    lines = []
    for key, methods in groups.items():
        num_tasks = size(methods)
        names = ["mean" if k == num_tasks else f"worst {k}" for k in ks(num_tasks)]
        rows = []
        for seeds in methods.values():
            scores = [r.worst(seeds.success[:, -1], k) for k in ks(num_tasks)]
            rows.append([*r.row_start(seeds), *map(r.percent, scores)])
        lines += r.heading(key, methods) + r.table([*r.ROW_START, *names], rows)
    return [*lines, f"{NOTE} {r.STATISTICS}"]


def figure_1(runs):
    groups = r.groups(runs, "v2")
    widest = max(len(tails(size(methods))) for methods in groups.values())
    figure, axes = r.grid(len(groups), widest, width=2.7, height=2.6)
    for row, (key, methods) in zip(axes, groups.items()):
        num_tasks = size(methods)
        for axis, k in zip(row, tails(num_tasks)):
            for script, seeds in methods.items():
                values = 100 * r.worst(seeds.success, k)
                r.plot_band(axis, seeds.steps, values, script, r.METHODS[script])
            every = f"{key[0]}: all {k} tasks, {r.seed_counts(methods)}"
            axis.set_title(every if k == num_tasks else f"worst {k}", fontsize=10)
        for axis in row:
            axis.set(ylim=AXIS["ylim"], xlabel="million environment steps")
            axis.set_visible(bool(axis.lines))
        row[0].set_ylabel(AXIS["ylabel"])
    r.legend_below(figure)
    title = "Figure 1: learning curves of the mean and the tail, V2 rewards"
    return title, numbers(groups, tails), figure


def ladder_ends(axis, methods, k, name, **style):
    """The worst-k of every method at its last checkpoint, from left to right; of all with None."""
    scores = [100 * r.worst(seeds.success[:, -1], k) for seeds in methods.values()]
    axis.plot([x.mean() for x in scores], label=name, **style)
    color = style["color"]
    for i, x in enumerate(scores):
        axis.plot(np.full(len(x), i), x, ".", color=color, alpha=0.35, markersize=5)
        if len(x) > 1:
            axis.errorbar(i, x.mean(), x.std(ddof=1), color=color, capsize=3)


def figure_4(runs):
    groups = r.groups(runs, "v2", scripts=list(r.LADDER))
    figure, axes = r.tiles(len(groups), 2, width=6.5, height=4)
    for axis, (key, methods) in zip(axes, groups.items()):
        k = r.tail_size(size(methods))
        ladder_ends(axis, methods, None, "mean", marker="o", color="#0072B2")
        ladder_ends(axis, methods, k, f"worst {k}", marker="s", color="#D55E00")
        names = [r.METHODS[script].replace(" ", "\n") for script in methods]
        counts = [len(seeds.runs) for seeds in methods.values()]
        ticks = [f"{name}\nn = {n}" for name, n in zip(names, counts)]
        axis.set_xticks(range(len(methods)), ticks, fontsize=8)
        axis.set(xlim=(-0.4, len(methods) - 0.6), title=r.where(*key), **AXIS)
        axis.legend()
    lines = numbers(groups, lambda num_tasks: [num_tasks, r.tail_size(num_tasks)])
    return "Figure 4: the ladder, mean and tail", [*lines, "Small dots: single seeds."], figure


def mean_curves(name, runs, reward):
    groups = r.groups(runs, reward)
    figure, axes = r.tiles(len(groups), 2, width=6, height=4)
    for axis, (key, methods) in zip(axes, groups.items()):
        for script, seeds in methods.items():
            label = f"{r.METHODS[script]} (n = {len(seeds.runs)})"
            r.plot_band(axis, seeds.steps, 100 * seeds.success.mean(2), script, label)
        paper = FINAL.get(("toppo_mt50", *key[:2]))
        if paper:
            label = f"paper's TOPPO at {BUDGET[key[0]]} M: {paper}"
            axis.axhline(paper, color=r.COLORS["toppo_mt50"], linestyle=":", label=label)
        axis.set(xlabel="million environment steps", title=r.where(*key), **AXIS)
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.14), frameon=False, ncols=2)
    title = f"{name}: learning curves of the mean, {reward.upper()} rewards"
    return title, numbers(groups, lambda num_tasks: [num_tasks]), figure


ITEMS = {
    "figure_1": figure_1,
    "figure_4": figure_4,
    "figure_d6": lambda runs: mean_curves("Figure D.6", runs, "v2"),
    "figure_d7": lambda runs: mean_curves("Figure D.7", runs, "v1"),
}

if __name__ == "__main__":
    r.main(__doc__, ITEMS)
