"""The README's figure: who moves the critic, and what is learned, task by task, for vanilla MT-PPO and TOPPO.

    python paper/overview.py results/mt10 --out results/paper

Left: each task's part w_k (G w)_k of the squared norm wᵀ G w of the combined critic gradient, mean over the gradient dumps of one
run each. Right: success at the last step at which all runs of both were evaluated, mean over seeds. Writes overview.md and .png.
"""

import numpy as np
import runs as r

SCRIPTS = ["vanilla_mtppo", "toppo_mt50"]


def shares(file):
    """Parts w_k (G w)_k of wᵀ G w, which sum to 1. Returns {task: part}."""
    with np.load(file, allow_pickle=False) as dump:
        G, w = r.read_dump(file).critic_gram, dump["critic_weights"]
        return dict(zip(dump["tasks"].tolist(), w * (G @ w) / (w @ G @ w)))


def overview(runs):
    ((key, methods),) = [*r.groups(runs, "v2", scripts=SCRIPTS).items()][-1:]
    absent = [script for script in SCRIPTS if script not in methods]
    if absent:
        command = f"python {r.SCRIPT_PATHS[absent[0]]} --benchmark MT10 --dump-gradients-every 3"
        raise r.Missing(f"no run of {absent[0]}.py; make one: {command}")
    tasks = methods["vanilla_mtppo"].runs[0].tasks
    success = {script: seeds.success[:, -1].mean(0) for script, seeds in methods.items()}  # [K]
    order = np.argsort(success["vanilla_mtppo"] + success["toppo_mt50"], kind="stable")[::-1]
    figure, (left, right) = r.plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained", sharey=True)
    parts = {}
    for i, script in enumerate(SCRIPTS):
        run = r.first_with_dumps(methods[script].runs, [script], "each task's part of the critic's gradient")
        files = [file for file in r.dump_files(run) if r.read_dump(file).step <= key[2]]
        each = [shares(file) for file in files]
        parts[script] = np.array([np.mean([x[task] for x in each]) for task in tasks])
        y, style = np.arange(len(tasks)) - 0.2 + 0.4 * i, {"height": 0.4, "color": r.COLORS[script], "label": r.METHODS[script]}
        left.barh(-y, 100 * parts[script][order], **style)
        right.barh(-y, 100 * success[script][order], **style)
    left.set(title="part in the combined critic gradient, %", yticks=-np.arange(len(tasks)))
    left.set_yticklabels([tasks[k].removesuffix("-v3") for k in order])
    right.set(title=f"success at {r.millions(key[2])} steps, %", xlim=(0, 100))
    right.legend(loc="lower right")
    for axis in left, right:
        axis.grid(alpha=0.3, axis="x")
    rows = [[tasks[k], *(f"{100 * x[s][k]:.1f}" for x in (parts, success) for s in SCRIPTS)] for k in order]
    header = ["task", *(f"{r.METHODS[s]}: {what}" for what in ("part of ‖d‖², %", "success, %") for s in SCRIPTS)]
    return "Who moves the critic, and what is learned", r.heading(key, methods) + r.table(header, rows), figure


ITEMS = {"overview": overview}

if __name__ == "__main__":
    r.main(__doc__, ITEMS)
