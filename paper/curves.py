"""The paper's curves from run directories: success, task by task too, and what was logged.

    python paper/curves.py runs --out runs/figures

Writes for each task set and reward curves_ (Figures 1, D.6, D.7), ladder_ (with the value clip and
without), per_task_ (D.8 to D.10) and gradients_ (2, D.3). A line is the mean over the seeds that
were evaluated at the same steps, from three on with a band of ± one standard deviation.
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import tyro
from matplotlib.ticker import MaxNLocator
from tables import ORDER, PUBLISHED, in_order, load, worst
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# For each method in the order of the tables; without colour they can be told apart, too
COLORS = ["black", "#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "0.6"]
DASHES = ["-", (0, (6, 2)), (0, (4, 1, 1, 1)), "-", (0, (6, 2)), "-", (0, (4, 1, 1, 1))]
MARKERS = "osv^DXP*"
NORMS = ["gradients/critic_combined_norm", "gradients/actor_combined_norm"]
LOGGED = {  # tag: the panel's title
    "gradients/critic_log10_norm_spread": "critic: log10 of largest / smallest norm",
    "gradients/actor_log10_norm_spread": "actor: log10 of largest / smallest norm",
    "ratio": "combined norm: critic / actor",
    "gradients/critic_mean_cosine": "critic: mean cosine of two tasks",
    "gradients/critic_top1_share": "critic: the largest task's share",
    "explained_variance/mean": "explained variance of the returns",
}


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run directories, or folders with some anywhere inside"""
    out: Path = Path("runs/figures")
    """folder of the figures"""


def scalars(run):
    """What a run logged: a row for each step and tag. A collect that was redone counts once."""
    frames = []
    if Path(run, "scalars.csv").exists():
        frames.append(pd.read_csv(Path(run, "scalars.csv")))
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    for tag in events.Tags()["scalars"]:
        rows = [(event.step, tag, event.value) for event in events.Scalars(tag)]
        frames.append(pd.DataFrame(rows, columns=["step", "tag", "value"]))
    table = pd.concat(frames or [pd.DataFrame(columns=["step", "tag", "value"])])
    return table.drop_duplicates(["step", "tag"], keep="last")


# --- How lines look


def style(method):
    """The same in every figure. Variants, which have their own panels, look like their rung."""
    base = method.split(",")[0]
    i = [*ORDER, base].index(base)
    return {
        "color": COLORS[i % len(COLORS)],
        "linestyle": DASHES[i % len(DASHES)],
        "marker": MARKERS[i % len(MARKERS)],
        "label": base,
    }


def panels(titles, columns, ylabel):
    """A figure with a panel for each title. Returns it and the axes."""
    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    width, height = (3.4, 2.5) if columns < 4 else (2.3, 1.8)
    size = (width * columns, height * rows + 0.6)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat[len(titles) :]:
        axis.remove()
    for axis, title in zip(axes.flat, titles):
        axis.set_title(title, fontsize=11)
        axis.grid(color="0.9")
        axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("million environment steps", fontsize=11)
    figure.supylabel(ylabel, fontsize=11)
    return figure, axes.flat[: len(titles)]


