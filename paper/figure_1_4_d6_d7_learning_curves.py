"""Learning curves, mean ± std over seeds: Figures 1 (mean and worst-k), 4 (the ladder's ends), D.6 (mean, V2) and D.7 (mean, V1).

    python paper/figure_1_4_d6_d7_learning_curves.py runs/ --out results/paper

Writes figure_1, figure_4, figure_d6 and figure_d7, each .png and .md. Bands are one sample std; a single seed has none.
"""

import numpy as np
import runs as r
from published import BUDGET, FINAL


def tails(num_tasks):
    """All tasks, then the worst-k from wide to narrow."""
    return [num_tasks, *(k for k in reversed(r.WORST) if k < num_tasks)]


def numbers(groups, ks):
    """Markdown: mean and worst-k at the last checkpoint, for k in ks(K)."""
    lines = []
    for key, methods in groups.items():
        num_tasks = next(iter(methods.values())).success.shape[2]
        names = ["mean" if k == num_tasks else f"worst {k}" for k in ks(num_tasks)]
        cells = {s: [r.percent(r.worst(seeds.success[:, -1], k)) for k in ks(num_tasks)] for s, seeds in methods.items()}
        rows = [[*r.row_start(methods[s]), *cells[s]] for s in methods]
        lines += r.heading(key, methods) + r.table([*r.ROW_START, *names], rows)
    return [*lines, f"Success in percent at the last checkpoint. Worst k: each seed's own k lowest tasks. {r.STATISTICS}"]


def figure_1(runs):
    groups = r.groups(runs, "v2")
    widest = max(len(tails(seeds.success.shape[2])) for methods in groups.values() for seeds in methods.values())
    figure, axes = r.grid(len(groups), widest, width=2.7, height=2.6)
    for row, (key, methods) in zip(axes, groups.items()):
        for script, seeds in methods.items():
            num_tasks = seeds.success.shape[2]
            for axis, k in zip(row, tails(num_tasks)):
                r.plot_band(axis, seeds.steps, 100 * r.worst(seeds.success, k), script, r.METHODS[script])
                title = f"{key[0]}: all {k} tasks, {r.seed_counts(methods)}" if k == num_tasks else f"worst {k}"
                axis.set_title(title, fontsize=10)
        for axis in row:
            axis.set(ylim=(-3, 103), xlabel="million environment steps")
            axis.set_visible(bool(axis.lines))
        row[0].set_ylabel("success (%)")
    r.legend_below(figure)
    return "Figure 1: learning curves of the mean and the tail, V2 rewards", numbers(groups, tails), figure


def figure_4(runs):
    groups = r.groups(runs, "v2", scripts=list(r.LADDER))
    figure, axes = r.tiles(len(groups), 2, width=6.5, height=4)
    for axis, (key, methods) in zip(axes, groups.items()):
        k = r.tail_size(next(iter(methods.values())).success.shape[2])
        for name, size, marker, color in ("mean", None, "o", "#0072B2"), (f"worst {k}", k, "s", "#D55E00"):
            scores = [100 * r.worst(seeds.success[:, -1], size) for seeds in methods.values()]
            axis.plot([x.mean() for x in scores], marker=marker, color=color, label=name)
            for i, x in enumerate(scores):
                axis.plot(np.full(len(x), i), x, ".", color=color, alpha=0.35, markersize=5)
                if len(x) > 1:
                    axis.errorbar(i, x.mean(), x.std(ddof=1), color=color, capsize=3)
        ticks = [f"{r.METHODS[s].replace(' ', chr(10))}\nn = {len(seeds.runs)}" for s, seeds in methods.items()]
        axis.set_xticks(range(len(methods)), ticks, fontsize=8)
        axis.set(xlim=(-0.4, len(methods) - 0.6), ylim=(-3, 103), ylabel="success (%)", title=r.where(*key))
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
        axis.set(ylim=(-3, 103), xlabel="million environment steps", ylabel="success (%)", title=r.where(*key))
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
