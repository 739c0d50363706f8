"""Figure D.3: LN x FairGrad, by the critic's mean off-diagonal cosine and its top-1 share.

    python paper/figure_d3_ln_fairgrad.py runs/ --out results/paper

The share is the largest task's of the weighted norms. Writes figure_d3.png and .md from
TensorBoard, for critics with PopArt and without. Where runs have gradient dumps, the Markdown also
gives both numbers of one Gram under the mean and under FairGrad, which can change the shares but no
cosine.
"""

import numpy as np
import runs as r

from fairgrad_solver import solve_fairgrad

PANELS = {  # {scripts: what they have in common}
    ("popart", "ln_popart", "popart_fairgrad", "ln_popart_fairgrad"): "PopArt",
    ("vanilla_mtppo", "ln", "fairgrad", "ln_fairgrad"): "no PopArt",
}
METRICS = {
    "mean off-diagonal cosine": "critic_mean_cosine",
    "top-1 share of w‖g‖": "critic_top1_share",
}
DUMP_COLUMNS = [
    "method",
    "run",
    "step",
    "mean off-diagonal cosine",
    "top-1 under the mean",
    "top-1 under FairGrad",
]
NOTE = (
    """\
First → middle → last collect: means over its minibatches and seeds. w: the critic's weights in that
run. """
    + r.CURVES
)
PAPER = """\
The paper: LN-c lowers the cosine and not systematically the top-1 share; FG-c lowers the share
and cannot touch the cosines."""


def top1_share(G, w):
    """The largest task's share of the sum of the weighted norms w_k ||g_k||."""
    mass = w * np.sqrt(G.diagonal())
    return mass.max() / mass.sum()


def replay(run):
    """Rows of Markdown: each stage's dump under the mean and under FairGrad."""
    rows = []
    for file in r.early_middle_late(r.dump_files(run)).values():
        dump = r.read_dump(file)
        G = dump.critic_gram
        cosine = f"{r.mean_off_diagonal(r.cosines(G)):.3f}"
        both = [np.full(len(G), 1 / len(G)), solve_fairgrad(G).weights]
        tops = [f"{top1_share(G, w):.3f}" for w in both]
        rows.append(
            [
                r.METHODS[run.script],
                f"{run.path.name}, {run.task_set}",
                r.millions(dump.step),
                cosine,
                *tops,
            ]
        )
    return rows


def draw(axis, seeds, tag):
    """One method's curve. Returns its first, middle and last value."""
    with_ln = seeds.script.startswith("ln")
    with_fairgrad = seeds.script.endswith("fairgrad")
    steps, values = r.logged(seeds, f"gradients/{tag}")
    name = f"{'LN-c' if with_ln else 'no LN'}, {'FG-c' if with_fairgrad else 'mean'}"
    color = "#0072B2" if with_ln else "#000000"
    dashes = "--" if with_fairgrad else "-"
    name += f" (n = {len(values)})"
    r.plot_band(axis, steps, values, seeds.script, name, color=color, linestyle=dashes)
    mean = values.mean(0)
    return " → ".join(f"{x:.3f}" for x in mean[[0, len(mean) // 2, -1]])


def figure_d3(runs):
    cube = [script for scripts in PANELS for script in scripts]
    groups = r.groups(runs, scripts=cube)
    panels = [
        (key, [methods[script] for script in scripts if script in methods], what)
        for key, methods in groups.items()
        for scripts, what in PANELS.items()
        if methods.keys() & set(scripts)
    ]
    figure, axes = r.grid(len(panels), 2, width=5, height=3.2)
    rows = []
    for row, (key, members, what) in zip(axes, panels):
        for seeds in members:
            cells = [draw(axis, seeds, tag) for axis, tag in zip(row, METRICS.values())]
            rows.append([r.where(*key), *r.row_start(seeds), *cells])
        for axis, label in zip(row, METRICS):
            axis.set(xlabel="million environment steps", ylabel=label)
            counts = r.seed_counts({seeds.script: seeds for seeds in members})
            axis.set_title(f"{key[0]}, {key[1].upper()}, {what}, {counts}")
        row[0].legend(fontsize=8)  # the right panel has the same lines
    lines = [*r.table(["runs", *r.ROW_START, *METRICS], rows), NOTE, ""]
    dumped = [run for run in runs if run.script in cube and r.dump_files(run)]
    if dumped:
        lines += ["One Gram, two combiners (gradient dumps, first minibatch of a collect):", ""]
        lines += r.table(DUMP_COLUMNS, [row for run in dumped for row in replay(run)])
    return "Figure D.3: LN × FairGrad", [*lines, PAPER], figure


ITEMS = {"figure_d3": figure_d3}

if __name__ == "__main__":
    r.main(__doc__, ITEMS)
