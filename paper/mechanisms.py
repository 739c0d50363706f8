"""One figure for each of TOPPO's four mechanisms, before and after, from real gradient dumps.

    python paper/mechanisms.py results/mt10 --out docs/figures

LN-c: cosines between the critic's per-task gradients, of a vanilla run and of one with LN-c.
PopArt: their norms as PopArt has them, and with its division by sigma_k^2 undone (Eq. 2).
FairGrad: each task's share of the weights times norms, under the mean and under FairGrad.
PCGrad: cosine of each task's actor gradient with the combined one, under the mean and under PCGrad.
The last three compare on one and the same Gram matrix; LN-c's two runs have gone different ways by
then. The sentence below a figure says what the data show, also where that is not what the mechanism
is there for. Writes mechanism_ln, mechanism_popart, mechanism_fairgrad and mechanism_pcgrad, each
.png and .svg, the same bytes for the same data.
"""

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import runs as r
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from fairgrad_solver import solve_fairgrad

SCRIPTS = ["vanilla_mtppo", "ln", "ln_popart", "toppo_mt50"]  # one run of each is enough
SIZE = (12.8, 7.2)  # a slide, in inches
PARALLEL = 0.95  # a cosine above which two gradients are called nearly parallel


class Dump(NamedTuple):
    """What one collect's first minibatch left of the gradients."""

    run: r.Run
    step: int
    tasks: list[str]  # without -v3
    critic_gram: r.Array  # [K, K]
    actor_gram: r.Array  # [K, K]
    actor_weights: r.Array  # [K], that the run followed
    sigma: r.Array | None  # [K], PopArt's


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run directories with gradient dumps, or folders of them"""
    out: Path = Path("docs/figures")
    """folder that the figures go to"""


def read(run: r.Run, file: Path) -> Dump:
    critic = r.read_dump(file)
    with np.load(file, allow_pickle=False) as x:
        gram = x["actor_gram"] if "actor_gram" in x else r.gram(x["actor_gradients"])
        tasks = [name.removesuffix("-v3") for name in x["tasks"].tolist()]
        weights = x["actor_weights"]
    return Dump(run, critic.step, tasks, critic.critic_gram, gram, weights, critic.sigma)


def dumps_at_shared_steps(runs: list[r.Run]) -> dict[str, list[Dump]]:
    """One run's dumps of each script, at the steps at which all of them have one."""
    found = {}
    for script in SCRIPTS:
        run = r.first_with_dumps(runs, [script], "the figures of the mechanisms")
        found[script] = {r.read_dump(file).step: file for file in r.dump_files(run)}, run
    shared = sorted(set.intersection(*(set(files) for files, _ in found.values())))
    if not shared:
        raise r.Missing(f"no step at which runs of {', '.join(SCRIPTS)} all have gradient dumps")
    return {
        script: [read(run, files[step]) for step in shared]
        for script, (files, run) in found.items()
    }


# --- What the figures are drawn from


def off_diagonal(gram: r.Array) -> r.Array:
    """The cosines of all pairs, each pair twice; nan where one is zero. Returns [K (K - 1)]."""
    return r.cosines(gram)[~np.eye(len(gram), dtype=bool)]


def shares(gram: r.Array, weights: r.Array) -> r.Array:
    """Each task's share of sum_k w_k ||g_k||. Returns [K]."""
    lengths = weights * np.sqrt(gram.diagonal())
    return lengths / lengths.sum()


def cosines_with_step(gram: r.Array, weights: r.Array) -> r.Array:
    """The cosine of each g_k with d = sum_k w_k g_k, 0 of a g_k that is zero. Returns [K]."""
    norms = np.sqrt(gram.diagonal())
    inner = gram @ weights / np.sqrt(weights @ gram @ weights)
    return np.divide(inner, norms, out=np.zeros(len(norms)), where=norms > 0)


def popart_norms(dump: Dump) -> r.Array:
    return np.sqrt(dump.critic_gram.diagonal())


def raw_norms(dump: Dump) -> r.Array:
    """Norms of the critic's gradients without PopArt's division by sigma_k^2, Eq. (2). [K]."""
    assert dump.sigma is not None
    return popart_norms(dump) * dump.sigma**2


def spread(norms: r.Array) -> float:
    """Largest over smallest of the norms that are not zero."""
    return norms.max() / norms[norms > 0].min()


# --- Drawing


def slide(title: str, sentence: str, source: str) -> tuple[Figure, Axes, Axes]:
    """A figure with two panels, its title above, and below the sentence and where it is from."""
    layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15)
    figure, (left, right) = r.plt.subplots(1, 2, figsize=SIZE, sharey=True, layout=layout)
    figure.suptitle(title, fontsize=21, x=0.02, ha="left", weight="bold")
    sentence = sentence.replace("-0.", "−0.").replace(" M steps", "\N{NO-BREAK SPACE}M steps")
    text = "\n".join([*textwrap.wrap(sentence, 116), source])
    figure.supxlabel(text, fontsize=14, x=0.02, ha="left", linespacing=1.4)
    return figure, left, right