def lines(axis, data, y):
    """A line for each method, or several where its runs were evaluated at different steps."""
    for method in in_order(data.method):
        curves = data[data.method == method].pivot_table(index="run", columns="step", values=y)
        for _, seeds in curves.groupby(curves.notna().apply(tuple, axis=1)):
            seeds = seeds.dropna(axis=1)
            mean, std = seeds.mean(), seeds.std()
            x = mean.index / 1e6
            looks = style(method) | {"markersize": 4, "markevery": max(1, len(x) // 8)}
            axis.plot(x, mean, linewidth=1.6, **looks)
            if len(seeds) > 2:
                axis.fill_between(x, mean - std, mean + std, color=looks["color"], alpha=0.15)


def papers_lines(axis, tasks, reward, end):
    """The paper's own curves, as far as ours go."""
    of_set = PUBLISHED.query("tasks == @tasks and reward == @reward and kind == 'curve'")
    for method, curve in of_set.groupby("method"):
        looks = style(method) | {"linestyle": ":", "marker": "", "label": f"{method}, the paper"}
        axis.plot(curve.step, curve.value, linewidth=2.4, **looks)
    axis.set_xlim(0, end or 1)


def save(figure, axes, path):
    """Writes the picture, with one legend for all panels."""
    found = {}
    for axis in axes:
        found |= dict(zip(*reversed(axis.get_legend_handles_labels())))
    columns = max(1, int(figure.get_figwidth() / 2.2))
    options = {"loc": "outside upper center", "ncols": columns, "frameon": False}
    figure.legend(found.values(), found.keys(), **options)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"wrote {path}")


# --- The figures


def curves(evals, where, path):
    """Mean success and the worst tasks', as far as these have any."""
    each = evals.groupby(["run", "method", "step"]).success
    tails = {"all tasks": each.mean()}
    for k in (20, 10, 5, 3, 1):
        if k < evals.task.nunique():
            tails[f"the {k} worst tasks" if k > 1 else "the worst task"] = each.apply(worst, k=k)
    tails = {t: success for t, success in tails.items() if success.any() or t == "all tasks"}
    figure, axes = panels(list(tails), 3, "success, %")
    for axis, success in zip(axes, tails.values()):
        lines(axis, success.reset_index(), "success")
    papers_lines(axes[0], *where, evals.step.max() / 1e6)
    save(figure, axes, path)


def ladder(evals, where, path):
    """Mean success with the value clip and without it."""
    mean = evals.groupby(["run", "method", "step"], as_index=False).success.mean()
    clipped = ~mean.method.str.contains(",")
    unclipped = mean.method.str.fullmatch("[^,]*, no value clip")
    figure, axes = panels(["with the value clip", "without"], 2, "success, %")
    for axis, chosen in zip(axes, (clipped, unclipped)):
        lines(axis, mean[chosen], "success")
        papers_lines(axis, *where, mean[clipped | unclipped].step.max() / 1e6)
        axis.set_ylim(0, max(1, 1.05 * mean.success.max()))
    save(figure, axes, path)


def per_task(evals, path):
    """Each task that has been solved once."""
    best = evals.groupby("task").success.max()
    tasks = list(best.index[best > 0]) or list(best.index)
    figure, axes = panels([task.removesuffix("-v3") for task in tasks], 5, "success, %")
    for axis, task in zip(axes, tasks):
        lines(axis, evals[evals.task == task], "success")
        axis.set_ylim(-4, 104)
    save(figure, axes, path)


def gradients(evals, path):
    """What Section 3 measures, means over a collect's minibatches."""
    frames = []
    for run, method in evals[["run", "method"]].drop_duplicates().values:
        log = scalars(run).pivot(index="step", columns="tag", values="value")
        log = log.reindex(columns=[*LOGGED, *NORMS])
        log["ratio"] = log[NORMS[0]] / log[NORMS[1]]
        frames.append(log.dropna(how="all").assign(run=run, method=method).reset_index())
    logged = pd.concat(frames)
    figure, axes = panels(list(LOGGED.values()), 3, "")
    for axis, tag in zip(axes, LOGGED):
        lines(axis, logged, tag)
    save(figure, axes, path)


def main():
    args = tyro.cli(Args, description=__doc__)
    args.out.mkdir(parents=True, exist_ok=True)
    for where, evals in load(args.runs).groupby(["tasks", "reward"]):
        name = "_".join(where).replace(" ", "_") + ".png"
        usual = evals[~evals.method.str.contains(",")]
        usual = usual if len(usual) else evals  # variants only
        curves(usual, where, args.out / f"curves_{name}")
        ladder(evals, where, args.out / f"ladder_{name}")
        per_task(usual, args.out / f"per_task_{name}")
        gradients(usual, args.out / f"gradients_{name}")


if __name__ == "__main__":
    main()
