"""Tables D.5 (MT10, V2), D.6 (MT50, V2) and D.7 (MT50, V1): final success per task, worst first.

    python paper/table_d5_d6_d7_per_task.py runs/ --out results/paper

Writes table_d5.md, table_d6.md, table_d7.md, and table_d5_other_sets.md for runs on other tasks or
rewards. Worst by TOPPO's column or, without it, by the last one.
"""

import runs as r

SETS = [("MT10", "v2"), ("MT50", "v2"), ("MT50", "v1")]
NOTE = f"""\
Success in percent at the last checkpoint, worst first. {r.STATISTICS}
The paper's values are in its tables, but not among those that `paper/published.py` has."""


def table(name, groups):
    lines = []
    for key, methods in groups.items():
        tasks = next(iter(methods.values())).runs[0].tasks
        ends = {script: seeds.success[:, -1] for script, seeds in methods.items()}  # [n, K]
        by = ends.get("toppo_mt50", [*ends.values()][-1]).mean(0)
        order = sorted(range(len(tasks)), key=lambda k: (by[k], tasks[k]))
        header = ["task", *(f"{r.METHODS[script]}, n = {len(end)}" for script, end in ends.items())]
        rows = [[tasks[k], *(r.percent(end[:, k]) for end in ends.values())] for k in order]
        lines += r.heading(key, methods) + r.table(header, rows)
    return f"{name}: final success per task", [*lines, NOTE], None


def other_sets(runs):
    others = [run for run in runs if (run.task_set, run.reward) not in SETS]
    if not others:
        command = "python toppo_mt50.py --benchmark MT25"
        raise r.Missing(f"no run on other tasks or rewards than D.5 to D.7; make one: {command}")
    return table("Like Tables D.5 to D.7, other tasks or rewards", r.groups(others))


ITEMS = {
    "table_d5": lambda runs: table("Table D.5", r.groups(runs, "v2", "MT10")),
    "table_d6": lambda runs: table("Table D.6", r.groups(runs, "v2", "MT50")),
    "table_d7": lambda runs: table("Table D.7", r.groups(runs, "v1", "MT50")),
    "table_d5_other_sets": other_sets,
}

if __name__ == "__main__":
    r.main(__doc__, ITEMS)
