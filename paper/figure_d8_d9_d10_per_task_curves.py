"""Learning curves of every task, mean ± std over seeds: Figures D.8, D.9 and D.10.

    python paper/figure_d8_d9_d10_per_task_curves.py runs/ --out results/paper

Writes figure_d8 (MT10, V2 rewards), figure_d9 (MT50, V2) and figure_d10 (MT50, V1), each .png and
.md, and figure_d8_other_sets for runs on other tasks or rewards.
"""

import runs as r

SETS = [("MT10", "v2"), ("MT50", "v2"), ("MT50", "v1")]
NOTE = """\
Bands are one sample std over seeds; a single seed has none. The last points are in the per-task
tables."""


def curves(name, groups):
    panels = []
    lines = []
    for key, methods in groups.items():
        tasks = next(iter(methods.values())).runs[0].tasks
        panels += [(key, k, task) for k, task in enumerate(tasks)]
        rows = [r.row_start(seeds) for seeds in methods.values()]
        lines += r.heading(key, methods) + r.table(r.ROW_START, rows)
    figure, axes = r.tiles(len(panels), 5, width=2.7, height=2.0)
    for axis, (key, k, task) in zip(axes, panels):
        for script, seeds in groups[key].items():
            r.plot_band(axis, seeds.steps, 100 * seeds.success[:, :, k], script, r.METHODS[script])
        source = f"\n{key[1].upper()}, to {r.millions(key[2])} steps" if len(groups) > 1 else ""
        axis.set_title(f"{task}{source}", fontsize=9)
        axis.set_ylim(-5, 105)
        axis.tick_params(labelsize=8)
    for axis in axes[-5:]:
        axis.set_xlabel("million steps", fontsize=8)
    figure.supylabel("success (%)", fontsize=10)
    r.legend_below(figure)
    return f"{name}: learning curves per task", [*lines, NOTE], figure


def other_sets(runs):
    others = [run for run in runs if (run.task_set, run.reward) not in SETS]
    if not others:
        command = "python toppo_mt50.py --benchmark MT25"
        raise r.Missing(f"no run on other tasks or rewards than D.8 to D.10; make one: {command}")
    return curves("Like Figures D.8 to D.10, other tasks or rewards", r.groups(others))


ITEMS = {
    "figure_d8": lambda runs: curves("Figure D.8", r.groups(runs, "v2", "MT10")),
    "figure_d9": lambda runs: curves("Figure D.9", r.groups(runs, "v2", "MT50")),
    "figure_d10": lambda runs: curves("Figure D.10", r.groups(runs, "v1", "MT50")),
    "figure_d8_other_sets": other_sets,
}

if __name__ == "__main__":
    r.main(__doc__, ITEMS)
