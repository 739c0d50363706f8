"""Table 3 (V1 rewards) and Table D.3 (V1 beside V2): interquartile mean of the final success.

    python paper/table_3_d3_iqm.py runs/ --out results/paper

Writes table_3.md and table_d3.md. The IQM, over seeds and tasks, and its 95% stratified bootstrap
interval, over seeds, are rliable's.
"""

import runs as r
from published import ABSENT, BUDGET, IQM, MATCHED_AT, published

NOTE = (
    "IQM in percent of all seeds' success rates per task at the last checkpoint (rliable). "
    "95 % interval: rliable's stratified bootstrap over seeds, 2,000 resamples, from three seeds "
    "on; from few seeds it is too narrow. ±: sample std of each seed's own IQM over tasks, from "
    "three seeds on, too."
)
D3_COLUMNS = [
    "method",
    "V1: n",
    "V1 IQM",
    "95 % interval",
    "paper's V1 IQM",
    "V2: n",
    "V2 IQM",
    "95 % interval",
    "V2 − V1",
]


def cells(seeds):
    """The IQM with its std, and the interval."""
    value, interval, std = r.iqm(seeds.success)
    score = f"{100 * value:.1f}" + (f" ± {100 * std:.1f}" if std is not None else "")
    if interval is None:
        return [score, "–"]
    low, high = 100 * interval
    return [score, f"{low:.1f} to {high:.1f}"]


def table_3(runs):
    lines = []
    for key, methods in r.groups(runs, "v1").items():
        rows = []
        for script, seeds in methods.items():
            paper = published(IQM, script, *key[:2])
            rows.append([*r.row_start(seeds), *cells(seeds), paper])
        header = [*r.ROW_START, "IQM", "95 % interval", "paper's IQM"]
        lines += r.heading(key, methods) + r.table(header, rows)
    lines += [f"{NOTE} {ABSENT}", ""]
    lines += ["Baselines of Meta-World+, without a script here; published numbers:", ""]
    matched = [
        [name, f"{parameters}K", f"{share} % of {BUDGET['MT50']} M"]
        for name, parameters, share in MATCHED_AT
    ]
    lines += r.table(["method", "parameters", "paper's TOPPO step to match it"], matched)
    return "Table 3: IQM of the final success, V1 rewards", lines, None


def d3_row(script, v1, v2, task_set):
    """v1, v2: {script: Seeds}."""
    ours = [
        [len(methods[script].runs), *cells(methods[script])] if script in methods else ["–"] * 3
        for methods in (v1, v2)
    ]
    gap = "–"
    if script in v1 and script in v2:
        gap = f"{100 * (r.iqm(v2[script].success)[0] - r.iqm(v1[script].success)[0]):+.1f}"
    return [r.METHODS[script], *ours[0], published(IQM, script, task_set, "v1"), *ours[1], gap]


def table_d3(runs):
    groups = r.groups(runs)
    lines = []
    for task_set, reward, step in groups:
        if reward == "v2" or (task_set, "v2", step) not in groups:
            continue
        v1 = groups[task_set, "v1", step]
        v2 = groups[task_set, "v2", step]
        rows = [d3_row(s, v1, v2, task_set) for s in r.METHODS if s in v1 or s in v2]
        lines += [f"## {task_set}, {r.millions(step)} steps", "", *r.table(D3_COLUMNS, rows)]
    if not lines:
        lack = "no runs with V1 and V2 rewards on the same tasks that end at the same step"
        command = "python toppo_mt50.py --reward-version v1, and the same with v2"
        raise r.Missing(f"{lack}; make some: {command}")
    lines.append(f"{NOTE} {ABSENT}")
    return "Table D.3: IQM of the final success, V1 and V2 rewards", lines, None


ITEMS = {"table_3": table_3, "table_d3": table_d3}

if __name__ == "__main__":
    r.main(__doc__, ITEMS)
