"""What the scripts for tables and figures share: run directories and gradient dumps as arrays, statistics over seeds, output.

A script maps names of tables or figures to functions: from the runs to (title, Markdown lines, matplotlib figure or None).
"""

import csv
import json
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import matplotlib
import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "ablations")]  # for fairgrad_solver and, in Table B.2, the training scripts

LADDER = {"vanilla_mtppo": "Vanilla MT-PPO", "ln": "+LN-c", "ln_popart": "+LN-c +PopArt", "ln_fairgrad": "+LN-c +FG-c",
          "ln_popart_fairgrad": "+LN-c +PopArt +FG-c", "toppo_mt50": "TOPPO"}  # fmt: skip
METHODS = LADDER | {
    "popart": "+PopArt", "fairgrad": "+FG-c", "popart_fairgrad": "+PopArt +FG-c",
    "ln_popart_fairgrad_fairgrad": "+LN-c +PopArt, FG-a, FG-c", "ln_popart_pcgrad_pcgrad": "+LN-c +PopArt, PCGrad-a, PCGrad-c",
    "ln_popart_cagrad_cagrad": "+LN-c +PopArt, CAGrad-a, CAGrad-c", "symmetric_ln_popart": "+LN in both nets +PopArt",
    "toppo_popart_ema": "TOPPO, PopArt by EMA"}  # fmt: skip
SCRIPT_PATHS = {s: f"{s}.py" if s in ("vanilla_mtppo", "toppo_mt50") else f"ablations/{s}.py" for s in METHODS}
# Okabe and Ito's colours, distinct to the colour-blind, for the ladder; other methods repeat them with another line.
COLORS = dict(zip(METHODS, 3 * ["#000000", "#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2"]))
DASHES = {s: "-" if s in LADDER else (0, (4, 1.5)) for s in METHODS}
WORST = (1, 3, 5, 10, 20)
# Flags in which the runs of a comparison may differ. All others must agree: seeds of one method are told apart by the seed alone.
FREE = {"script", "seed", "run_dir", "resume", "total_timesteps", "eval_interval", "cuda", "torch_threads", "num_workers",
        "num_envs_per_task", "track", "dump_gradients_every", "benchmark", "tasks"}  # fmt: skip


Array = NDArray[np.float64]
Key = tuple[str, str, int]  # task set, reward, step


class Missing(Exception):
    """What the given runs lack for a table or figure, and the command that makes it."""


class Run(NamedTuple):
    path: Path
    script: str
    seed: int
    args: dict[str, Any]
    tasks: tuple[str, ...]  # by name
    task_set: str  # "MT10" or the tasks' names
    reward: str  # "v1" or "v2"
    steps: NDArray[np.int64]  # [C], of the evaluations
    success: Array  # [C, K], success rates


class Seeds(NamedTuple):
    """The runs of one script on one task set and reward, up to a step at which all of them were evaluated."""

    script: str
    runs: list[Run]
    steps: NDArray[np.int64]  # [C], of the evaluations that all runs have
    success: Array  # [n, C, K]


class Dump(NamedTuple):
    """A gradient dump. Of the gradients themselves only inner products matter here: the critic's G [K, K] in fp64."""

    step: int
    critic_gram: Array
    sigma: Array | None  # [K], PopArt's


Items = dict[str, Callable[[list[Run]], tuple[str, list[str], Figure | None]]]  # title, Markdown lines, figure


def read_run(path: Path) -> Run:
    args = json.loads((path / "args.json").read_text())
    if args["script"] not in METHODS:
        raise Missing(f"{path}: a run of {args['script']}.py, which is none of the repository's scripts")
    rates: dict[int, dict[str, float]] = defaultdict(dict)
    if (path / "evals.csv").exists():
        with open(path / "evals.csv", newline="") as file:
            for row in csv.DictReader(file):
                rates[int(row["step"])][row["task"]] = float(row["success_rate"])
    if not rates:
        raise Missing(f"{path}: no evaluation in evals.csv; go on with: python {SCRIPT_PATHS[args['script']]} --resume {path}")
    steps = sorted(rates)
    tasks = tuple(sorted(rates[steps[0]]))
    short = [name.removesuffix("-v3") for name in tasks]
    named = ", ".join(short) if len(short) <= 4 else f"{len(short)} tasks from {short[0]} to {short[-1]}"
    success = np.array([[rates[step][task] for task in tasks] for step in steps])
    task_set, reward = named if args["tasks"] else args["benchmark"], args["reward_version"]
    return Run(path, args["script"], args["seed"], args, tasks, task_set, reward, np.array(steps), success)


