"""What the scripts for tables and figures share.

Run directories and gradient dumps as arrays, statistics over seeds, and output. A script maps the
names of its tables or figures to functions of the runs, which return a title, Markdown lines and a
matplotlib figure or None.
"""

import csv
import hashlib
import json
import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
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
# For fairgrad_solver and, in Table B.2, the training scripts
sys.path[:0] = [str(ROOT), str(ROOT / "ablations")]

LADDER = {
    "vanilla_mtppo": "Vanilla MT-PPO",
    "ln": "+LN-c",
    "ln_popart": "+LN-c +PopArt",
    "ln_fairgrad": "+LN-c +FG-c",
    "ln_popart_fairgrad": "+LN-c +PopArt +FG-c",
    "toppo_mt50": "TOPPO",
}
SCRIPTS = LADDER | {
    "popart": "+PopArt",
    "fairgrad": "+FG-c",
    "popart_fairgrad": "+PopArt +FG-c",
    "ln_popart_fairgrad_fairgrad": "+LN-c +PopArt, FG-a, FG-c",
    "ln_popart_pcgrad_pcgrad": "+LN-c +PopArt, PCGrad-a, PCGrad-c",
    "ln_popart_cagrad_cagrad": "+LN-c +PopArt, CAGrad-a, CAGrad-c",
    "symmetric_ln_popart": "+LN in both nets +PopArt",
    "toppo_popart_ema": "TOPPO, PopArt by EMA",
}
NO_CLIP = " --no-clip-vloss"  # a script with this flag is a method of its own, a control
METHODS = SCRIPTS | {s + NO_CLIP: f"{name}, no value clip" for s, name in SCRIPTS.items()}
IN_ROOT = ("vanilla_mtppo", "toppo_mt50")
SCRIPT_PATHS = {s: f"{s}.py" if s in IN_ROOT else f"ablations/{s}.py" for s in SCRIPTS}
SCRIPT_PATHS |= {s + NO_CLIP: path + NO_CLIP for s, path in SCRIPT_PATHS.items()}

# Okabe and Ito's colours, distinct to the colour-blind, for the ladder. Other scripts repeat them
# with another line, and so does a script without the value clip.
PALETTE = ["#000000", "#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2"]
COLORS = dict(zip(SCRIPTS, 3 * PALETTE))
COLORS |= {s + NO_CLIP: color for s, color in COLORS.items()}
DASHES: dict[str, Any] = {s: "-" if s in LADDER else (0, (4, 1.5)) for s in SCRIPTS}
DASHES |= {s + NO_CLIP: (0, (5, 1.2, 1, 1.2)) for s in SCRIPTS}
WORST = (1, 3, 5, 10, 20)
PERCENT = (0.0, 100.0)  # what no band of a success rate leaves
MOST_NAMED = 2 * len(PALETTE)  # tasks that a figure can tell apart: each colour, solid and dashed

# What the runs of a comparison may differ in. All other flags must agree: seeds of one method are
# told apart by the seed alone, and by whether they are of the first version, which drew other
# random numbers.
FREE = {
    "script",
    "seed",
    "benchmark",
    "tasks",
    "total_timesteps",
    "eval_interval",
    "clip_vloss",
    "keep_checkpoints_every",
    "run_dir",
    "cuda",
    "torch_threads",
    "num_workers",
    "track",
    "commit",
    "edits",
    "packages",
    # Of the scripts' first version, whose runs are in results/
    "resume",
    "num_envs_per_task",
    "dump_gradients_every",
}
FIRST_VERSION = {"adam_eps": 1e-5}  # what was no flag yet
FIRST_COMMIT = "24b7fef"  # of all its runs in results/, which do not say so


Array = NDArray[np.float64]
Key = tuple[str, str, int]  # task set, reward, step


class Missing(Exception):
    """What the given runs lack for a table or figure, and the command that makes it."""


class Run(NamedTuple):
    path: Path
    script: str  # a key of METHODS
    seed: int
    args: dict[str, Any]
    tasks: tuple[str, ...]  # by name
    task_set: str  # "MT10" or the tasks' names
    reward: str  # "v1" or "v2"
    steps: NDArray[np.int64]  # [C], of the evaluations
    goals: NDArray[np.int64]  # [C], of each task, one episode each
    success: Array  # [C, K], success rates


