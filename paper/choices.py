"""What the paper leaves open and our choice could matter for, measured.

    python paper/choices.py runs/ --choices runs/choices

RUNS are runs with the defaults, of the scripts that a choice is measured on. Those with another
choice are in the folder of --choices, named CHOICE__SCRIPT__SEED. Compares them at equal steps, the
last one that all have and the last one that a run of each choice has, and writes choices.png and
the page index.md there (--page). A text in choices_note.md in that folder, written by hand, goes
into the page if it is of these runs: its first line is <!-- runs: HASH -->, and --show-hashes
prints the hash.
"""

import os
import shlex
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import runs as r
import tyro


class Choice(NamedTuple):
    script: str
    default: str
    others: dict[str, str]  # {CHOICE: what it is}
    task_set: str = "MT10"


CHOICES = {
    "log-std start, TOPPO": Choice(
        "toppo_mt50", "0 (default)", {"log_std_-0.5": "-0.5", "log_std_-1.0": "-1"}
    ),
    "last value of an episode, TOPPO": Choice(
        "toppo_mt50", "bootstrapped (default)", {"no_bootstrap": "taken as 0"}
    ),
    "value clip, TOPPO": Choice("toppo_mt50", "on (default)", {"no_clip_vloss": "off"}),
    "value clip, vanilla": Choice("vanilla_mtppo", "on (default)", {"no_clip_vloss": "off"}),
    "PCGrad, TOPPO": Choice("toppo_mt50", "mean (default)", {"pcgrad_sum": "sum"}),
    "value clip, +LN-c": Choice("ln", "on (default)", {"no_clip_vloss": "off"}),
    "value clip, +LN-c +PopArt": Choice("ln_popart", "on (default)", {"no_clip_vloss": "off"}),
    "value clip, +LN-c +FG-c": Choice("ln_fairgrad", "on (default)", {"no_clip_vloss": "off"}),
    "value clip, vanilla, MT50": Choice(
        "vanilla_mtppo", "on (default)", {"no_clip_vloss": "off"}, task_set="MT50"
    ),
    "Adam's ε, +LN-c +PopArt": Choice("ln_popart", "1e-5 (default)", {"adam_eps_1e-8": "1e-8"}),
    "Adam's ε, vanilla, MT50": Choice(
        "vanilla_mtppo", "1e-5 (default)", {"adam_eps_1e-8": "1e-8"}, task_set="MT50"
    ),
    "Adam's ε, TOPPO, MT50": Choice(
        "toppo_mt50", "1e-5 (default)", {"adam_eps_1e-8": "1e-8"}, task_set="MT50"
    ),
}
INTRODUCTION = """\
Each choice that the paper leaves open and that could matter,
against the default, with V2 rewards, on MT10 if not on the tasks named, at a small part of the
paper's steps: the last at which all runs were evaluated and, where it is later, the last at which
each choice has a run. That the value clip is on is the paper's; it was switched off to find out
what PopArt's part is. Success in percent, mean over the seeds and, in brackets, each seed's;
training success is with exploration noise. Explained variance is in percent, too, and of the
critic's targets, which are discounted returns. A star marks the seeds of the scripts' first
version, whose random numbers are others. In the figure, a line is a seed's training success, a dot
is an evaluation."""
TAIL = r.tail_size(10)
MEASURES = ["success", f"worst {TAIL} tasks", "training success", "explained variance"]


@dataclass
class Args:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run directories with the default choices, or folders of them"""
    choices: Path = Path("runs/choices")
    """folder of the runs with other choices, and what the figure goes to"""
    page: Path | None = None
    """the page; none: index.md in the folder of --choices"""
    show_hashes: bool = False
    """print the hash of all runs compared, for the first line of the note, and write nothing"""


def members(folder: Path, defaults: list[r.Run], choice: Choice) -> dict[str, list[r.Run]]:
    """{what the choice is: its runs, by seed}, the default first; without those not made yet.

    Runs without the value clip are in folder, or among the runs with the default choices.
    """

    def of_choice(runs: list[r.Run]) -> list[r.Run]:
        key = choice.script, choice.task_set
        return sorted(
            [run for run in runs if (run.args["script"], run.task_set) == key], key=r.by_seed
        )

    found = {choice.default: of_choice(r.with_clip(defaults))}
    for name, label in choice.others.items():
        files = sorted(folder.glob(f"{name}__{choice.script}__*/args.json"))
        others = [r.read_run(file.parent) for file in files]
        if name == "no_clip_vloss":
            others += [run for run in defaults if r.NO_CLIP in run.script]
        found[label] = of_choice(others)
    return {label: runs for label, runs in found.items() if runs}


def steps_compared(found: dict[str, list[r.Run]]) -> list[int]:
    """The last step at which all runs were evaluated, and the last at which each choice has one."""
    steps = {label: [set(run.steps.tolist()) for run in runs] for label, runs in found.items()}
    of_all = set.intersection(*(of_run for of_runs in steps.values() for of_run in of_runs))
    of_each = set.intersection(*(set.union(*of_runs) for of_runs in steps.values()))
    return sorted({max(of_all), max(of_each)})


def scores(run: r.Run, step: int) -> list[float]:
    """MEASURES in percent: the first two evaluated at step, the others of training up to there."""
    rates = run.success[list(run.steps).index(step)]
    found = [rates.mean(), r.worst(rates, TAIL)]
    for tag in ("train_success/mean", "explained_variance/mean"):
        steps, values = r.scalars(run.path)[tag]
        found.append(values[steps <= step][-1])
    return [100 * x for x in found]


def cell(values: np.ndarray) -> str:
    """The seeds' mean and, if there are several, each of them in brackets."""
    each = ", ".join(f"{x:.1f}" for x in values)
    return f"{values.mean():.1f}" + (f" ({each})" if len(values) > 1 else "")


