"""The paper's tables from run directories: one page of Markdown, the paper's numbers beside ours.

    python paper/tables.py runs --out runs/tables.md

A table compares methods at one step, with a row for each that was evaluated there. Success is in
percent: of one or two seeds each seed's, of more the mean ± the sample standard deviation. IQM is
the mean of the middle half of a seed's tasks, worst k that of its own k lowest.
"""

import ast
import json
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from scipy.stats import trim_mean

ROOT = Path(__file__).resolve().parents[1]
METHODS = {  # script: its name in the tables, in the ladder's order
    "vanilla_mtppo": "Vanilla MT-PPO",
    "ln": "+LN-c",
    "ln_popart": "+LN-c +PopArt",
    "ln_fairgrad": "+LN-c +FG-c",
    "ln_popart_fairgrad": "+LN-c +PopArt +FG-c",
    "toppo_mt50": "TOPPO",
    "popart": "+PopArt",
    "fairgrad": "+FG-c",
    "popart_fairgrad": "+PopArt +FG-c",
    "ln_popart_fairgrad_fairgrad": "+LN-c +PopArt +FG-a +FG-c",
    "ln_popart_pcgrad_pcgrad": "+LN-c +PopArt +PCGrad-a +PCGrad-c",
    "ln_popart_cagrad_cagrad": "+LN-c +PopArt +CAGrad-a +CAGrad-c",
    "symmetric_ln_popart": "+LN-a +LN-c +PopArt",
    "toppo_popart_ema": "TOPPO with EMA",
    "vanilla_envpool": "Vanilla MT-PPO on EnvPool",
    "toppo_envpool": "TOPPO on EnvPool",
}
ORDER = list(METHODS.values())


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run directories, or folders with some anywhere inside"""
    steps: tuple[float, ...] = (1, 2, 4, 6, 12, 20, 100)
    """million steps to compare methods at, where two of them, or one full run, were evaluated"""
    out: Path = Path("runs/tables.md")
    """the page"""


def fail(message):
    sys.exit(f"{Path(sys.argv[0]).name}: error: {message}")


# --- Runs


def load(paths):
    """Reads runs. Returns a row for each run, evaluation and task."""
    frames, algorithms = [], {}
    for folder in run_directories(paths):
        args = json.loads((folder / "args.json").read_text())
        evals = pd.read_csv(folder / "evals.csv")
        names = sorted(evals.task.unique())
        tasks = f"MT{len(names)}"
        if tasks != args["benchmark"]:
            tasks = " ".join(name.removesuffix("-v3") for name in names)
        method, reward = label(args), args["reward_version"].upper()

        # Runs under one name are runs of one algorithm; a flag that is absent has its default
        defaults = algorithm_flags(args["script"])
        flags = {name: args.get(name, default) for name, default in defaults.items()}
        flags["tasks"] = names
        first, expected = algorithms.setdefault((method, tasks, reward), (folder, flags))
        for name in expected:
            if flags[name] != expected[name]:
                fail(
                    f"{method}: {name} is {expected[name]} in {first} and {flags[name]} in {folder}"
                    '; give one of the runs a "variant" in its args.json, or make two pages'
                )
        evals["success"] = 100 * evals.success_rate  # in percent
        columns = {"script": args["script"], "seed": args["seed"], "tasks": tasks, "reward": reward}
        frames.append(evals.assign(run=str(folder), method=method, **columns))
    return pd.concat(frames, ignore_index=True)


def run_directories(paths):
    """The directories of runs, in and under paths, each once."""
    found = {}
    for path in paths:
        folders = [file.parent for file in sorted(Path(path).rglob("args.json"))]
        runs = {x.resolve(): x for x in folders if (x / "evals.csv").exists()}
        if not runs:
            fail(f"{path} has no run: no directory with args.json and evals.csv")
        found |= runs
    return found.values() or fail("expected run directories, such as runs")


def label(args):
    """The name of a run's method, with what it changes of the usual settings."""
    parts = [METHODS.get(args["script"], args["script"])]
    if args.get("adam_eps", 1e-5) != 1e-5:
        parts.append(f"ε = {args['adam_eps']:.0e}".replace("e-0", "e-"))
    if not args.get("clip_vloss", True):
        parts.append("no value clip")
    if "variant" in args:  # a run of an edited script
        parts.append(args["variant"])
    return ", ".join(parts)


