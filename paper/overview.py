"""The README's figure: who moves the critic, and what is learned, for vanilla MT-PPO and TOPPO.

    python paper/overview.py results/mt10 --out results/paper

Left: each task's part w_k (G w)_k of the squared norm wᵀ G w of the combined critic gradient, mean
over the gradient dumps of one run each. Right: success at the last step at which all runs of both
were evaluated, mean over seeds. Writes overview.md and .png.
"""

import numpy as np
import runs as r

SCRIPTS = ["vanilla_mtppo", "toppo_mt50"]


def shares(file):
    """Parts w_k (G w)_k of wᵀ G w, which sum to 1. Returns {task: part}."""
    G = r.read_dump(file).critic_gram
    with np.load(file, allow_pickle=False) as dump:
        w = dump["critic_weights"]
        tasks = dump["tasks"].tolist()
    return dict(zip(tasks, w * (G @ w) / (w @ G @ w)))


def mean_shares(seeds, step):
    """The mean of shares over the dumps up to step, of the first seed that has any. Returns [K]."""
    what = "each task's part of the critic's gradient"
    run = r.first_with_dumps(seeds.runs, [seeds.script], what)
    files = [file for file in r.dump_files(run) if r.read_dump(file).step <= step]
    each = [shares(file) for file in files]
    return np.array([np.mean([x[task] for x in each]) for task in run.tasks])


def draw(tasks, parts, success, step, count):
    """parts, success: {script: [K]}, in the order that the tasks are drawn in."""
    figure, (left, right) = r.plt.subplots(
        1, 2, figsize=(10, 3.4), layout="constrained", sharey=True
    )
    y = -np.arange(len(tasks))
    for script, shift in zip(SCRIPTS, (0.2, -0.2)):
        style = {"height": 0.4, "color": r.COLORS[script], "label": r.METHODS[script]}
        left.barh(y + shift, 100 * parts[script], **style)
        right.barh(y + shift, 100 * success[script], **style)
    left.set(title="part in the critic's gradient, %, n = 1", yticks=y)
    left.set_yticklabels([task.removesuffix("-v3") for task in tasks])
    right.set(title=f"success at {r.millions(step)} steps, %, {count}", xlim=(0, 100))
    right.legend(loc="lower right")
    for axis in (left, right):
        axis.grid(alpha=0.3, axis="x")
    return figure


def overview(runs):
    key, methods = list(r.groups(runs, "v2", scripts=SCRIPTS).items())[-1]
    for script in SCRIPTS:
        if script not in methods:
            raise r.Missing(f"no run of {script}.py; make one: {r.how_to_dump(script)}")
    success = {script: methods[script].success[:, -1].mean(0) for script in SCRIPTS}  # [K]
    parts = {script: mean_shares(methods[script], key[2]) for script in SCRIPTS}  # [K]
    order = np.argsort(sum(success.values()), kind="stable")[::-1]
    tasks = [methods[SCRIPTS[0]].runs[0].tasks[k] for k in order]
    parts = {script: x[order] for script, x in parts.items()}
    success = {script: x[order] for script, x in success.items()}

    header = ["task"]
    columns = []
    for what, values in (("part of ‖d‖², %", parts), ("success, %", success)):
        for script in SCRIPTS:
            header.append(f"{r.METHODS[script]}: {what}")
            columns.append([f"{100 * x:.1f}" for x in values[script]])
    lines = r.heading(key, methods, SCRIPTS) + r.table(header, zip(tasks, *columns))
    title = "Who moves the critic, and what is learned"
    return title, lines, draw(tasks, parts, success, key[2], r.seed_counts(methods))


ITEMS = {"overview": overview}

if __name__ == "__main__":
    r.main(__doc__, ITEMS)
