"""Figure D.3: LN x FairGrad: mean off-diagonal cosine of the critic's Gram, and top-1 share of the weighted norms.

    python paper/figure_d3_ln_fairgrad.py runs/ --out results/paper

Writes figure_d3.png and .md from TensorBoard, for critics with PopArt and without. Where runs have gradient dumps, the Markdown
also gives both numbers of one Gram under the mean and under FairGrad, which can change the shares but no cosine.
"""

import numpy as np
import runs as r

from fairgrad_solver import solve_fairgrad

CELLS = {  # no LN and LN-c under the mean, then under FairGrad
    "PopArt": ["popart", "ln_popart", "popart_fairgrad", "ln_popart_fairgrad"],
    "no PopArt": ["vanilla_mtppo", "ln", "fairgrad", "ln_fairgrad"],
}
COLORS = ["#000000", "#0072B2"]  # without LN and with it; dashed: FairGrad
METRICS = {"mean off-diagonal cosine": "critic_mean_cosine", "top-1 share of w‖g‖": "critic_top1_share"}


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
        tops = [f"{top1_share(G, w):.3f}" for w in (np.full(len(G), 1 / len(G)), solve_fairgrad(G).weights)]
        cosine = f"{r.mean_off_diagonal(r.cosines(G)):.3f}"
        rows.append([r.METHODS[run.script], run.path.name, r.millions(dump.step), cosine, *tops])
    return rows


def figure_d3(runs):
    cube = sum(CELLS.values(), [])
    groups = r.groups(runs, scripts=cube)
    panels = [(key, m, what) for key, m in groups.items() for what, scripts in CELLS.items() if m.keys() & set(scripts)]
    figure, axes = r.grid(len(panels), 2, width=5, height=3.2)
    rows = []
    for row, (key, methods, what) in zip(axes, panels):
        for i, script in enumerate(CELLS[what]):
            if script not in methods:
                continue
            cells = []
            for axis, (label, tag) in zip(row, METRICS.items()):
                steps, values = r.logged(methods[script], f"gradients/{tag}")
                style = dict(color=COLORS[i % 2], linestyle=["-", "--"][i // 2])
                name = f"{['no LN', 'LN-c'][i % 2]}, {['mean', 'FG-c'][i // 2]} (n = {len(values)})"
                r.plot_band(axis, steps, values, script, name, **style)
                axis.set(xlabel="million environment steps", ylabel=label, title=f"{key[0]}, {key[1].upper()}, {what}")
                axis.legend(fontsize=8)
                cells += [" → ".join(f"{x:.3f}" for x in values.mean(0)[[0, len(steps) // 2, -1]])]
            rows.append([r.where(*key), *r.row_start(methods[script]), *cells])
    lines = r.table(["runs", *r.ROW_START, *METRICS], rows)
    lines += ["First → middle → last collect: means over its minibatches and seeds. w: the critic's weights in that run.", ""]
    dumped = [run for run in runs if run.script in cube and r.dump_files(run)]
    if dumped:
        lines += ["One Gram, two combiners (gradient dumps, first minibatch of a collect):", ""]
        header = ["method", "run", "step", "mean off-diagonal cosine", "top-1 under the mean", "top-1 under FairGrad"]
        lines += r.table(header, [row for run in dumped for row in replay(run)])
    lines += ["The paper: LN-c lowers the cosine and not systematically the top-1 share; FG-c lowers the share alone."]
    return "Figure D.3: LN × FairGrad", lines, figure


ITEMS = {"figure_d3": figure_d3}

if __name__ == "__main__":
    r.main(__doc__, ITEMS)