def run_directories(paths: Iterable[str | Path]) -> list[Path]:
    """The run directories among paths, and those inside a path that is none."""
    found = []
    for path in map(Path, paths):
        inside = [path] if (path / "args.json").exists() else sorted(file.parent for file in path.glob("*/args.json"))
        if not inside:
            raise Missing(f"{path}: no run directory (no args.json); make one: python toppo_mt50.py --run-dir {path}")
        found += inside
    return found


def load_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Run directories, or folders of them, as Runs: by method, as in the paper's tables, and seed."""
    found = [read_run(path) for path in run_directories(paths)]
    runs = sorted(found, key=lambda run: ([*METHODS].index(run.script), run.seed))
    seen: dict[tuple[str | int, ...], Run] = {}
    for run in runs:
        key = run.task_set, run.reward
        same, first = seen.setdefault((*key, run.script, run.seed), run), seen.setdefault(key, run)
        if same is not run:
            raise Missing(f"{same.path} and {run.path} are both seed {run.seed} of {run.script}.py: leave one out")
        differing = [f"--{f.replace('_', '-')}" for f in sorted(run.args.keys() & first.args.keys() - FREE)
                     if run.args[f] != first.args[f]]  # fmt: skip
        if differing or run.tasks != first.tasks:
            flags = ", ".join(differing) or "--tasks"
            raise Missing(f"{first.path} and {run.path} differ in {flags}: show them in separate calls")
    return runs