@cache
def algorithm_flags(script):
    """{flag: default} of a script's flags before total_timesteps, without those that name a run."""
    files = [ROOT / f"{script}.py", ROOT / f"ablations/{script}.py", ROOT / "toppo_mt50.py"]
    tree = ast.parse(next(file for file in files if file.exists()).read_text())
    fields = next(x.body for x in tree.body if isinstance(x, ast.ClassDef) and x.name == "Args")
    found = {}
    for field in fields:
        if isinstance(field, ast.AnnAssign):
            found[field.target.id] = json.loads(json.dumps(ast.literal_eval(field.value)))
    names = list(found)[: list(found).index("total_timesteps")]
    return {n: found[n] for n in names if n not in ("seed", "benchmark", "tasks", "reward_version")}


def in_order(methods):
    """The ladder's order, variants behind their rung, scripts that are not ours at the end."""
    bases = {method: method.split(",")[0] for method in methods}
    return sorted(bases, key=lambda m: ([*ORDER, bases[m]].index(bases[m]), m))


# --- What is published


def read_published():
    """published.csv and published_figure1.csv as one table."""
    figure = pd.read_csv(ROOT / "paper/published_figure1.csv", comment="#")
    crossing = figure.kind == "crossing"
    names = {"curve": "mean", "baseline": "mean", "crossing": "TOPPO is there, M"}
    figure["metric"] = figure.kind.replace(names).str.replace("_", " ")
    figure["value"] = figure.success.mask(crossing, figure.step_m)
    figure["step"] = figure.step_m.mask(crossing, 100)
    table = pd.read_csv(ROOT / "paper/published.csv")
    return pd.concat([table, figure.assign(tasks="MT50", reward="V2")])


PUBLISHED = read_published()


def papers(method, tasks, reward, millions, metric="mean"):
    """A published number, as text. ≈: between two steps of the paper's Figure 1."""
    rows = PUBLISHED.query("method == @method and tasks == @tasks and reward == @reward")
    rows = rows[rows.metric == metric].sort_values("step")
    if millions in rows.step.values:
        return f"{rows.value[rows.step == millions].iloc[0]:.1f}"
    if not rows.step.min() < millions < rows.step.max():
        return "–"
    return f"≈ {np.interp(millions, rows.step, rows.value):.1f}"


# --- Tables


def cell(x):
    """One or two seeds' numbers; of more seeds mean ± sample standard deviation."""
    if len(x) > 2:
        return f"{x.mean():.1f} ± {x.std():.1f}"
    return ", ".join(f"{value:.1f}" for value in x)


def worst(success, k):
    return success.nsmallest(k).mean()


def success_table(end, where):
    """Tables 2, 3, D.1, D.2 and D.4. end: rows of one step; where: task set, reward, M steps."""
    each = end.groupby(["method", "run"]).success
    metrics = {"mean": each.mean(), "IQM": each.apply(trim_mean, 0.25)}
    for k in (1, 3, 5, 10, 20):
        if k < end.task.nunique():
            metrics[f"worst {k}"] = each.apply(worst, k=k)
    metrics = {
        m: x.groupby("method").agg(cell) for m, x in metrics.items() if x.any() or m == "mean"
    }
    table = pd.DataFrame(metrics)
    table = table.loc[in_order(table.index)]
    for column in list(table):
        theirs = [papers(method, *where, column) for method in table.index]
        if set(theirs) != {"–"}:
            table.insert(table.columns.get_loc(column) + 1, f"the paper's {column}", theirs)
    table.insert(0, "n", each.mean().groupby("method").size())
    return table