def bars(axis: Axes, tasks: list[str], values: r.Array, colour: str, title: str) -> None:
    """Horizontal bars, the first task at the top."""
    y = np.arange(len(tasks))
    axis.barh(y, values, color=colour, height=0.7)
    axis.set_yticks(y, tasks)
    axis.set_ylim(len(tasks) - 0.4, -0.6)
    axis.set_title(title, fontsize=16)
    axis.grid(alpha=0.3, axis="x")
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", length=0)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def two_bars(
    axes: tuple[Axes, Axes],
    tasks: list[str],
    values: tuple[r.Array, r.Array],
    scripts: tuple[str, str],
    titles: tuple[str, str],
) -> None:
    """Before and after in the colours of two scripts, the tasks in the order of before."""
    order = np.argsort(-values[0])
    names = [tasks[k] for k in order]
    for axis, side, script, title in zip(axes, values, scripts, titles):
        bars(axis, names, side[order], r.COLORS[script], title)


def heatmap(axis: Axes, gram: r.Array, tasks: list[str], title: str):
    """The cosines off the diagonal. Returns what a colour bar is made of."""
    num_tasks = len(tasks)
    cosines = np.ma.array(r.cosines(gram), mask=np.eye(num_tasks, dtype=bool))
    # Not imshow, which would put a picture into the SVG
    mesh = axis.pcolormesh(cosines, cmap="RdBu_r", vmin=-1, vmax=1, edgecolors="w", linewidth=1)
    axis.set(xticks=[], aspect="equal")
    axis.set_yticks(np.arange(num_tasks) + 0.5, tasks)
    axis.set_ylim(num_tasks, 0)
    axis.tick_params(axis="y", length=0)
    axis.set_title(title, fontsize=16)
    axis.spines[:].set_visible(False)
    return mesh


def source(dump: Dump, what: str) -> str:
    """The line below every sentence."""
    where = f"{dump.run.task_set}, {r.millions(dump.step)} steps, seed {dump.run.seed}"
    return f"{what} ({where}): n = 1, an illustration."


# --- The four figures. Each takes {script: dumps} and the number i of the step to be shown


def layer_norm(dumps: dict[str, list[Dump]], i: int) -> Figure:
    before = dumps["vanilla_mtppo"]
    after = dumps["ln"]
    pairs = np.array([[off_diagonal(x.critic_gram) for x in side] for side in (before, after)])
    mean = np.nanmean(pairs, -1)  # [2, dumps]
    size = np.nanmean(np.abs(pairs), -1)
    parallel = (pairs[:, i] > PARALLEL).sum(-1) // 2  # a pair is there twice
    sentence = (
        f"With LN-c the mean cosine of two tasks' critic gradients is {mean[1, i]:.2f} instead of "
        f"{mean[0, i]:.2f}, its mean size {size[1, i]:.2f} instead of {size[0, i]:.2f} (they are "
        f"lower in {(mean[1] < mean[0]).sum()} and in {(size[1] < size[0]).sum()} of "
        f"{len(before)} dumps), and {parallel[1]} pairs are nearly parallel (above {PARALLEL}) "
        f"instead of {parallel[0]}."
    )
    figure, left, right = slide(
        "LN-c: the angles between the critic's gradients",
        sentence,
        source(before[i], "Two runs, which differ in more than this by now"),
    )
    tasks = before[i].tasks
    order = [after[i].tasks.index(task) for task in tasks]
    heatmap(left, before[i].critic_gram, tasks, "before: vanilla")
    mesh = heatmap(right, after[i].critic_gram[np.ix_(order, order)], tasks, "after: LN-c")
    figure.colorbar(mesh, ax=[left, right], label="cosine of two tasks' gradients", shrink=0.9)
    return figure