def groups(
    runs: list[Run], reward: str | None = None, task_set: str | None = None, scripts: Sequence[str] | None = None
) -> dict[Key, dict[str, Seeds]]:
    """{(task set, reward, step): {script: Seeds}} of the runs that match, MT10 before MT50 before others. Methods are compared at
    equal steps: where some runs end before others, there is a group for each end, at the last step up to there at which the most
    of the runs that get so far were evaluated. Of scripts to be compared, one alone is a group only if there is no other."""
    found: dict[Key, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    matching = [run for run in runs if reward in (None, run.reward) and task_set in (None, run.task_set)
                and run.script in (scripts or METHODS)]  # fmt: skip
    for name in {run.task_set for run in matching}:
        same, steps = [run for run in matching if run.task_set == name], set()
        for end in {int(run.steps[-1]) for run in same} - {0}:
            counts = Counter(int(step) for run in same if run.steps[-1] >= end for step in run.steps if 0 < step <= end)
            steps.add(max(counts, key=lambda step: (counts[step], step)))
        for step in steps:
            for run in [run for run in same if step in run.steps]:
                found[name, run.reward, step][run.script].append(run)
    if not found:
        which = ", ".join(f"{s}.py" for s in scripts) if scripts else "any script"
        wanted = (f" on {task_set}" if task_set else "") + (f" with {reward.upper()} rewards" if reward else "")
        flags = (f" --benchmark {task_set}" if task_set else "") + (" --reward-version v1" if reward == "v1" else "")
        path = SCRIPT_PATHS[scripts[0] if scripts else "toppo_mt50"]
        raise Missing(f"no run of {which}{wanted} that was evaluated after step 0; make one: python {path}{flags}")
    compared = [key for key in found if not scripts or len(found[key]) > 1] or found
    order = sorted(compared, key=lambda key: (len(key[0]), key))
    return {key: {script: up_to(key[2], members) for script, members in found[key].items()} for key in order}


def up_to(step: int, runs: list[Run]) -> Seeds:
    steps = np.array(sorted(set.intersection(*(set(run.steps[run.steps <= step].tolist()) for run in runs))))
    return Seeds(runs[0].script, runs, steps, np.stack([run.success[np.isin(run.steps, steps)] for run in runs]))


# Statistics. Success is [n, C, K]: seeds, checkpoints, tasks; rates are in percent only where they are printed.


def worst(rates: Array, k: int | None) -> Array:
    """Mean of the k lowest success rates, of all with k = None. rates [..., K]. Returns [...]."""
    return np.sort(rates, axis=-1)[..., :k].mean(-1)


def tail_size(num_tasks: int) -> int:
    """k of the worst-k where a table has room for one: the paper's 10 where that is a part of the tasks, else 3, else 1."""
    return next(k for k in (10, 3, 1) if k < num_tasks or k == 1)


def best(success: Array) -> Array:
    """Each seed's highest mean success over its checkpoints. Returns [n]."""
    return success.mean(-1).max(1)


def peak(success: Array) -> float:
    """The highest point of the seeds' mean curve."""
    return success.mean((0, 2)).max()


def final(success: Array) -> Array:
    """Each seed's mean success at the last checkpoint. Returns [n]."""
    return success[:, -1].mean(-1)


def late(success: Array) -> Array:
    """Each seed's mean success over the last tenth of its checkpoints, rounded, at least one (our choice). Returns [n]."""
    return success[:, -max(1, round(success.shape[1] / 10)) :].mean((1, 2))


def iqm(success: Array) -> tuple[float, Array | None, float | None]:
    """rliable's interquartile mean of the last checkpoint over seeds and tasks, its 95% stratified bootstrap interval and the
    std over seeds of each seed's own IQM; the last two None for a single seed."""
    from rliable import library, metrics  # imports pandas and more, which only this needs

    scores = success[:, -1]
    if len(scores) == 1:
        return metrics.aggregate_iqm(scores), None, None
    np.random.seed(0)  # noqa: NPY002  rliable 1.2 draws from numpy's global state, whatever random_state it is given
    _, intervals = library.get_interval_estimates({"x": scores}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=2000)
    each = [metrics.aggregate_iqm(seed[None]) for seed in scores]
    return metrics.aggregate_iqm(scores), intervals["x"][:, 0], np.std(each, ddof=1)


# Markdown.


def percent(values: ArrayLike) -> str:
    """Mean ± sample std over seeds in percent, the mean alone for a single seed. values [n] or one number."""
    values = 100 * np.atleast_1d(values)
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def millions(steps: float) -> str:
    return f"{steps / 1e6:.3g} M"


def seed_counts(methods: dict[str, Seeds]) -> str:
    """The seeds in words: n = 2, or n = 1 to 3 where the methods {script: Seeds} have different numbers of them."""
    counts = sorted({len(seeds.runs) for seeds in methods.values()})
    return f"n = {counts[0]}" + (f" to {counts[-1]}" if len(counts) > 1 else "")


def where(task_set: str, reward: str, step: int) -> str:
    return f"{task_set}, {reward.upper()}, {millions(step)} steps"


def table(header: Sequence[str], rows: Iterable[Iterable[object]]) -> list[str]:
    return [f"| {' | '.join(header)} |", "|" + "---|" * len(header), *(f"| {' | '.join(map(str, row))} |" for row in rows), ""]


def heading(key: Key, methods: dict[str, Seeds]) -> list[str]:
    """A section's title, and what its numbers rest on where that is less than the paper's. methods {script: Seeds}."""
    num_tasks = len(next(iter(methods.values())).runs[0].tasks)
    budget = f" of the paper's {2 * num_tasks} M" if key[0] in ("MT10", "MT50") and key[2] < 2e6 * num_tasks else ""
    lines, most = [f"## {where(*key)}{budget}", ""], max(len(seeds.runs) for seeds in methods.values())
    goals = next(iter(methods.values())).runs[0].args.get("eval_episodes", 50)  # load_runs holds all runs to the same
    lines += [f"Evaluated on {goals} of each task's 50 training goals.", ""] if goals < 50 else []
    if most == 1:
        return [*lines, "One seed each: an illustration, no comparison.", ""]
    return lines + ([f"Few seeds, {seed_counts(methods)}; the paper has 10.", ""] if most < 10 else [])


def row_start(seeds: Seeds) -> list[str | int]:
    """The cells that a row over seeds begins with."""
    return [METHODS[seeds.script], len(seeds.runs)]


ROW_START = ["method", "n"]
STATISTICS = "Mean ± sample std over n seeds; a single seed has no std."


# What a run logs and dumps.


@cache
def scalars(path: Path) -> dict[str, tuple[NDArray[np.int64], Array]]:
    """All that a run logged, from its TensorBoard events or else its scalars.csv: {tag: (steps [C], values [C])}."""
    # {tag: {step: value}}; of a collect redone after a kill, the later value
    rows: dict[str, dict[int, float]] = defaultdict(dict)
    if any(path.glob("events.out.tfevents*")):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(path), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            rows[tag] = {event.step: event.value for event in events.Scalars(tag)}
    elif (path / "scalars.csv").exists():
        with open(path / "scalars.csv", newline="") as file:
            for row in csv.DictReader(file):
                rows[row["tag"]][int(row["step"])] = float(row["value"])
    else:
        script = SCRIPT_PATHS[json.loads((path / "args.json").read_text())["script"]]
        raise Missing(f"{path}: neither TensorBoard events nor scalars.csv; a run leaves the first: python {script}")
    return {tag: (np.array(sorted(rows[tag])), np.array([rows[tag][step] for step in sorted(rows[tag])])) for tag in rows}


def logged(seeds: Seeds, tag: str) -> tuple[NDArray[np.int64], Array]:
    """A tag's curves up to the Seeds' last evaluation, at the steps that all runs have. Returns steps [C], values [n, C]."""
    absent = [run.path for run in seeds.runs if tag not in scalars(run.path)]
    if absent:
        command = f"python {SCRIPT_PATHS[seeds.script]} --resume {absent[0]}"
        raise Missing(f"{absent[0]}: nothing logged as {tag}, which every collect does; go on with: {command}")
    series = [scalars(run.path)[tag] for run in seeds.runs]
    steps = np.array(sorted(set.intersection(*(set(s[s <= seeds.steps[-1]].tolist()) for s, _ in series))))
    return steps, np.stack([values[np.isin(s, steps)] for s, values in series])


def gram(gradients: NDArray[np.floating]) -> Array:
    """G = J J^T in fp64 of J = gradients [K, D], in blocks of columns to bound memory. Returns [K, K]."""
    blocks = (gradients[:, i : i + (1 << 16)].astype(np.float64) for i in range(0, gradients.shape[1], 1 << 16))
    return sum((block @ block.T for block in blocks), start=np.zeros((len(gradients), len(gradients))))


@cache
def read_dump(file: Path) -> Dump:
    """A dump as a training script wrote it, or its summary by compact.py."""
    try:
        with np.load(file, allow_pickle=False) as x:
            G = x["critic_gram"] if "critic_gram" in x else gram(x["critic_gradients"])
            return Dump(int(x["global_step"]), G, x["popart_sigma"] if "popart_sigma" in x else None)
    except (BadZipFile, EOFError, KeyError, ValueError) as error:
        raise Missing(f"{file}: no gradient dump as --dump-gradients-every N writes it ({error}); delete it") from error


def dump_files(run: Run) -> list[Path]:
    return sorted(run.path.glob("gradients/collect_*.npz"))


def first_with_dumps(runs: list[Run], scripts: Sequence[str], what: str) -> Run:
    """The first run with gradient dumps of the first of scripts that has one; what says for what, if there is none."""
    for script in scripts:
        for run in runs:
            if run.script == script and dump_files(run):
                return run
    names = f"{scripts[0]}.py or {len(scripts) - 1} other scripts that would do"
    command = f"python {SCRIPT_PATHS[scripts[0]]} --benchmark MT10 --dump-gradients-every 10"
    raise Missing(f"no gradient dumps for {what}, of {names}; make some: {command}")


def early_middle_late(files: list[Path]) -> dict[str, Path]:
    """{"early": first, "middle": .., "late": last} of files; fewer where there are fewer than three."""
    names = {1: ["only"], 2: ["early", "late"]}.get(len(files), ["early", "middle", "late"])
    return {name: files[i] for name, i in zip(names, np.linspace(0, len(files) - 1, len(names)).astype(int))}


def cosines(G: Array) -> Array:
    """Cosines of all pairs of gradients; nan where one is zero. G [K, K]."""
    norms = np.sqrt(G.diagonal())
    with np.errstate(invalid="ignore", divide="ignore"):
        return G / np.outer(norms, norms)


def mean_off_diagonal(matrix: Array) -> float:
    return float(np.nanmean(matrix[~np.eye(len(matrix), dtype=bool)]))


def norm_spread(G: Array) -> float:
    """Largest over smallest norm of the gradients that are not zero."""
    norms = np.sqrt(G.diagonal()[G.diagonal() > 0])
    return norms.max() / norms.min()


# Figures.


def plot_band(
    axis: Axes, steps: NDArray[np.int64], values: Array, script: str, label: str | None = None, **style: Any
) -> None:
    """A mean curve over seeds with a band of one sample std; no band from one seed. values [n, C]."""
    style = {"color": COLORS[script], "linestyle": DASHES[script], "linewidth": 1.6, **style}
    marker = "o" if len(steps) <= 30 else None
    mean = values.mean(0)
    (line,) = axis.plot(steps / 1e6, mean, marker=marker, markersize=3, label=label, **style)
    if len(values) > 1:
        std = values.std(0, ddof=1)
        axis.fill_between(steps / 1e6, mean - std, mean + std, color=line.get_color(), alpha=0.18, linewidth=0)


def grid(rows: int, columns: int, width: float = 4.2, height: float = 3.1) -> tuple[Figure, NDArray[np.object_]]:
    """A figure and its axes [rows, columns] with light grid lines."""
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    return figure, axes


def tiles(count: int, columns: int, width: float, height: float) -> tuple[Figure, NDArray[np.object_]]:
    """A figure and count axes, in rows of at most columns."""
    columns = min(columns, count)
    figure, axes = grid(math.ceil(count / columns), columns, width, height)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, axes.flat[:count]


def legend_below(figure: Figure) -> None:
    """One legend for the labelled lines of all axes."""
    lines = {name: line for axis in figure.axes for line in axis.lines if not (name := str(line.get_label())).startswith("_")}
    figure.legend([*lines.values()], [*lines], loc="outside lower center", ncols=min(3, len(lines)), frameon=False, fontsize=9)


# The command line.


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """run directories (runs/NAME, written by a training script or by compact.py), or folders of them such as runs/"""
    out: Path = Path("results/paper")
    """folder that the Markdown and PNG files go to"""


def produce(items: Items, runs: list[Run], out: Path) -> dict[str, tuple[str, list[str]] | Missing]:
    """Writes out/NAME.md and NAME.png for items {name: function of the runs}. Returns {name: (title, lines) or a Missing}."""
    made: dict[str, tuple[str, list[str]] | Missing] = {}
    for name, function in items.items():
        try:
            title, lines, figure = function(runs)
        except Missing as reason:
            made[name] = reason
            continue
        out.mkdir(parents=True, exist_ok=True)
        image = [f"![{title}]({name}.png)", ""] if figure else []
        if figure:
            figure.savefig(out / f"{name}.png", dpi=110)
            plt.close(figure)
        (out / f"{name}.md").write_text("\n".join([f"# {title}", "", *image, *lines]).rstrip() + "\n")
        made[name] = title, lines
    return made


def main(doc: str, items: Items) -> None:
    args = tyro.cli(Args, description=doc)
    try:
        made = produce(items, load_runs(args.runs), args.out)
    except Missing as reason:
        made = {Path(sys.argv[0]).stem: reason}
    for name, result in made.items():
        if isinstance(result, Missing):
            print(f"{name}: {result}", file=sys.stderr)
        else:
            print(f"wrote {args.out / name}.md" + (" and .png" if (args.out / f"{name}.png").exists() else ""))
    if all(isinstance(result, Missing) for result in made.values()):
        sys.exit(2)