def draw(axis, found: dict[str, list[r.Run]], step: int) -> None:
    """Training success as lines and evaluations as dots, up to step, a colour for each choice."""
    for (label, runs), color in zip(found.items(), r.COLORS.values()):
        for run in runs:
            at = run.steps[run.steps <= step]
            evaluated = 100 * run.success.mean(1)[: len(at)]
            axis.plot(at / 1e6, evaluated, "o", color=color, markersize=5, alpha=0.8)
            steps, trained = r.scalars(run.path)["train_success/mean"]
            upto = steps <= step
            name = f"{label}, n = {len(runs)}" if run is runs[0] else None
            axis.plot(steps[upto] / 1e6, 100 * trained[upto], color=color, label=name)
    axis.set(xlabel="million environment steps", ylabel="success (%)")
    axis.legend(fontsize=8, loc="upper left")


def compare(made: dict[str, dict[str, list[r.Run]]]) -> tuple[r.Figure, list[list[str]]]:
    """The figure, an axis for each title of made, and the table's rows."""
    figure, axes = r.tiles(len(made), columns=4, width=3.2, height=3.1)
    rows: list[list[str]] = []
    for axis, (title, found) in zip(axes, made.items()):
        steps = steps_compared(found)
        draw(axis, found, steps[-1])
        axis.set_title(title)
        for step, (label, runs) in product(steps, found.items()):
            there = [run for run in runs if step in run.steps]
            seeds = ", ".join(f"{run.seed}{'*' * r.is_first_version(run)}" for run in there)
            table = np.array([scores(run, step) for run in there])  # [n, 4]
            rows.append([title, label, seeds, r.millions(step), *map(cell, table.T)])
            title = ""  # in the first of its rows only
    top = max(line.get_ydata().max() for axis in axes for line in axis.lines)
    for axis in axes:
        axis.set_ylim(-2, 1.05 * top)  # the same for all, so that they compare by eye
    return figure, rows


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    page = args.page or args.choices / "index.md"
    try:
        defaults = r.load_runs(args.runs)
        given = {
            title: members(args.choices, defaults, choice) for title, choice in CHOICES.items()
        }
        made = {title: found for title, found in given.items() if len(found) > 1}
        compared = {
            run.path: run for found in made.values() for runs in found.values() for run in runs
        }
        if not made:
            example = "CHOICE__SCRIPT__SEED, such as no_clip_vloss__toppo_mt50__1"
            raise r.Missing(f"{args.choices}: no run named {example}")
        if args.show_hashes:
            print(r.hash_of(compared.values()))
            return
        figure, rows = compare(made)
    except r.Missing as reason:
        r.fail(reason)
    figure.savefig(args.choices / "choices.png", dpi=110)

    link = Path(os.path.relpath(args.choices, page.parent)).as_posix()
    made_by = f"Made by `python paper/choices.py {shlex.join(sys.argv[1:])}`."
    lines = ["# Choices that the paper leaves open", "", made_by, INTRODUCTION, ""]
    lines += [f"![curves]({link}/choices.png)", ""]
    lines += r.table(["choice", "", "seeds", "at", *MEASURES], rows)
    absent = [title for title in given if title not in made]
    if absent:
        lines += [f"Not run yet: {'; '.join(absent)}.", ""]
    given_again = [*map(str, args.runs), "--choices", str(args.choices), "--show-hashes"]
    command = f"python paper/choices.py {shlex.join(given_again)}"
    note = args.choices / "choices_note.md"
    lines += r.read_note(note, [r.hash_of(compared.values())], command)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(lines).rstrip() + "\n")
    print(f"wrote {page} and {args.choices}/choices.png")


if __name__ == "__main__":
    main()
