"""What gradient dumps show of the critic: Figures 3, D.1, D.3, D.4 and D.5.

    python paper/grams.py results/mt10 --out runs/paper

A dump, which dump_gradients.py makes, is one minibatch of one run: each picture is an illustration.
Writes grams.md, a row of numbers for each dump, and for each task set and reward pictures:

    grams          Figure D.1, and 3 in its first row: Grams of a critic without LN and of one with
    shares         Figure D.3: mean cosine, largest share by the mean and by FairGrad
    mechanism      one minibatch: each task's share of the step by the mean and by FairGrad

Columns of grams.md are Figure D.4, w_k (G w)_k of raw gradients and of PopArt's, and Figure D.5,
how far a step moves when gradients are rescaled. Raw gradients are PopArt's times sigma_k^2
(Eq. 2), so that a run with PopArt shows both.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import tyro
from tables import in_order, load, markdown

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fairgrad_solver import solve_fairgrad

SCALES = 10 ** np.random.default_rng(0).uniform(-3, 3, 50)  # of Figure D.5, for each task


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run directories with gradient dumps, or folders of them"""
    out: Path = Path("runs/paper")
    """folder of the pictures and of grams.md"""


def read_dumps(paths):
    """A row for each dump. G: the critic's Gram [K, K], raw: that of the raw losses."""
    rows = []
    runs = load(paths).drop_duplicates("run")
    for run in runs[["run", "script", "method", "tasks", "reward"]].to_dict("records"):
        for file in sorted(Path(run["run"]).glob("gradients/collect_*.npz")):
            with np.load(file) as dump:
                arrays = dict(dump)
            G = arrays["critic_gram"]
            square = arrays.get("popart_sigma", np.ones(len(G))) ** 2
            row = {
                "popart": "popart_sigma" in arrays,
                "millions": arrays["global_step"] / 1e6,
                "names": [name.removesuffix("-v3") for name in arrays["tasks"]],
                "G": G,
                "raw": G * np.outer(square, square),
                "sigma_squared": square,
                "actor_gram": arrays["actor_gram"],
                "actor_weights": arrays["actor_weights"],
            }
            rows.append(run | row)
    if not rows:
        sys.exit("grams: error: no gradient dumps; python paper/dump_gradients.py RUN makes them")
    table = pd.DataFrame(rows)
    order = in_order(table.method)
    return table.sort_values(
        "method", key=lambda x: x.map(order.index), kind="stable", ignore_index=True
    )


# --- What is seen in a Gram


def norms(G):
    return np.sqrt(G.diagonal())


def cosines(G):
    """[K, K]; nan where a gradient is zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return G / np.outer(norms(G), norms(G))


def pairs(G):
    """The cosines of all pairs of gradients that are not zero, each pair twice."""
    found = cosines(G)[~np.eye(len(G), dtype=bool)]
    return found[~np.isnan(found)]


def spread(x):
    """Largest over smallest size of those that are not zero."""
    sizes = np.abs(x[x != 0])
    return sizes.max() / sizes.min()


def mean_weights(G):
    return np.full(len(G), 1 / len(G))


def fair_weights(G, alpha=1.0):
    return solve_fairgrad(G, alpha, tol=1e-15).weights


def shares(G, w):
    """Each task's share [K] of sum_k w_k ||g_k||."""
    return w * norms(G) / (w @ norms(G))


def contributions(G, w):
    """w_k g_k · d [K], which FairGrad makes ones (Theorem 1)."""
    return w * (G @ w)


def moved(G, combine, s):
    """||d' - d|| / ||d||: how far a combiner's step d moves if each g_k becomes s_k g_k."""
    w = combine(G)
    change = combine(G * np.outer(s, s)) * s - w
    return np.sqrt(max(change @ G @ change, 0) / (w @ G @ w))


def numbers(dump):
    """A dump's row in grams.md."""
    G, raw = dump.G, dump.raw
    mean, fair = mean_weights(G), fair_weights(G)
    return {
        "method": dump.method,
        "run": Path(dump.run).name,
        "million steps": dump.millions,
        "mean cosine": pairs(G).mean(),
        "norms, raw": spread(norms(raw)),
        "norms, PopArt": spread(norms(G)) if dump.popart else np.nan,
        "largest share, mean": shares(G, mean).max(),
        "largest share, FairGrad": shares(G, fair).max(),
        "contributions, raw": spread(contributions(raw, mean)),
        "contributions, PopArt": spread(contributions(G, mean)) if dump.popart else np.nan,
        "Theorem 1: error of 1": np.abs(contributions(G, fair)[norms(G) > 0] - 1).max(),
        "raw to PopArt": moved(G, fair_weights, dump.sigma_squared),
        "rescaled": moved(G, fair_weights, SCALES[: len(G)]),
        "rescaled, α = 2": moved(G, partial(fair_weights, alpha=2.0), SCALES[: len(G)]),
        "rescaled, the mean": moved(G, mean_weights, SCALES[: len(G)]),
    }