class Seeds(NamedTuple):
    """One script's runs on one task set and reward, to a step at which all were evaluated."""

    script: str
    runs: list[Run]
    steps: NDArray[np.int64]  # [C], of the evaluations that all runs have
    success: Array  # [n, C, K]


class Dump(NamedTuple):
    """A gradient dump. Of the gradients themselves only inner products matter here."""

    step: int
    tasks: list[str]  # [K]
    critic_gram: Array  # G [K, K], in fp64
    sigma: Array | None  # [K], PopArt's


Item = tuple[str, list[str], Figure | None]  # title, Markdown lines, figure
Items = dict[str, Callable[[list[Run]], Item]]


def read_run(path: Path) -> Run:
    args = FIRST_VERSION | json.loads((path / "args.json").read_text())
    script = args["script"]
    if script not in SCRIPTS:
        raise Missing(f"{path}: a run of {script}.py, which is none of the repository's scripts")
    if not args.get("clip_vloss", True):
        script += NO_CLIP
    rates: dict[int, dict[str, float]] = defaultdict(dict)
    goals: dict[int, int] = {}
    if (path / "evals.csv").exists():
        with open(path / "evals.csv", newline="") as file:
            for row in csv.DictReader(file):
                step = int(row["step"])
                rates[step][row["task"]] = float(row["success_rate"])
                goals[step] = int(row["episodes"])
    if not rates:
        raise Missing(f"{path}: no evaluation in evals.csv; {go_on(script, path)}")
    steps = sorted(rates)
    tasks = tuple(sorted(rates[steps[0]]))
    return Run(
        path=path,
        script=script,
        seed=args["seed"],
        args=args,
        tasks=tasks,
        task_set=name_of_tasks(args, tasks),
        reward=args["reward_version"],
        steps=np.array(steps),
        goals=np.array([goals[step] for step in steps]),
        success=np.array([[rates[step][task] for task in tasks] for step in steps]),
    )


def name_of_tasks(args: dict[str, Any], tasks: tuple[str, ...]) -> str:
    """The benchmark's name if these are its tasks, else the tasks' names."""
    if not args["tasks"]:  # of the scripts' first version, with --benchmark
        return args["benchmark"]
    from metaworld.env_dict import MT10_V3, MT25_V3, MT50_V3  # slow, and seldom needed

    for name, benchmark in (("MT10", MT10_V3), ("MT25", MT25_V3), ("MT50", MT50_V3)):
        if set(benchmark) == set(tasks):
            return name
    short = [name.removesuffix("-v3") for name in tasks]
    if len(short) <= 4:
        return ", ".join(short)
    return f"{len(short)} tasks from {short[0]} to {short[-1]}"


def commit(run: Run) -> str:
    """The commit that a run names, abbreviated. The scripts' first version named none."""
    name = run.args.get("commit", FIRST_COMMIT)[:7]
    return name if re.fullmatch("[0-9a-f]{7}", name) else "–"  # git's error, outside a clone


def is_first_version(run: Run) -> bool:
    return commit(run) == FIRST_COMMIT


def by_seed(run: Run) -> tuple[bool, int]:
    """What tells a method's runs apart and orders them, those of the first version last."""
    return is_first_version(run), run.seed


def go_on(script: str, path: Path) -> str:
    """How a run that lacks something is continued."""
    return f"go on with: python {SCRIPT_PATHS[script]} --run-dir {path}"


def run_directories(paths: Iterable[str | Path]) -> list[Path]:
    """The run directories among paths, and those inside a path that is none."""
    found = []
    for path in map(Path, paths):
        if (path / "args.json").exists():
            found.append(path)
            continue
        inside = sorted(file.parent for file in path.glob("*/args.json"))
        if not inside:
            command = f"python toppo_mt50.py --run-dir {path}"
            raise Missing(f"{path}: no run directory (no args.json); make one: {command}")
        found += inside
    return found


