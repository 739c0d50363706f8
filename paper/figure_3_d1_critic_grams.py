"""Critic Grams from gradient dumps, raw and behind PopArt, without LN and with it.

    python paper/figure_3_d1_critic_grams.py runs/POPART runs/LN_POPART --out results/paper

Writes figure_3 (early, after the first collects) and figure_d1 (early, middle and late), each .png
and .md. Needs gradient
dumps, which dump_gradients.py makes, best of popart.py and of ln_popart.py: raw gradients are
PopArt's times sigma_k^2, Eq. (2). Scripts without PopArt have the raw ones only.
"""

import numpy as np
import runs as r

WITHOUT_LN = ["popart", "popart_fairgrad", "vanilla_mtppo", "fairgrad"]
WITH_LN = [
    "ln_popart",
    "ln_popart_fairgrad",
    "toppo_mt50",
    "ln_popart_fairgrad_fairgrad",
    "ln_popart_pcgrad_pcgrad",
    "ln_popart_cagrad_cagrad",
    "toppo_popart_ema",
    "symmetric_ln_popart",
    "ln",
    "ln_fairgrad",
]
COLUMNS = [
    "critic",
    "gradients",
    "method",
    "run",
    "stage",
    "step",
    "mean off-diagonal cosine",
    "median norm",
    "largest / smallest norm",
]

NOTE = f"""\
The first minibatch of a collect, before its step, from one seed each: an illustration. Stages are
the first, middle and last step at which all runs shown have a dump; dumps of the initial networks
are left out, as nothing was learned then. PopArt divides task k's gradient by σ_k², which leaves
the cosines as they are: only the diagonal may differ between raw and PopArt. Tasks are in one order
in all panels, rows and columns: that of the raw norms in the first, the largest first. {r.SIGMA}

The paper: LN-c lowers the mean off-diagonal cosine early on and about leaves the diagonal; PopArt
compresses the diagonal, except for a reversal with LN-c in the middle of training."""


def sources(runs):
    """[(critic, run)] for the critic without LN and with it, and why one is absent.

    Both are of the same tasks and rewards: the first on which there are both, if there are such.
    """
    sets = sorted({(run.task_set, run.reward) for run in runs}, key=lambda x: (len(x[0]), x))
    each = [
        sources_among([run for run in runs if (run.task_set, run.reward) == one]) for one in sets
    ]
    found, absent = max(each or [sources_among([])], key=lambda pair: len(pair[0]))
    if not found:
        raise r.Missing("; ".join(absent))
    return found, absent


def sources_among(runs):
    """What sources returns, of runs on the same tasks and rewards."""
    found = []
    absent = []
    for critic, scripts in (("no LN", WITHOUT_LN), ("LN-c", WITH_LN)):
        try:
            run = r.first_with_dumps(runs, scripts, f"the columns with {critic}")
            found.append((critic, run))
        except r.Missing as reason:
            absent.append(str(reason))
    return found, absent


def dumps_at_shared_steps(found):
    """Each run's dumps {stage: Dump}, such that all panels of a row are of the same step."""
    files = [{r.read_dump(file).step: file for file in r.dump_files(run)} for _, run in found]
    shared = sorted(set.intersection(*map(set, files)))
    if not shared:
        both = " and ".join(str(run.path) for _, run in found)
        raise r.Missing(f"no gradient dumps at equal steps: {both}; make both again")
    stages = [r.early_middle_late([by_step[step] for step in shared]) for by_step in files]
    return [{stage: r.read_dump(file) for stage, file in of_run.items()} for of_run in stages]


def both_grams(dump):
    """{"raw": G, "PopArt": G}; without PopArt the raw one alone."""
    if dump.sigma is None:
        return {"raw": dump.critic_gram}
    square = dump.sigma**2
    return {"raw": dump.critic_gram * square * square[:, None], "PopArt": dump.critic_gram}