def popart(dumps: dict[str, list[Dump]], i: int) -> Figure:
    side = dumps["ln_popart"]
    dump = side[i]
    raw = raw_norms(dump)
    after = popart_norms(dump)
    spreads = np.array([[spread(raw_norms(x)), spread(popart_norms(x))] for x in side])
    exceptions = [
        f"not at {r.millions(x.step)} steps, from {old:,.0f} to {new:,.0f}"
        for x, (old, new) in zip(side, spreads)
        if new >= old
    ]
    sentence = (
        r"Dividing task k's gradient by $\sigma_k^2$, the variance of its returns, takes the "
        f"largest norm from {spreads[i, 0]:,.0f} to {spreads[i, 1]:,.0f} times the smallest and "
        "leaves the angles as they are; it brings the norms closer together in "
        f"{(spreads[:, 1] < spreads[:, 0]).sum()} of {len(side)} dumps"
    )
    sentence += f" ({'; '.join(exceptions)})." if exceptions else "."
    figure, left, right = slide(
        "PopArt: the lengths of the critic's gradients",
        sentence,
        source(dump, "One minibatch of the run with LN-c and PopArt, before by Eq. (2)"),
    )
    values = raw / raw.max(), after / after.max()
    titles = "before: raw returns", "after: normalised returns"
    two_bars((left, right), dump.tasks, values, ("ln", "ln_popart"), titles)
    for axis in (left, right):
        axis.set_xscale("log")
        axis.set(xlim=(0.4 / spreads[i].max(), 1.3))
        axis.set_xlabel("norm of the task's gradient / largest norm")
    return figure


def fairgrad(dumps: dict[str, list[Dump]], i: int) -> Figure:
    dump = dumps["ln_popart"][i]
    num_tasks = len(dump.tasks)
    mean = shares(dump.critic_gram, np.full(num_tasks, 1 / num_tasks))
    fair = shares(dump.critic_gram, solve_fairgrad(dump.critic_gram).weights)
    sentence = (
        f"The largest share goes from {100 * mean.max():.0f} % to {100 * fair.max():.0f} %: "
        r"FairGrad weighs the same gradients so that each has the same $w_k\,g_k\cdot d=1$ "
        "with the step d, which is what it solves for and no result by itself."
    )
    figure, left, right = slide(
        "FairGrad: who moves the critic",
        sentence,
        source(dump, "One minibatch of the run with LN-c and PopArt"),
    )
    scripts = "ln_popart", "ln_popart_fairgrad"
    titles = "before: mean", "after: FairGrad"
    two_bars((left, right), dump.tasks, (100 * mean, 100 * fair), scripts, titles)
    for axis in (left, right):
        axis.axvline(100 / num_tasks, color="#000000", linestyle=(0, (4, 3)), linewidth=1.2)
        axis.set(xlim=(0, 105 * max(mean.max(), fair.max())))
        axis.set_xlabel(r"share of $w_k \Vert g_k \Vert$, %; dashed: an equal share")
    return figure


def pcgrad(dumps: dict[str, list[Dump]], i: int) -> Figure:
    dump = dumps["toppo_mt50"][i]
    num_tasks = len(dump.tasks)
    mean = cosines_with_step(dump.actor_gram, np.full(num_tasks, 1 / num_tasks))
    after = cosines_with_step(dump.actor_gram, dump.actor_weights)
    pairs = off_diagonal(dump.actor_gram)
    conflicts = (pairs[~np.isnan(pairs)] < 0).mean()
    sentence = (
        f"Of the pairs of actor gradients {100 * conflicts:.0f} % point against each other; the "
        f"mean of all points against {(mean < 0).sum()} of {num_tasks} tasks (lowest cosine "
        f"{mean.min():.2f}, highest {mean.max():.2f}), PCGrad's step against {(after < 0).sum()} "
        f"(lowest {after.min():.2f}, highest {after.max():.2f})."
    )
    figure, left, right = slide(
        "PCGrad: whom the actor's step helps",
        sentence,
        source(dump, "One minibatch of a TOPPO run"),
    )
    scripts = "ln_popart_fairgrad", "toppo_mt50"
    titles = "before: mean", "after: PCGrad"
    two_bars((left, right), dump.tasks, (mean, after), scripts, titles)
    low = min(mean.min(), after.min(), 0)
    high = max(mean.max(), after.max())
    for axis in (left, right):
        axis.axvline(0, color="#000000", linewidth=1.2)
        axis.set(xlim=(low - 0.05, high + 0.05))
        axis.set_xlabel("cosine of the task's gradient with the step")
    return figure


FIGURES = {"ln": layer_norm, "popart": popart, "fairgrad": fairgrad, "pcgrad": pcgrad}


def write(figure: Figure, path: Path) -> None:
    """path.png and path.svg, without the date and the version that would change the bytes."""
    figure.savefig(path.with_suffix(".png"), dpi=100, metadata={"Software": None})
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Creator": None})
    r.plt.close(figure)


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    r.plt.rc("font", size=13)
    r.plt.rc("svg", fonttype="path", hashsalt="toppo")  # the same shapes and names wherever made
    try:
        dumps = dumps_at_shared_steps(r.load_runs(args.runs))
    except r.Missing as reason:
        r.fail(reason)
    middle = len(dumps[SCRIPTS[0]]) // 2
    args.out.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        path = args.out / f"mechanism_{name}"
        write(draw(dumps, middle), path)
        print(f"wrote {path}.png and .svg")


if __name__ == "__main__":
    main()