def load_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Run directories, or folders of them, as Runs in order of method and seed."""
    found = [read_run(path) for path in run_directories(paths)]
    runs = sorted(found, key=lambda run: ([*METHODS].index(run.script), *by_seed(run)))
    seen: dict[tuple[str | int, ...], Run] = {}
    for run in runs:
        key = run.task_set, run.reward
        same = seen.setdefault((*key, run.script, *by_seed(run)), run)
        if same is not run:
            both = f"{same.path} and {run.path} are both seed {run.seed} of "
            both += SCRIPT_PATHS[run.script]
            raise Missing(f"{both}: leave one out")
        first = seen.setdefault(key, run)
        held = sorted((run.args.keys() & first.args.keys()) - FREE)
        differing = [name for name in held if run.args[name] != first.args[name]]
        if differing or run.tasks != first.tasks:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in differing or ["tasks"])
            both = f"{first.path} and {run.path}"
            raise Missing(f"{both} differ in {flags}: show them in separate calls")
    return runs


def with_clip(runs: list[Run]) -> list[Run]:
    """For the figures in which the runs without the value clip would be too many lines."""
    return [run for run in runs if run.script in SCRIPTS]


def groups(
    runs: list[Run],
    reward: str | None = None,
    task_set: str | None = None,
    scripts: Sequence[str] | None = None,
) -> dict[Key, dict[str, Seeds]]:
    """The runs that match, as {(task set, reward, step): {script: Seeds}}, MT10 before MT50.

    Methods are compared at equal steps. Where some runs end before others, there is a group for
    each end, at the last step up to there at which the most of the runs that get so far were
    evaluated. Of scripts to be compared, one alone is a group only if there is no other.
    """
    matching = [
        run
        for run in runs
        if reward in (None, run.reward)
        and task_set in (None, run.task_set)
        and run.script in (scripts or METHODS)
    ]
    found: dict[Key, dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for name in {run.task_set for run in matching}:
        same = [run for run in matching if run.task_set == name]
        for step in steps_to_compare_at(same):
            for run in [run for run in same if step in run.steps]:
                found[name, run.reward, step][run.script].append(run)
    if not found:
        raise Missing(no_run(reward, task_set, scripts))
    compared = [key for key in found if not scripts or len(found[key]) > 1] or found
    order = sorted(compared, key=lambda key: (len(key[0]), key))
    return {
        key: {script: up_to(key[2], members) for script, members in found[key].items()}
        for key in order
    }


def steps_to_compare_at(runs: list[Run]) -> set[int]:
    """For each end of a run the step up to there at which most of the runs were evaluated."""
    steps = set()
    for end in {int(run.steps[-1]) for run in runs} - {0}:
        counts: Counter[int] = Counter()
        for run in runs:
            if run.steps[-1] >= end:
                counts.update(run.steps[(run.steps > 0) & (run.steps <= end)].tolist())
        steps.add(max(counts, key=lambda step: (counts[step], step)))
    return steps


def no_run(reward: str | None, task_set: str | None, scripts: Sequence[str] | None) -> str:
    """What groups says where it finds nothing."""
    which = "any script"
    if scripts:
        which = ", ".join(Path(SCRIPT_PATHS[s]).name for s in scripts)
    command = f"python {SCRIPT_PATHS[scripts[0] if scripts else 'toppo_mt50']}"
    if task_set:
        which += f" on {task_set}"
        command += f" --benchmark {task_set}"
    if reward:
        which += f" with {reward.upper()} rewards"
    if reward == "v1":
        command += " --reward-version v1"
    return f"no run of {which} that was evaluated after step 0; make one: {command}"


def shared_steps(series: Iterable[NDArray[np.int64]], end: int) -> NDArray[np.int64]:
    """The steps up to end that are in all of series."""
    return np.array(sorted(set.intersection(*(set(s[s <= end].tolist()) for s in series))))


def up_to(step: int, runs: list[Run]) -> Seeds:
    steps = shared_steps([run.steps for run in runs], step)
    success = np.stack([run.success[np.isin(run.steps, steps)] for run in runs])
    return Seeds(runs[0].script, runs, steps, success)


# Statistics. Success is [n, C, K]: seeds, checkpoints, tasks. Rates are in percent only where they
# are printed.


def worst(rates: Array, k: int | None) -> Array:
    """Mean of the k lowest success rates, of all with k = None. rates [..., K]. Returns [...]."""
    return np.sort(rates, axis=-1)[..., :k].mean(-1)


def tail_size(num_tasks: int) -> int:
    """k of the worst-k where a table has room for one.

    It is the paper's 10 where that is a part of the tasks, 5 on MT10, else 3, else 1.
    """
    return next(k for k in (10, 5, 3, 1) if k < num_tasks or k == 1)


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
    """Each seed's mean success over the last tenth of its checkpoints (our choice). Returns [n]."""
    tenth = max(1, round(success.shape[1] / 10))
    return success[:, -tenth:].mean((1, 2))