def draw(axis, G, low):
    """Cosines off the diagonal; on it log10 of norm over largest norm. Returns both images."""
    eye = np.eye(len(G), dtype=bool)
    norms = np.sqrt(G.diagonal())
    with np.errstate(divide="ignore"):
        scale = np.diag(np.log10(norms / norms.max()))
    pairs = axis.imshow(np.ma.array(r.cosines(G), mask=eye), cmap="RdBu_r", vmin=-1, vmax=1)
    own = axis.imshow(np.ma.array(scale, mask=~eye), cmap="viridis", vmin=low, vmax=0)
    axis.set(xticks=[], yticks=[])
    return pairs, own


def name_tasks(axis, tasks):
    """Names the rows of a panel."""
    axis.set_yticks(range(len(tasks)), [task.removesuffix("-v3") for task in tasks], fontsize=7)


def draw_panels(panels, tasks, title):
    """panels: {(row, column): (title, G)}. Columns that none is in are left out."""
    columns = sorted({j for _, j in panels})
    num_rows = 1 + max(i for i, _ in panels)
    side = max(2.6, 0.11 * len(tasks))  # a row's name wants 0.11 inches
    size = (side * len(columns) + 4, (side + 0.4) * num_rows + 0.6)
    figure, axes = r.plt.subplots(
        num_rows, len(columns), figsize=size, squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.set_visible(False)
    low = min(-np.log10(r.norm_spread(G)) for _, G in panels.values()) - 1e-9
    for (i, j), (name, G) in panels.items():
        axis = axes[i, columns.index(j)]
        axis.set_visible(True)
        axis.set_title(name, fontsize=10)
        pairs, own = draw(axis, G, low)
        if j == columns[0]:
            name_tasks(axis, tasks)
    figure.suptitle(title, fontsize=11)
    bars = {"off the diagonal: cosine": pairs, "diagonal: log10 of norm / largest norm": own}
    for label, image in bars.items():
        figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, label=label)
    return figure


def heatmaps(title, runs, early_only):
    found, absent = sources(runs)
    panels = {}
    rows = []
    shown = dumps_at_shared_steps(found)
    first = next(iter(shown[0].values()))
    order = np.argsort(-both_grams(first)["raw"].diagonal())
    tasks = [first.tasks[k] for k in order]
    for s, ((critic, run), dumps) in enumerate(zip(found, shown)):
        for i, (stage, dump) in enumerate(dumps.items()):
            if early_only and i > 0:
                break
            step = r.millions(dump.step)
            place = [dump.tasks.index(task) for task in tasks]
            for j, (label, G) in enumerate(both_grams(dump).items()):
                name = f"{critic}, {label}\n{stage}, {step} steps"
                panels[i, 2 * s + j] = name, G[np.ix_(place, place)]
                cosine = f"{r.mean_off_diagonal(r.cosines(G)):.3f}"
                norm = f"{np.sqrt(np.median(G.diagonal())):.3g}"
                source = [r.METHODS[run.script], run.path.name, stage, step]
                rows.append([critic, label, *source, cosine, norm, f"{r.norm_spread(G):.3g}"])
    which = f"{found[0][1].task_set}, {found[0][1].reward.upper()} rewards, n = 1 each"
    not_shown = [f"Not shown: {reason}." for reason in absent]
    lines = [f"{which}.", "", *r.table(COLUMNS, rows), NOTE, "", *not_shown]
    sources_shown = "; ".join(f"{r.METHODS[run.script]}, seed {run.seed}" for _, run in found)
    above = f"critic Grams, {which}: {sources_shown}"
    return title, lines, draw_panels(panels, tasks, above)


def figure_3(runs):
    return heatmaps("Figure 3: critic Grams after the first collects", runs, early_only=True)


def figure_d1(runs):
    title = "Figure D.1: critic Grams, early, middle and late"
    return heatmaps(title, runs, early_only=False)


ITEMS = {"figure_3": figure_3, "figure_d1": figure_d1}

if __name__ == "__main__":
    r.main(__doc__, ITEMS)
