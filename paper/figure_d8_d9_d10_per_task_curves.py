"""Figures D.8 (MT10, V2), D.9 (MT50, V2) and D.10 (MT50, V1): learning curves of every task, mean ± std over seeds.

    python paper/figure_d8_d9_d10_per_task_curves.py runs/ --out results/paper

Writes figure_d8, figure_d9, figure_d10, each .png and .md, and figure_d8_other_sets for runs on other tasks or rewards.
"""

import runs as r

SETS = [("MT10", "v2"), ("MT50", "v2"), ("MT50", "v1")]


def curves(name, groups):
    panels = [(key, k) for key, methods in groups.items() for k in range(next(iter(methods.values())).success.shape[2])]
    figure, axes = r.tiles(len(panels), 5, width=2.7, height=2.0)
    for axis, (key, k) in zip(axes, panels):
        for script, seeds in groups[key].items():
            r.plot_band(axis, seeds.steps, 100 * seeds.success[:, :, k], script, r.METHODS[script])
        task = next(iter(groups[key].values())).runs[0].tasks[k]
        axis.set_title(task if len(groups) == 1 else f"{task}\n{key[1].upper()}, to {r.millions(key[2])} steps", fontsize=9)
        axis.set_ylim(-5, 105)
        axis.tick_params(labelsize=8)
    for axis in axes[-5:]:
        axis.set_xlabel("million steps", fontsize=8)
    figure.supylabel("success (%)", fontsize=10)
    r.legend_below(figure)
    lines = []
    for key, methods in groups.items():
        lines += r.heading(key, methods) + r.table(r.ROW_START, [r.row_start(seeds) for seeds in methods.values()])
    bands = "Bands are one sample std over seeds; a single seed has none."
    return f"{name}: learning curves per task", [*lines, f"{bands} The last points are in the per-task tables."], figure


def other_sets(runs):
    others = [run for run in runs if (run.task_set, run.reward) not in SETS]
    if not others:
        raise r.Missing("no run on other tasks or rewards than D.8 to D.10; make one: python toppo_mt50.py --benchmark MT25")
    return curves("Like Figures D.8 to D.10, other tasks or rewards", r.groups(others))


ITEMS = {
    "figure_d8": lambda runs: curves("Figure D.8", r.groups(runs, "v2", "MT10")),
    "figure_d9": lambda runs: curves("Figure D.9", r.groups(runs, "v2", "MT50")),
    "figure_d10": lambda runs: curves("Figure D.10", r.groups(runs, "v1", "MT50")),
    "figure_d8_other_sets": other_sets,
}

if __name__ == "__main__":
    r.main(__doc__, ITEMS)