def iqm(success: Array) -> tuple[float, Array | None, float | None]:
    """rliable's interquartile mean of the last checkpoint over seeds and tasks.

    Returns it, its 95% stratified bootstrap interval and the std over seeds of each seed's own
    IQM. Both are None for fewer than three seeds: resampling two knows three outcomes only.
    """
    from rliable import library, metrics  # imports pandas and more, which only this needs

    scores = success[:, -1]
    value = metrics.aggregate_iqm(scores)
    if len(scores) < 3:
        return value, None, None
    std = np.std([metrics.aggregate_iqm(seed[None]) for seed in scores], ddof=1)
    # rliable 1.2 draws from numpy's global state, whatever random_state it is given
    np.random.seed(0)  # noqa: NPY002
    _, intervals = library.get_interval_estimates(
        {"x": scores}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=2000
    )
    return value, intervals["x"][:, 0], std


# Markdown.


def percent(values: ArrayLike) -> str:
    """Mean ± sample std over seeds in percent; of two seeds the mean and, in brackets, both.

    values: [n] or one number.
    """
    values = 100 * np.atleast_1d(values)
    if len(values) == 1:
        return f"{values[0]:.1f}"
    if len(values) == 2:
        return f"{values.mean():.1f} ({values[0]:.1f}, {values[1]:.1f})"
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"


def millions(steps: float) -> str:
    return f"{steps / 1e6:.3g} M"


def seed_counts(methods: dict[str, Seeds]) -> str:
    """The seeds of {script: Seeds} in words: n = 2, or n = 1 to 3 where methods differ in it."""
    counts = sorted({len(seeds.runs) for seeds in methods.values()})
    return f"n = {counts[0]}" + (f" to {counts[-1]}" if len(counts) > 1 else "")


def where(task_set: str, reward: str, step: int) -> str:
    return f"{task_set}, {reward.upper()}, {millions(step)} steps"


def table(header: Sequence[str], rows: Iterable[Iterable[object]]) -> list[str]:
    return [
        f"| {' | '.join(header)} |",
        "|" + "---|" * len(header),
        *(f"| {' | '.join(map(str, row))} |" for row in rows),
        "",
    ]


def fewer_goals(run: Run) -> list[str]:
    """What a table says of a run that was evaluated on fewer goals than the paper's.

    The last evaluation may be on more than those before it.
    """
    fewest = run.goals.min()
    if fewest >= 50:
        return []
    said = f"Evaluated on {fewest} of each task's 50 training goals"
    if run.goals[-1] > fewest:
        said += f", at the end on {run.goals[-1]}"
    return [f"{said}.", ""]


def heading(
    key: Key, methods: dict[str, Seeds], expected: Iterable[str] = tuple(LADDER)
) -> list[str]:
    """A section's title, and what its numbers rest on where that is less than the paper's.

    methods: {script: Seeds}; expected: the scripts that a whole table has.
    """
    runs = [run for seeds in methods.values() for run in seeds.runs]
    num_tasks = len(runs[0].tasks)
    title = f"## {where(*key)}"
    if key[0] in ("MT10", "MT50") and key[2] < 2e6 * num_tasks:
        title += f" of the paper's {2 * num_tasks} M"
    lines = [title, ""]
    lines += fewer_goals(runs[0])  # load_runs holds all runs to the same
    most = max(len(seeds.runs) for seeds in methods.values())
    if most == 1:
        lines += ["One seed each: an illustration, no comparison.", ""]
    elif most < 10:
        lines += [f"Few seeds, {seed_counts(methods)}; the paper has 10.", ""]
    absent = [
        f"{METHODS[script]} (`{SCRIPT_PATHS[script]}`)"
        for script in expected
        if script not in methods
    ]
    if absent:
        lines += [f"No row, as no run was evaluated at this step: {', '.join(absent)}.", ""]
    return lines


