"""One picture for each of TOPPO's four mechanisms, before and after, from gradient dumps.

    python paper/mechanisms.py results/mt10/{vanilla_mtppo,ln,ln_popart,toppo_mt50}__1 \\
        --out docs/figures

    mechanism_ln        cosines of the critic's gradients, of a vanilla run and of one with LN-c
    mechanism_popart    their norms, raw and with PopArt's division by sigma_k^2 (Eq. 2)
    mechanism_fairgrad  each task's share of the sum of w_k ||g_k||, by the mean and by FairGrad
    mechanism_pcgrad    cosine of each actor gradient with the step, by the mean and by PCGrad

Each is one minibatch of one run, so an illustration; what is printed says in how many of the runs'
dumps it is so. The last three compare on one and the same Gram; LN-c's two runs have gone different
ways by then.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import tyro
from grams import cosines, fair_weights, mean_weights, norms, pairs, read_dumps, shares, spread

SCRIPTS = ["vanilla_mtppo", "ln", "ln_popart", "toppo_mt50"]  # the runs that the pictures need
LIGHT, DARK = "#B0B0B0", "#0072B2"  # before and after


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run directories with gradient dumps, or folders of them; of each script the first is taken"""
    out: Path = Path("runs/paper")
    """folder of the pictures"""


def fail(message):
    sys.exit(f"mechanisms: error: {message}")


def at_shared_steps(dumps):
    """{script: its first run's dumps, a row each} at the steps at which all of SCRIPTS have one."""
    if dumps.tasks.nunique() > 1:
        fail(f"runs of {' and of '.join(dumps.tasks.unique())}; expected one task set")
    found = {}
    for script in SCRIPTS:
        own = dumps[dumps.script == script]
        if own.empty:
            fail(f"no gradient dumps of {script}.py; python paper/dump_gradients.py RUN makes them")
        found[script] = own[own.run == own.run.iloc[0]].set_index("millions")
    shared = sorted(set.intersection(*(set(own.index) for own in found.values())))
    if not shared:
        fail("no step at which all four runs have a gradient dump")
    return {script: own.loc[shared].reset_index() for script, own in found.items()}


def cosines_with_step(G, w):
    """The cosine [K] of each g_k with d = sum_k w_k g_k; 0 of a g_k that is zero."""
    inner = G @ w / np.sqrt(w @ G @ w)
    return inner / np.where(norms(G) > 0, norms(G), 1)