NOTE = """
Each Gram is combined by the mean and by FairGrad, whichever the run followed. Norms and, by the
mean, contributions: largest over smallest. Shares: of the sum of w ‖g‖. Theorem 1: FairGrad makes
all contributions 1, and its step stays where it is if PopArt (Corollary 1) or random factors of up
to 10³ either way rescale the gradients; the last four columns say how far it moves, relatively.
"""


# --- The pictures


def draw_grams(dumps, path):
    """A row for each of three steps, a column for raw and for PopArt of each critic."""
    with_ln = dumps.script.str.contains("ln|toppo")
    columns = []
    for critic, side in (("no LN", dumps[~with_ln]), ("LN-c", dumps[with_ln])):
        if len(side):
            run = side.run[side.popart.idxmax()]  # the first with PopArt, or else the first
            own = side[side.run == run].set_index("millions")
            columns.append((f"{critic}, raw", own, "raw"))
            if own.popart.all():
                columns.append((f"{critic}, PopArt", own, "G"))
    steps = sorted(set.intersection(*(set(own.index) for _, own, _ in columns)) - {0.0})
    if not steps:
        return
    steps = sorted({steps[0], steps[len(steps) // 2], steps[-1]})

    size = 2.2 * len(columns) + 2.2, 2.2 * len(steps) + 0.3
    shape = len(steps), len(columns)
    figure, axes = plt.subplots(*shape, figsize=size, squeeze=False, layout="constrained")
    first = columns[0][1].loc[steps[0]]
    tasks = [first.names[k] for k in np.argsort(-norms(first.raw))]
    for row, millions in zip(axes, steps):
        for axis, (label, own, which) in zip(row, columns):
            dump = own.loc[millions]
            place = [dump.names.index(task) for task in tasks]
            G = dump[which][np.ix_(place, place)]
            eye = np.eye(len(G), dtype=bool)
            with np.errstate(divide="ignore"):
                sizes = np.diag(np.log10(norms(G) / norms(G).max()))
            off = axis.imshow(np.ma.array(cosines(G), mask=eye), cmap="RdBu_r", vmin=-1, vmax=1)
            on = axis.imshow(np.ma.array(sizes, mask=~eye), cmap="viridis", vmin=-4, vmax=0)
            axis.set(title=f"{label}, {millions:g} M", xticks=[], yticks=[])
    figure.colorbar(off, ax=axes, shrink=0.8, label="cosine of two tasks' gradients")
    figure.colorbar(on, ax=axes, shrink=0.8, label="diagonal: log10 of norm / largest norm")
    figure.savefig(path, dpi=80)


def draw_shares(table, path):
    """A panel for each method, of its first run. table: the numbers of dumps."""
    table = table[table.run.isin(table.drop_duplicates("method").run)]
    lines = ["mean cosine", "largest share, mean", "largest share, FairGrad"]
    long = table.melt(["method", "million steps"], lines, var_name=" ")
    sns.relplot(
        long, x="million steps", y="value", hue=" ", style=" ", col="method", col_wrap=3,
        kind="line", markers=True, palette=["#56B4E9", "#000000", "#D55E00"], height=2.3,
    ).set_titles("{col_name}").set_axis_labels(y_var="").savefig(path, dpi=80)  # fmt: skip


def draw_mechanism(dumps, path):
    """Shares in the dump halfway through the first run that has PopArt, or else the first run."""
    own = dumps[dumps.run == dumps.run[dumps.popart.idxmax()]]
    dump = own.iloc[len(own) // 2]
    both = {
        "the mean": 100 * shares(dump.G, mean_weights(dump.G)),
        "FairGrad": 100 * shares(dump.G, fair_weights(dump.G)),
    }
    table = pd.DataFrame(both, index=dump.names).sort_values("the mean")
    figure, axes = plt.subplots(1, 2, figsize=(7, 3.2), sharey=True, layout="constrained")
    for axis, rule, colour in zip(axes, table, ("0.7", "#0072B2")):
        axis.barh(table.index, table[rule], height=0.7, color=colour)
        axis.set(title=rule, xlim=(0, 1.05 * table.max(axis=None)))
        axis.axvline(100 / len(table), color="black", linestyle="--")
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("share of the tasks' weighted gradient norms, %; dashed: equal shares")
    figure.savefig(path, dpi=130)


def main():
    args = tyro.cli(Args, description=__doc__)
    args.out.mkdir(parents=True, exist_ok=True)
    page = []
    for (tasks, reward), dumps in read_dumps(args.runs).groupby(["tasks", "reward"]):
        table = pd.DataFrame([numbers(dump) for dump in dumps.itertuples()])
        shown = table.map(lambda x: x if isinstance(x, str) else f"{x:.3g}".replace("nan", "–"))
        page.append(
            f"## Critic Grams: {tasks}, {reward}\n\n{markdown(shown.set_index('method'))}\n{NOTE}"
        )
        where = f"{tasks}_{reward}.png".replace(" ", "_")
        draw_grams(dumps, args.out / f"grams_{where}")
        draw_shares(table, args.out / f"shares_{where}")
        draw_mechanism(dumps, args.out / f"mechanism_{where}")
        plt.close("all")
    (args.out / "grams.md").write_text("\n".join(page))
    print(f"wrote {args.out}/grams.md and its pictures")


if __name__ == "__main__":
    main()