def row_start(seeds: Seeds) -> list[str | int]:
    """The cells that a row over seeds begins with."""
    return [METHODS[seeds.script], len(seeds.runs)]


ROW_START = ["method", "n"]
STATISTICS = "Mean ± sample std over n seeds; of two seeds the mean and, in brackets, both."
CURVES = """\
Curves are means over seeds. From three seeds on there is a band of one sample std; two seeds are
thin lines beside their mean."""
SIGMA = """\
σ is PopArt's: the std of the critic's targets, which are discounted returns (GAE's λ-returns). It
is not that of the sum of rewards up to the first success, `mean_return` in evals.csv."""


# What a run logs and dumps.


@cache
def scalars(path: Path) -> dict[str, tuple[NDArray[np.int64], Array]]:
    """All that a run logged, {tag: (steps [C], values [C])}.

    It is in the run's TensorBoard events, in its scalars.csv, or, of a compact copy that was
    continued, in both: the events then begin where scalars.csv ends.
    """
    has_events = any(path.glob("events.out.tfevents*"))
    has_csv = (path / "scalars.csv").exists()
    if not has_events and not has_csv:
        script = SCRIPT_PATHS[json.loads((path / "args.json").read_text())["script"]]
        lack = "neither TensorBoard events nor scalars.csv; a run leaves the first"
        raise Missing(f"{path}: {lack}: python {script}")

    # {tag: {step: value}}; of a collect redone after a kill, the later value
    rows: dict[str, dict[int, float]] = defaultdict(dict)
    if has_csv:
        with open(path / "scalars.csv", newline="") as file:
            for row in csv.DictReader(file):
                rows[row["tag"]][int(row["step"])] = float(row["value"])
    if has_events:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(path), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            rows[tag].update((event.step, event.value) for event in events.Scalars(tag))

    found = {}
    for tag, values in rows.items():
        steps = sorted(values)
        found[tag] = np.array(steps), np.array([values[step] for step in steps])
    return found


def logged(seeds: Seeds, tag: str) -> tuple[NDArray[np.int64], Array]:
    """A tag's curves up to the Seeds' last evaluation, at the steps that all runs have.

    Returns the steps [C] and values [n, C].
    """
    for run in seeds.runs:
        if tag not in scalars(run.path):
            lack = f"nothing logged as {tag}, which every collect does"
            raise Missing(f"{run.path}: {lack}; {go_on(seeds.script, run.path)}")
    series = [scalars(run.path)[tag] for run in seeds.runs]
    steps = shared_steps([s for s, _ in series], int(seeds.steps[-1]))
    return steps, np.stack([values[np.isin(s, steps)] for s, values in series])


def gram(gradients: NDArray[np.floating]) -> Array:
    """G = J J^T [K, K] in fp64 of J = gradients [K, D], in blocks of columns to bound memory."""
    G = np.zeros((len(gradients), len(gradients)))
    for i in range(0, gradients.shape[1], 1 << 16):
        block = gradients[:, i : i + (1 << 16)].astype(np.float64)
        G += block @ block.T
    return G


@cache
def read_dump(file: Path) -> Dump:
    """A dump as dump_gradients.py wrote it, or its summary by compact.py."""
    try:
        with np.load(file, allow_pickle=False) as x:
            G = x["critic_gram"] if "critic_gram" in x else gram(x["critic_gradients"])
            sigma = x["popart_sigma"] if "popart_sigma" in x else None
            return Dump(int(x["global_step"]), x["tasks"].tolist(), G, sigma)
    except (BadZipFile, EOFError, KeyError, ValueError) as error:
        what = f"no gradient dump as dump_gradients.py writes it ({error})"
        raise Missing(f"{file}: {what}; delete it") from error