def best_table(runs, where):
    """Tables D.10 and D.11, of runs that went all the way."""
    rows = {}
    for method in in_order(runs.method):
        curves = runs[runs.method == method].groupby(["run", "step"]).success.mean().unstack()
        curves = curves.dropna(axis=1)  # [n, evaluations that all seeds have]
        tenth = max(1, round(curves.shape[1] / 10))
        names = ("median", "lower quartile", "upper quartile", "least", "most")
        ours = (curves.idxmax(axis=1) / 1e6).quantile([0.5, 0.25, 0.75, 0, 1])
        theirs = [papers(method, *where, f"step of the best, {name}") for name in names]
        rows[method] = {
            "n": len(curves),
            "best": cell(curves.max(axis=1)),
            "peak": f"{curves.mean().max():.1f}",
            "final": cell(curves.iloc[:, -1]),
            "late": cell(curves.iloc[:, -tenth:].mean(axis=1)),
            "step of the best, M": "{:.1f} [{:.1f}, {:.1f}], {:.1f} to {:.1f}".format(*ours),
            "the paper's": "{} [{}, {}], {} to {}".format(*theirs),
        }
    return pd.DataFrame(rows).T


def baseline_table(runs, where):
    """Published baselines, and the first evaluation at which our mean over seeds is as high."""
    table = PUBLISHED.query("tasks == @where[0] and reward == @where[1] and method not in @ORDER")
    table = table.pivot_table(index="method", columns="metric", values="value")
    statistic = {"V1": "IQM", "V2": "mean"}[where[1]]
    if statistic not in table:
        return None
    table = table.dropna(subset=statistic).sort_values(statistic)
    each = runs.groupby(["method", "step"]).success
    ours = each.mean() if statistic == "mean" else each.apply(trim_mean, 0.25)
    for method in in_order(runs.method):
        reached = [ours[method][ours[method] >= level] for level in table[statistic]]
        table[f"{method}, M"] = [x.index[0] / 1e6 if len(x) else None for x in reached]
    return table.dropna(axis=1, how="all").map(lambda x: "–" if pd.isna(x) else f"{x:g}")


def compared_steps(runs, millions):
    """Steps that two methods or a full run have; where there are none, the last that all have."""
    full = 2_000_000 * runs.task.nunique()
    num_methods = runs.groupby("step").method.nunique()
    wanted = {round(m * 1e6) for m in millions} | {full}
    found = [s for s in num_methods.index if s in wanted and (num_methods[s] > 1 or s >= full)]
    in_all = runs.groupby("step").run.nunique() == runs.run.nunique()
    return found or [max(in_all.index[in_all], default=0)]


def sections(runs, millions=Args.steps):
    """(title, table) of each table, for each task set, reward and step."""
    ends = runs.sort_values("step").groupby("run").last().assign(M=lambda x: x.step / 1e6)
    yield "The runs", ends[["method", "tasks", "reward", "seed", "M", "episodes"]]

    for (tasks, reward), of_set in runs.groupby(["tasks", "reward"]):
        for step in compared_steps(of_set, millions):
            end = of_set[of_set.step == step]
            where = (tasks, reward, step / 1e6)
            title = f"{tasks}, {reward}, {step / 1e6:g} M steps"
            yield f"Tables 2, 3, D.1, D.2 and D.4: {title}", success_table(end, where)

            per_task = end.groupby(["task", "method"]).success.agg(cell).unstack()
            order = end.groupby("task").success.mean().sort_values(kind="stable").index
            yield f"Tables D.5 to D.7: {title}", per_task.loc[order, in_order(end.method)]

            if step >= 2_000_000 * end.task.nunique():
                until = of_set[of_set.run.isin(end.run) & (of_set.step <= step)]
                yield f"Tables D.10 and D.11: {title}", best_table(until, where)

        baselines = baseline_table(of_set, (tasks, reward))
        if baselines is not None:
            yield f"Published baselines: {tasks}, {reward}", baselines


def markdown(table):
    rows = [[table.index.name or "method", *table.columns], ["---"] * (1 + table.shape[1])]
    rows += table.reset_index().values.tolist()
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def main():
    args = tyro.cli(Args, description=__doc__)
    parts = [f"## {t}\n\n{markdown(x)}\n" for t, x in sections(load(args.runs), args.steps)]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(parts))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