def panels(before, after):
    """A figure with two panels side by side, which have these titles."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
    for axis, title in zip(axes, (f"before: {before}", f"after: {after}")):
        axis.set_title(title, weight="bold")
        axis.tick_params(axis="y", length=0)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def bars(titles, tasks, before, after, xlabel):
    """Horizontal bars before and after, in the order of before."""
    figure, axes = panels(*titles)
    order = np.argsort(before)
    for axis, values, colour in zip(axes, (before, after), (LIGHT, DARK)):
        axis.barh([tasks[k] for k in order], values[order], color=colour, height=0.7)
        axis.grid(alpha=0.3, axis="x")
        axis.set_axisbelow(True)
    figure.supxlabel(xlabel, fontsize=13)
    return figure, axes


# --- The four pictures. runs: of at_shared_steps; i: the number of the dump that is shown


def layer_norm(runs, i):
    before, after = runs["vanilla_mtppo"], runs["ln"]
    figure, axes = panels("vanilla", "LN-c")
    tasks = before.names[i]
    place = [after.names[i].index(task) for task in tasks]
    for axis, G in zip(axes, (before.G[i], after.G[i][np.ix_(place, place)])):
        shown = np.ma.array(cosines(G), mask=np.eye(len(G), dtype=bool))
        image = axis.imshow(shown, cmap="RdBu_r", vmin=-1, vmax=1)
        for row, column in np.argwhere(shown.filled(0) < -0.05):  # seen without colours too
            axis.text(column, row, "−", ha="center", va="center")
        axis.set_xticks([])
        axis.set_yticks(range(len(tasks)), tasks)
        axis.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="cosine of two gradients", shrink=0.75)

    sizes = np.array([[np.abs(pairs(G)).mean() for G in side.G] for side in (before, after)])
    means = pairs(before.G[i]).mean(), pairs(after.G[i]).mean()
    return figure, (
        f"mean cosine {means[0]:.2f}, with LN-c {means[1]:.2f}; mean size {sizes[0, i]:.2f}, "
        f"with LN-c {sizes[1, i]:.2f} and smaller in {(sizes[1] < sizes[0]).sum()} of {len(before)}"
    )


def popart(runs, i):
    dumps = runs["ln_popart"]
    before, after = norms(dumps.raw[i]), norms(dumps.G[i])
    label = "norm of the task's critic gradient / largest norm"
    titles = "raw returns", "PopArt's returns"
    heights = before / before.max(), after / after.max()
    figure, axes = bars(titles, dumps.names[i], *heights, label)
    for axis in axes:
        axis.set(xscale="log", xlim=(0.4 / max(spread(before), spread(after)), 1.3))

    spreads = np.array(
        [[spread(norms(raw)), spread(norms(G))] for raw, G in zip(dumps.raw, dumps.G)]
    )
    return figure, (
        f"largest / smallest norm {spreads[i, 0]:,.0f}, with PopArt {spreads[i, 1]:,.0f}; smaller "
        f"in {(spreads[:, 1] < spreads[:, 0]).sum()} of {len(dumps)}"
    )


def fairgrad(runs, i):
    dumps = runs["ln_popart"]
    both = [[shares(G, mean_weights(G)), shares(G, fair_weights(G))] for G in dumps.G]
    before, after = both[i]
    label = "share of the tasks' weighted gradient norms, %; dashed: equal shares"
    titles = "the mean", "FairGrad"
    figure, axes = bars(titles, dumps.names[i], 100 * before, 100 * after, label)
    for axis in axes:
        axis.axvline(100 / len(before), color="black", linestyle="--", linewidth=1.2)
        axis.set_xlim(0, 105 * max(before.max(), after.max()))

    smaller = sum(after.max() < before.max() for before, after in both)
    return figure, (
        f"largest share {100 * before.max():.0f} %, with FairGrad {100 * after.max():.0f} %; "
        f"smaller in {smaller} of {len(dumps)}"
    )


def pcgrad(runs, i):
    dumps = runs["toppo_mt50"]
    both = [
        [cosines_with_step(G, mean_weights(G)), cosines_with_step(G, w)]
        for G, w in zip(dumps.actor_gram, dumps.actor_weights)
    ]
    before, after = both[i]
    label = "cosine of the task's actor gradient with the step"
    figure, axes = bars(("the mean", "PCGrad"), dumps.names[i], before, after, label)
    low, high = min(*before, *after, 0), max(*before, *after)
    for axis in axes:
        axis.axvline(0, color="black", linewidth=1.2)
        axis.set_xlim(low - 0.02, high + 0.02)

    higher = sum(after.min() > before.min() for before, after in both)
    return figure, (
        f"{100 * (pairs(dumps.actor_gram[i]) < 0).mean():.0f} % of the pairs in conflict; lowest "
        f"cosine with the step {before.min():.2f}, with PCGrad {after.min():.2f}; higher in "
        f"{higher} of {len(dumps)}"
    )


def main():
    args = tyro.cli(Args, description=__doc__)
    plt.rc("font", size=13)
    args.out.mkdir(parents=True, exist_ok=True)
    runs = at_shared_steps(read_dumps(args.runs))
    first = runs[SCRIPTS[0]]
    i = len(first) // 2
    print(f"{first.tasks[i]}, {first.millions[i]:g} M steps, {len(first)} dumps a run")
    pictures = {"ln": layer_norm, "popart": popart, "fairgrad": fairgrad, "pcgrad": pcgrad}
    for name, draw in pictures.items():
        figure, numbers = draw(runs, i)
        figure.savefig(args.out / f"mechanism_{name}.png", dpi=100)
        plt.close(figure)
        print(f"{args.out}/mechanism_{name}.png: {numbers}")


if __name__ == "__main__":
    main()