def dump_files(run: Run) -> list[Path]:
    return sorted(run.path.glob("gradients/collect_*.npz"))


def first_with_dumps(runs: list[Run], scripts: Sequence[str], what: str) -> Run:
    """The first run with gradient dumps of the first of scripts that has one.

    what: what they are for, to be said if there is none.
    """
    for script in scripts:
        for run in runs:
            if run.script == script and dump_files(run):
                return run
    others = f" or {len(scripts) - 1} other scripts that would do" if len(scripts) > 1 else ""
    lack = f"no gradient dumps for {what}, of {scripts[0]}.py{others}"
    raise Missing(f"{lack}; make some: {how_to_dump(scripts[0])}")


def how_to_dump(script: str) -> str:
    """The two commands that leave a run with gradient dumps."""
    train = f"python {SCRIPT_PATHS[script]} --benchmark MT10 --keep-checkpoints-every 10"
    return f"{train} --run-dir runs/NAME, then python paper/dump_gradients.py runs/NAME"


def early_middle_late(files: list[Path]) -> dict[str, Path]:
    """{"early": first, "middle": .., "late": last} of dumps; fewer names for fewer than three.

    Early is after the first collects. A dump of the initial networks, before anything was learned,
    counts only where there is no other.
    """
    learned = [file for file in files if read_dump(file).step > 0]
    if not learned:
        return {"initialisation": files[0]}
    files = learned
    names = {1: ["only"], 2: ["early", "late"]}.get(len(files), ["early", "middle", "late"])
    positions = np.linspace(0, len(files) - 1, len(names)).astype(int)
    return {name: files[i] for name, i in zip(names, positions)}


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
    axis: Axes,
    steps: NDArray[np.int64],
    values: Array,
    script: str,
    label: str | None = None,
    limits: tuple[float, float] = (-math.inf, math.inf),
    **style: Any,
) -> None:
    """A mean curve over seeds. values: [n, C].

    From three seeds on it has a band of one sample std, cut off at limits. The std of two is no
    more than their distance: both are drawn as thin lines instead.
    """
    style = {"color": COLORS[script], "linestyle": DASHES[script], "linewidth": 1.6, **style}
    marker = "o" if len(steps) <= 30 else None
    x = steps / 1e6
    mean = values.mean(0)
    axis.plot(x, mean, marker=marker, markersize=3, label=label, **style)
    if len(values) == 2:
        for seed in values:
            axis.plot(x, seed, **{**style, "linewidth": 0.6})
    elif len(values) > 2:
        std = values.std(0, ddof=1)
        band = {"color": style["color"], "alpha": 0.18, "linewidth": 0}
        axis.fill_between(x, np.clip(mean - std, *limits), np.clip(mean + std, *limits), **band)


