"""Learning curves of every task, mean ± std over seeds: Figures D.8, D.9 and D.10.

    python paper/figure_d8_d9_d10_per_task_curves.py runs/ --out results/paper

Writes figure_d8 (MT10, V2 rewards), figure_d9 (MT50, V2) and figure_d10 (MT50, V1), each .png and
.md, and figure_d8_other_sets for runs on other tasks or rewards.
"""

import math

import runs as r

SETS = [("MT10", "v2"), ("MT50", "v2"), ("MT50", "v1")]
COLUMNS = 5
NOTE = f"""\
{r.CURVES} A task at which no method has had a success is not drawn, but named above. The last
points are in the per-task tables."""


def is_flat(methods, k):
    """Whether task k is at zero throughout, in all runs."""
    return not any(seeds.success[:, :, k].any() for seeds in methods.values())


def draw(axes, key, methods, ks, several):
    """Task k on each axis; several: whether the figure has other groups, too."""
    tasks = next(iter(methods.values())).runs[0].tasks
    for axis, k in zip(axes, ks):
        for script, seeds in methods.items():
            values = 100 * seeds.success[:, :, k]
            r.plot_band(axis, seeds.steps, values, script, r.METHODS[script], limits=r.PERCENT)
        source = f"\n{key[1].upper()}, to {r.millions(key[2])} steps" if several else ""
        axis.set_title(f"{tasks[k]}{source}", fontsize=9)
        axis.set_ylim(-5, 105)
        axis.tick_params(labelsize=8)
    for axis in axes[-COLUMNS:]:
        axis.set_xlabel("million steps", fontsize=8)


def curves(name, groups):
    drawn = {}  # {key: numbers of the tasks}
    lines = []
    above = []
    for key, methods in groups.items():
        tasks = next(iter(methods.values())).runs[0].tasks
        drawn[key] = [k for k in range(len(tasks)) if not is_flat(methods, k)]
        flat = [task for k, task in enumerate(tasks) if k not in drawn[key]]
        rows = [r.row_start(seeds) for seeds in methods.values()]
        lines += r.heading(key, methods) + r.table(r.ROW_START, rows)
        above.append(f"{r.where(*key)}, {r.seed_counts(methods)}")
        if flat:
            above[-1] += f"; {len(flat)} of {len(tasks)} tasks at 0 throughout and not drawn"
            lines += [f"At 0 throughout and not drawn: {', '.join(flat)}.", ""]
    if not any(drawn.values()):
        raise r.Missing(f"{name}: no task had a success yet; go on: python toppo_mt50.py")
    rows_of = {key: math.ceil(len(ks) / COLUMNS) for key, ks in drawn.items()}
    figure, axes = r.grid(sum(rows_of.values()), COLUMNS, width=2.7, height=2.0)
    remaining: list[r.Axes] = [*axes.flat]
    for key, ks in drawn.items():  # each group begins a row
        count = rows_of[key] * COLUMNS
        own, remaining = remaining[:count], remaining[count:]
        draw(own[: len(ks)], key, groups[key], ks, several=len(groups) > 1)
        for axis in own[len(ks) :]:
            axis.set_visible(False)
    figure.suptitle("\n".join(above), fontsize=10)
    figure.supylabel("success (%)", fontsize=10)
    r.legend_below(figure)
    return f"{name}: learning curves per task", [*lines, NOTE], figure


def other_sets(runs):
    others = [run for run in runs if (run.task_set, run.reward) not in SETS]
    if not others:
        command = "python toppo_mt50.py --benchmark MT25"
        raise r.Missing(f"no run on other tasks or rewards than D.8 to D.10; make one: {command}")
    return curves("Like Figures D.8 to D.10, other tasks or rewards", r.groups(r.with_clip(others)))


ITEMS = {
    "figure_d8": lambda runs: curves("Figure D.8", r.groups(r.with_clip(runs), "v2", "MT10")),
    "figure_d9": lambda runs: curves("Figure D.9", r.groups(r.with_clip(runs), "v2", "MT50")),
    "figure_d10": lambda runs: curves("Figure D.10", r.groups(r.with_clip(runs), "v1", "MT50")),
    "figure_d8_other_sets": other_sets,
}

if __name__ == "__main__":
    r.main(__doc__, ITEMS)