def task_styles(tasks: Sequence[str], last: Array) -> dict[str, dict[str, Any]]:
    """{task: style of its line}, with labels for as many tasks as can be told apart.

    Where there are more, these are the tasks with the largest and with the smallest of last [K];
    the others are grey.
    """
    order = np.argsort(last)
    ends = [*order[: MOST_NAMED // 2], *order[-(MOST_NAMED // 2) :]]
    named = sorted(ends) if len(tasks) > MOST_NAMED else range(len(tasks))
    grey = {"color": "#BBBBBB", "linestyle": "-", "linewidth": 0.6, "zorder": 1}
    styles: dict[str, dict[str, Any]] = {task: grey for task in tasks}
    for i, k in enumerate(named):
        styles[tasks[k]] = {
            "color": PALETTE[i % len(PALETTE)],
            "linestyle": "--" if i >= len(PALETTE) else "-",
            "linewidth": 1.1,
            "label": tasks[k].removesuffix("-v3"),
        }
    return styles


def grid(
    rows: int, columns: int, width: float = 4.2, height: float = 3.1
) -> tuple[Figure, NDArray[np.object_]]:
    """A figure and its axes [rows, columns] with light grid lines."""
    size = (width * columns, height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    return figure, axes


def tiles(
    count: int, columns: int, width: float, height: float
) -> tuple[Figure, NDArray[np.object_]]:
    """A figure and count axes, in rows of at most columns."""
    columns = min(columns, count)
    figure, axes = grid(math.ceil(count / columns), columns, width, height)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, axes.flat[:count]


def legend_below(figure: Figure) -> None:
    """One legend for the labelled lines of all axes."""
    lines = {str(line.get_label()): line for axis in figure.axes for line in axis.lines}
    labelled = {name: line for name, line in lines.items() if not name.startswith("_")}
    style: dict[str, Any] = {"frameon": False, "fontsize": 9, "ncols": min(3, len(labelled))}
    figure.legend([*labelled.values()], [*labelled], loc="outside lower center", **style)


# Notes, written by hand.


def hash_of(runs: Iterable[Run]) -> str:
    """Of what the runs evaluated and logged, whatever their folders' names and order."""
    each = []
    for run in runs:
        content = hashlib.sha256()
        for name in ("evals.csv", "scalars.csv"):
            if (run.path / name).exists():
                content.update((run.path / name).read_bytes())
        each.append(content.hexdigest())
    return hashlib.sha256("".join(sorted(each)).encode()).hexdigest()[:12]


def read_note(file: Path, hashes: Iterable[str], command: str) -> list[str]:
    """The lines of a note on tables or figures: none where it is of other runs than these.

    Its first line names the runs that it speaks of, <!-- runs: HASH HASH -->, each of which must be
    among hashes. command: shows the right ones.
    """
    if not file.exists():
        return []
    first, _, rest = file.read_text().partition("\n")
    found = re.fullmatch(r"<!-- runs: ([0-9a-f ]+) -->", first)
    if found and set(found[1].split()) <= set(hashes):
        return rest.splitlines()
    lack = f"it is of the runs {found[1]}" if found else "its first line names no runs"
    reason = f"{file.name} is left out: {lack}; the hashes of these runs: {command}"
    print(reason, file=sys.stderr)
    return [f"*{reason}*"]


# The command line.


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """run directories, written by a training script or by compact.py, or folders of them"""
    out: Path | None = None
    """folder that the Markdown and PNG files go to; none: paper/ beside the runs"""


def default_out(paths: Sequence[Path]) -> Path:
    """paper/ beside the first run, or in the folder of runs.

    What is in results/ is of the runs there: a reader's own tables are not written over it.
    """
    first = paths[0] if paths else Path("runs")
    return (first.parent if (first / "args.json").exists() else first) / "paper"


Made = dict[str, tuple[str, list[str]] | Missing]  # {name: (title, Markdown lines) or why not}


def produce(items: Items, runs: list[Run], out: Path) -> Made:
    """Writes out/NAME.md and NAME.png for items {name: function of the runs}."""
    made: Made = {}
    for name, function in items.items():
        try:
            title, lines, figure = function(runs)
        except Missing as reason:
            made[name] = reason
            continue
        out.mkdir(parents=True, exist_ok=True)
        page = [f"# {title}", ""]
        if figure:
            figure.savefig(out / f"{name}.png", dpi=110)
            plt.close(figure)
            page += [f"![{title}]({name}.png)", ""]
        (out / f"{name}.md").write_text("\n".join(page + lines).rstrip() + "\n")
        made[name] = title, lines
    return made


def fail(reason: Missing) -> NoReturn:
    print(f"{Path(sys.argv[0]).name}: error: {reason}", file=sys.stderr)
    sys.exit(2)


def main(doc: str, items: Items) -> None:
    args = tyro.cli(Args, description=doc)
    out = args.out or default_out(args.runs)
    try:
        made = produce(items, load_runs(args.runs), out)
    except Missing as reason:
        made = {Path(sys.argv[0]).stem: reason}
    for name, result in made.items():
        if isinstance(result, Missing):
            print(f"{name}: {result}", file=sys.stderr)
        else:
            image = " and .png" if (out / f"{name}.png").exists() else ""
            print(f"wrote {out / name}.md{image}")
    if all(isinstance(result, Missing) for result in made.values()):
        sys.exit(2)
